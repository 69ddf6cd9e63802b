"""Pictures of many small images in groups, each with a caption."""

import warnings
from typing import NamedTuple

import numpy as np
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from runtime.atomic import replace_file

HEAD, ROW = 0.4, 1.2  # inches: a group's title, and a row of images of an inch with captions
# The first of these that there are for each character; those after the first have Chinese.
FONTS = "DejaVu Sans,Noto Sans CJK SC,Noto Sans CJK JP,WenQuanYi Micro Hei,WenQuanYi Zen Hei,SimHei"
LONGEST = 17  # characters of a caption


class Tile(NamedTuple):
    """An image with its caption."""

    caption: str
    pixels: np.ndarray  # uint8, gray (height, width) or RGB (height, width, 3)
    color: str = "black"  # of the caption, and of a frame unless it is black


def text_style() -> dict[str, object]:
    """Return matplotlib's arguments for text that may hold anything: class names, folders."""
    installed = set(font_manager.get_font_names())
    return {"parse_math": False, "family": [each for each in FONTS.split(",") if each in installed]}


def draw_groups(path: str, groups: list[tuple[str, list[Tile]]], columns: int) -> None:
    """Write groups of images, each below its title, as a PNG file. Raises OSError."""
    rows = sum(-(-len(tiles) // columns) for _, tiles in groups)
    height = HEAD * len(groups) + ROW * rows  # inches, from the top down
    figure, y, style = Figure((columns, height), dpi=100), 0.0, text_style()
    axes = figure.add_axes([0, 0, 1, 1])
    for title, tiles in groups:
        axes.text(0.06, y + HEAD / 2, title, fontsize=12, va="center", **style)
        y += HEAD
        for number, tile in enumerate(tiles):
            _draw_tile(axes, tile, number % columns + 0.5, y + ROW * (number // columns), style)
        y += ROW * -(-len(tiles) // columns)
    axes.set(xlim=(0, columns), ylim=(height, 0), aspect="auto")
    axes.set_axis_off()
    save_figure(figure, path)


def _draw_tile(axes, tile: Tile, x: float, top: float, style: dict[str, object]) -> None:
    """Draw an image, at most 0.88 inches wide and high, with its centre at ``x``."""
    _, pixels, color = tile
    height, width = np.array(pixels.shape[:2]) * 0.44 / max(pixels.shape[:2])
    y = top + 0.7
    extent = (x - width, x + width, y + height, y - height)
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=255, extent=extent)
    caption = tile.caption if len(tile.caption) <= LONGEST else f"{tile.caption[: LONGEST - 1]}…"
    size = 8 if len(caption) <= 13 else 6
    axes.text(x, y - height - 0.04, caption, fontsize=size, ha="center", color=color, **style)
    if color != "black":
        corner = x - width, y - height
        axes.add_patch(Rectangle(corner, 2 * width, 2 * height, fill=False, edgecolor=color))


def legible(text: str, otherwise: str) -> str:
    """Return a text, or another one where no font here has all of its characters."""
    paths = map(font_manager.findfont, text_style()["family"])
    fonts = [font_manager.get_font(path) for path in paths]
    is_drawn = all(any(font.get_char_index(ord(c)) for font in fonts) for c in text)
    return text if is_drawn else otherwise


def save_figure(figure: Figure, path: str) -> None:
    """Write a figure as a PNG file. Raises OSError."""
    with replace_file(path) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no font has a character: it is a box
        figure.savefig(file, format="png")
