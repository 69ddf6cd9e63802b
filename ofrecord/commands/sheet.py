"""Pictures of many small images in groups, each with a caption."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from runtime.atomic import replace_file

HEAD, ROW, SIDE = 0.4, 1.2, 0.88  # inches: a group's title, a row of images, and an image
# The first of these that there are for each character; those after the first have Chinese.
FONTS = "DejaVu Sans,Noto Sans CJK SC,Noto Sans CJK JP,WenQuanYi Micro Hei,WenQuanYi Zen Hei,SimHei"
WIDEST = 96  # pixels of a caption, of the 100 from image to image


class Tile(NamedTuple):
    """An image with its caption."""

    caption: str
    pixels: np.ndarray  # uint8, gray (height, width) or RGB (height, width, 3)
    color: str = "black"  # of the caption, and of a frame unless it is black


def text_style() -> dict[str, object]:
    """Return matplotlib's arguments for text that may hold anything: class names, folders."""
    installed = set(font_manager.get_font_names())
    return {"parse_math": False, "family": [each for each in FONTS.split(",") if each in installed]}


@contextmanager
def _without_warnings() -> Iterator[None]:
    """A character that no font has is a box, and no warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@_without_warnings()
def draw_groups(path: str, groups: list[tuple[str, list[Tile]]], columns: int) -> None:
    """Write groups of images, each below its title, as a PNG file. Raises OSError."""
    rows = sum(-(-len(tiles) // columns) for _, tiles in groups)
    height = HEAD * len(groups) + ROW * rows
    figure, y, style = Figure((columns, height), dpi=100), 0.0, text_style()
    axes = figure.add_axes([0, 0, 1, 1])  # one for all, which takes a fourth of the time
    for title, tiles in groups:
        axes.text(0.06, y + HEAD / 2, title, fontsize=12, va="center", **style)
        y += HEAD
        for number, (caption, pixels, color) in enumerate(tiles):
            h, w = np.array(pixels.shape[:2]) * SIDE / max(pixels.shape[:2])
            left, top = number % columns + (1 - w) / 2, y + ROW * (number // columns) + 0.7 - h / 2
            extent = left, left + w, top + h, top
            axes.imshow(pixels, cmap="gray", vmin=0, vmax=255, extent=extent)
            place = {"x": left + w / 2, "y": top - 0.04, "ha": "center"}
            text = axes.text(s=caption, fontsize=7, color=color, **place, **style)
            lines = caption.split("\n")
            while text.get_window_extent().width > WIDEST and max(map(len, lines)) > 1:
                longest = lines.index(max(lines, key=len))
                lines[longest] = lines[longest].rstrip("…")[:-1] + "…"
                text.set_text("\n".join(lines))
            if color != "black":
                axes.add_patch(Rectangle((left, top), w, h, fill=False, edgecolor=color))
        y += ROW * -(-len(tiles) // columns)
    axes.set(xlim=(0, columns), ylim=(height, 0), aspect="auto")  # in inches, from the top
    axes.set_axis_off()
    save_figure(figure, path)


@_without_warnings()
def save_figure(figure: Figure, path: str) -> None:
    """Write a figure as a PNG file. Raises OSError."""
    with replace_file(path) as file:
        figure.savefig(file, format="png")
