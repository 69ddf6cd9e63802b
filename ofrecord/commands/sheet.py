"""Pictures of many small images in groups, each with a caption."""

import warnings
from typing import NamedTuple

import numpy as np
from matplotlib import font_manager
from matplotlib.figure import Figure

from runtime.atomic import replace_file

HEAD, ROW, SIDE = 0.4, 1.2, 0.88  # inches: a group's title, a row of images, and an image
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
    height = HEAD * len(groups) + ROW * rows
    figure, top, style = Figure((columns, height), dpi=100), 0.0, text_style()  # an inch a column
    for title, tiles in groups:
        middle = 1 - (top + HEAD / 2) / height
        figure.text(0.06 / columns, middle, title, fontsize=12, va="center", **style)
        top += HEAD
        for number, (caption, pixels, color) in enumerate(tiles):
            x, y = number % columns + 0.06, top + ROW * (number // columns) + 0.26 + SIDE
            place = x / columns, 1 - y / height, SIDE / columns, SIDE / height
            axes = figure.add_axes(place, xticks=[], yticks=[])
            axes.imshow(pixels, cmap="gray", vmin=0, vmax=255)
            axes.spines[:].set(color=color, visible=color != "black")
            axes.set_title(caption[:LONGEST], pad=2, fontsize=7, color=color, **style)
        top += ROW * -(-len(tiles) // columns)
    save_figure(figure, path)


def save_figure(figure: Figure, path: str) -> None:
    """Write a figure as a PNG file. Raises OSError."""
    with replace_file(path) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no font has a character: it is a box
        figure.savefig(file, format="png")
