"""Pictures of many small images: a dataset's contact sheet, and a model's predictions."""

import random
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import matplotlib
import numpy as np

matplotlib.use("Agg")  # no screen needed

from matplotlib import font_manager, patches, pyplot
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from runtime.atomic import replace_file
from runtime.cli import count

GROUP_CLASSES = 12  # up to so many classes have rows of their own; more share the rows
COLUMNS, MAX_TILES = 12, 144
HEAD, CAPTION = 0.4, 0.2  # inches of a group's title, and above captioned images of an inch
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
# Those that this machine has; matplotlib includes the first.
INSTALLED_FONTS = {
    name: font_manager.get_font(font_manager.findfont(name))
    for name in FONTS
    if name in font_manager.get_font_names()
}
pyplot.rcParams["font.family"] = list(INSTALLED_FONTS)


class Tile(NamedTuple):
    """An image with its caption."""

    pixels: np.ndarray  # uint8, gray (height, width) or RGB (height, width, 3)
    caption: str = ""
    color: str = "black"  # of the caption, and of a frame unless it is black


class Sampler:
    """Keeps a uniform random sample of the records of each class (reservoir sampling), seeded."""

    def __init__(self) -> None:
        self.samples: dict[int, list[bytes]] = {}  # encoded images by label
        self._random, self._num_seen = random.Random(0), Counter()

    def add(self, label: int, data: bytes) -> None:
        """Offer one record's label and encoded image."""
        self._num_seen[label] += 1
        samples = self.samples.setdefault(label, [])
        if len(samples) < COLUMNS:
            samples.append(data)
        elif (place := self._random.randrange(self._num_seen[label])) < COLUMNS:
            samples[place] = data


def draw_sheet(
    path: str,
    title: str,
    images: dict[int, list[np.ndarray]],
    names: dict[int, str],
    counts: dict[int, int],
) -> None:
    """Write a contact sheet as a PNG file.

    ``images`` maps labels to lists of images (uint8, gray or RGB, any size),
    ``names`` labels to class names, ``counts`` labels to their number of
    records. Raises OSError.
    """
    if len(images) <= GROUP_CLASSES:
        groups = [(title, [])]
        for label, of in sorted(images.items()):
            name = shorten(legible(names[label], label), 60)
            groups.append((f"{name}: {count(counts[label], 'image')}", list(map(Tile, of))))
    else:  # one of each class in turn, until the sheet is full
        turns = sorted((turn, label) for label, of in images.items() for turn in range(len(of)))
        shown = sorted((label, turn) for turn, label in turns[:MAX_TILES])
        captions = {n: fitting_name(legible(names[n], n), 12) for n, _ in shown}
        tiles = [Tile(images[n][turn], captions[n]) for n, turn in shown]
        if len(images) > MAX_TILES:
            title += f" (here: {MAX_TILES} of the {len(images):,} classes)"
        groups = [(title, tiles)]
    draw_groups(path, groups, COLUMNS)


def draw_groups(path: str, groups: list[tuple[str, list[Tile]]], columns: int) -> None:
    """Write groups of images, each below its title, as a PNG file. Raises OSError."""
    figure = pyplot.figure(dpi=100)
    axes = figure.add_axes([0, 0, 1, 1])
    height = 0.0  # inches
    for title, tiles in groups:
        axes.text(0.06, height + HEAD / 2, title, fontsize=12, va="center", parse_math=False)
        height += HEAD
        gap = CAPTION if any(tile.caption for tile in tiles) else 0
        for start in range(0, len(tiles), columns):
            for column, tile in enumerate(tiles[start : start + columns]):
                _draw_tile(axes, tile, column + 0.5, height + gap + 0.46)
            height += gap + 0.94
    figure.set_size_inches(columns, height)
    axes.set(xlim=(0, columns), ylim=(height, 0), aspect="auto")
    axes.set_axis_off()
    save_figure(figure, path)


def save_figure(figure: pyplot.Figure, path: str) -> None:
    """Write a figure as a PNG file and close it. Raises OSError."""
    try:
        with replace_file(path) as file:
            figure.savefig(file, format="png")
    finally:
        pyplot.close(figure)


def _draw_tile(axes, tile: Tile, x: float, y: float) -> None:
    """Draw an image, at most 0.88 inches wide and high, with its centre at (x, y)."""
    height, width = np.array(tile.pixels.shape[:2]) * 0.44 / max(tile.pixels.shape[:2])
    extent = (x - width, x + width, y + height, y - height)
    axes.imshow(tile.pixels, cmap="gray", vmin=0, vmax=255, extent=extent)
    style = {"ha": "center", "va": "bottom", "color": tile.color, "parse_math": False}  # no $x$
    axes.text(x, y - height - 0.03, tile.caption, fontsize=8, **style)
    if tile.color != "black":
        corner = (x - width, y - height)
        frame = patches.Rectangle(corner, 2 * width, 2 * height, fill=False, edgecolor=tile.color)
        axes.add_patch(frame)


def legible(name: str, label: int | str) -> str:
    """Return a class's name, or its label if no font here has all the characters of the name."""
    fonts = INSTALLED_FONTS.values()
    drawable = all(any(font.get_char_index(ord(c)) for font in fonts) for c in name)
    return name if drawable else str(label)


def shorten(text: str, max_length: int) -> str:
    """Return a text, cut to ``max_length`` characters where it is longer."""
    return text if len(text) <= max_length else text[: max_length - 1] + "…"


def fitting_name(name: str, max_length: int) -> str:
    """Return a name as a caption: of ``max_length`` characters at most, and fewer if they are wide."""
    return first_fitting(shorten(name, length) for length in range(max_length, 0, -1))


def first_fitting(captions: Iterable[str]) -> str:
    """Return the first of the captions that is not wider than a tile, or the last."""
    text = FigureCanvasAgg(Figure(dpi=100)).figure.text(0, 0, "", fontsize=8, parse_math=False)
    for caption in captions:
        text.set_text(caption)
        if text.get_window_extent().width < 96:  # of the 100 pixels from tile to tile
            break
    return caption
