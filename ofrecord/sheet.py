"""A contact sheet: one picture with sample images of a dataset and their labels."""

import random

import cv2
import matplotlib
import numpy as np

matplotlib.use("Agg")  # no screen needed

from matplotlib import font_manager, ft2font, pyplot

from runtime.cli import count

ROW_CLASSES = 12  # up to so many classes have a row each; more share the rows
COLUMNS, MAX_ROWS = 12, 12
CELL, GAP = 64, 4  # pixels
FONTS = [  # those after the first for Chinese class names
    "DejaVu Sans",
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "Droid Sans Fallback",
    "SimHei",
    "Microsoft YaHei",
]


class Sampler:
    """Keeps a uniform random sample of the records of each class (reservoir sampling), seeded."""

    def __init__(self, per_class: int = COLUMNS) -> None:
        self.samples: dict[int, list[bytes]] = {}  # encoded images by label
        self._per_class, self._random = per_class, random.Random(0)
        self._num_seen = {}

    def add(self, label: int, data: bytes) -> None:
        """Offer one record's label and encoded image."""
        num_seen = self._num_seen[label] = self._num_seen.get(label, 0) + 1
        samples = self.samples.setdefault(label, [])
        if num_seen <= self._per_class:
            samples.append(data)
        else:
            place = self._random.randrange(num_seen)
            if place < self._per_class:
                samples[place] = data


def cell(pixels: np.ndarray) -> np.ndarray:
    """Return an image as an RGB square of CELL x CELL pixels, scaled to fit and centred.

    Small images are enlarged without interpolation.
    """
    height, width = pixels.shape[:2]
    scale = CELL / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    pixels = cv2.resize(
        pixels, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST
    )
    square = np.full((CELL, CELL, 3), 235, np.uint8)
    top, left = (CELL - size[1]) // 2, (CELL - size[0]) // 2
    square[top : top + size[1], left : left + size[0]] = (
        pixels[:, :, None] if pixels.ndim == 2 else pixels[:, :, ::-1]
    )
    return square


def draw_sheet(
    path: str,
    title: str,
    images: dict[int, list[np.ndarray]],
    names: dict[int, str],
    counts: dict[int, int],
) -> None:
    """Write the contact sheet as a PNG file.

    ``images`` maps labels to lists of images (uint8, gray or BGR, any size),
    ``names`` labels to their class names (the label itself is drawn where no
    font here has the characters), ``counts`` labels to their number of
    records. Raises OSError.
    """
    by_rows = len(images) <= ROW_CLASSES
    if by_rows:
        rows = [images[label] for label in sorted(images)]
    else:  # one of each class in turn, until the sheet is full
        turns = [
            (label, class_images[turn])
            for turn in range(COLUMNS)
            for label, class_images in sorted(images.items())
            if turn < len(class_images)
        ][: COLUMNS * MAX_ROWS]
        turns.sort(key=lambda item: item[0])
        rows = [
            [image for _, image in turns[start : start + COLUMNS]]
            for start in range(0, len(turns), COLUMNS)
        ]
    text = 0 if by_rows else 16  # room for a label under each image
    pitch_x, pitch_y = CELL + GAP, CELL + GAP + text
    canvas = np.full((len(rows) * pitch_y, COLUMNS * pitch_x, 3), 255, np.uint8)
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            canvas[y * pitch_y : y * pitch_y + CELL, x * pitch_x : x * pitch_x + CELL] = cell(image)

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
            for y, label in enumerate(sorted(images)):
                middle = head + y * pitch_y + CELL / 2
                write(
                    margin - 12,
                    middle - 7,
                    shorten(names[label], 20),
                    ha="right",
                    va="center",
                    fontsize=12,
                )
                write(
                    margin - 12,
                    middle + 11,
                    count(counts[label], "image"),
                    ha="right",
                    va="center",
                    fontsize=8,
                    color="gray",
                )
        else:
            for place, (label, _) in enumerate(turns):
                x, y = place % COLUMNS, place // COLUMNS
                write(
                    margin + x * pitch_x + CELL / 2,
                    head + y * pitch_y + CELL + 8,
                    shorten(names[label], 10),
                    ha="center",
                    va="center",
                    fontsize=8,
                )
        try:
            figure.savefig(path, format="png")
        finally:
            pyplot.close(figure)


def installed_fonts() -> dict[str, ft2font.FT2Font]:
    """Return those FONTS that this machine has, by name; matplotlib includes the first."""
    fonts = {}
    for name in FONTS:
        try:
            fonts[name] = font_manager.get_font(
                font_manager.findfont(name, fallback_to_default=False)
            )
        except ValueError:
            pass
    return fonts


def can_draw(text: str, fonts: dict[str, ft2font.FT2Font]) -> bool:
    """Whether each character of a text is in one of the fonts."""
    return all(
        any(font.get_char_index(ord(character)) for font in fonts.values()) for character in text
    )


def shorten(text: str, max_length: int) -> str:
    """Return a text, cut to ``max_length`` characters where it is longer."""
    return text if len(text) <= max_length else text[: max_length - 1] + "…"
