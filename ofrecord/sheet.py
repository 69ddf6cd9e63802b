"""A contact sheet: sample images of a dataset with their labels, in one picture."""

import random

import cv2
import matplotlib
import numpy as np

matplotlib.use("Agg")  # no screen needed

from matplotlib import font_manager, pyplot

ROW_CLASSES = 12  # up to so many classes have a row each; more share the rows
COLUMNS, MOST_ROWS = 12, 12
CELL, GAP = 64, 4  # pixels
FONTS = ["DejaVu Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei",
         "Droid Sans Fallback", "SimHei", "Microsoft YaHei"]  # those after the first for Chinese class names


class Sampler:
    """Keeps a fair random sample of the records of each class (reservoir sampling), seeded."""

    def __init__(self, per_class=COLUMNS):
        self._per_class, self._random = per_class, random.Random(0)
        self._seen, self.kept = {}, {}

    def add(self, label, data):
        seen = self._seen[label] = self._seen.get(label, 0) + 1
        kept = self.kept.setdefault(label, [])
        if seen <= self._per_class:
            kept.append(data)
        else:
            place = self._random.randrange(seen)
            if place < self._per_class:
                kept[place] = data


def cell(pixels):
    """An image as a CELL x CELL RGB square: whole, centred, small ones in sharp pixels."""
    height, width = pixels.shape[:2]
    scale = CELL / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST)
    square = np.full((CELL, CELL, 3), 235, np.uint8)
    top, left = (CELL - size[1]) // 2, (CELL - size[0]) // 2
    square[top:top + size[1], left:left + size[0]] = pixels[:, :, None] if pixels.ndim == 2 else pixels[:, :, ::-1]
    return square


def draw_sheet(path, title, kept, names, counts):
    """Write the contact sheet, a PNG.

    ``kept`` maps labels to lists of images (uint8, gray or BGR, any size),
    ``names`` labels to the text that stands for them (the label itself where
    no font here can draw it), ``counts`` labels to
    their number of records. Raises OSError.
    """
    by_rows = len(kept) <= ROW_CLASSES
    if by_rows:
        rows = [kept[label] for label in sorted(kept)]
    else:  # one of each class in turn, until the sheet is full
        turns = [(label, images[turn]) for turn in range(COLUMNS) for label, images in sorted(kept.items())
                 if turn < len(images)][:COLUMNS * MOST_ROWS]
        turns.sort(key=lambda item: item[0])
        rows = [[image for _, image in turns[start:start + COLUMNS]] for start in range(0, len(turns), COLUMNS)]
    text = 0 if by_rows else 16  # room for a label under each image
    pitch_x, pitch_y = CELL + GAP, CELL + GAP + text
    canvas = np.full((len(rows) * pitch_y, COLUMNS * pitch_x, 3), 255, np.uint8)
    for y, images in enumerate(rows):
        for x, image in enumerate(images):
            canvas[y * pitch_y:y * pitch_y + CELL, x * pitch_x:x * pitch_x + CELL] = cell(image)

    margin, head = (170 if by_rows else 16), 40  # pixels left of the images and above them
    dpi = 100
    width, height = canvas.shape[1] + margin + 12, canvas.shape[0] + head + 8
    fonts = installed_fonts()
    names = {label: name if can_draw(name, fonts) else str(label) for label, name in names.items()}
    with matplotlib.rc_context({"font.family": list(fonts)}):
        figure = pyplot.figure(figsize=(width / dpi, height / dpi), dpi=dpi)
        figure.figimage(canvas, margin, height - head - canvas.shape[0])

        def write(x, y, string, **style):  # pixels from the left and from the top
            figure.text(x / width, 1 - y / height, string, **style)

        write(12, 16, title, va="center", fontsize=12)
        if by_rows:
            for y, label in enumerate(sorted(kept)):
                middle = head + y * pitch_y + CELL / 2
                write(margin - 12, middle - 7, shorten(names[label], 20), ha="right", va="center", fontsize=12)
                write(margin - 12, middle + 11, "{:,} images".format(counts[label]), ha="right", va="center",
                      fontsize=8, color="gray")
        else:
            for place, (label, _) in enumerate(turns):
                x, y = place % COLUMNS, place // COLUMNS
                write(margin + x * pitch_x + CELL / 2, head + y * pitch_y + CELL + 8, shorten(names[label], 10),
                      ha="center", va="center", fontsize=8)
        try:
            figure.savefig(path, format="png")
        finally:
            pyplot.close(figure)


def installed_fonts():
    """{name: font} of those FONTS that this machine has; matplotlib brings the first along."""
    fonts = {}
    for name in FONTS:
        try:
            fonts[name] = font_manager.get_font(font_manager.findfont(name, fallback_to_default=False))
        except ValueError:
            pass
    return fonts


def can_draw(text, fonts):
    return all(any(font.get_char_index(ord(character)) for font in fonts.values()) for character in text)


def shorten(text, most):
    return text if len(text) <= most else text[:most - 1] + "…"
