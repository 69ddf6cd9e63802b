"""Pictures of many small images, each with a caption."""

import matplotlib
import numpy as np
from matplotlib import font_manager
from matplotlib.figure import Figure

from runtime.atomic import replace_file

COLUMNS, HEAD, ROW = 12, 0.4, 1.2  # images in a row of an inch each; inches of the title, of a row
# The first of these that there are for each character; those after the first have Chinese.
FONTS = "DejaVu Sans,Noto Sans CJK SC,Noto Sans CJK JP,WenQuanYi Micro Hei,WenQuanYi Zen Hei,SimHei"


def draw_sheet(path: str, title: str, images: list[tuple[str, np.ndarray]]) -> None:
    """Write a PNG file of images, uint8, gray or RGB, of any size, with captions. Raises OSError."""
    height = HEAD + ROW * -(-len(images) // COLUMNS)
    figure = Figure((COLUMNS, height), dpi=100)
    axes = figure.add_axes([0, 0, 1, 1])
    installed = set(font_manager.get_font_names())
    text = {"parse_math": False, "family": [font for font in FONTS.split(",") if font in installed]}
    axes.text(0.06, HEAD / 2, title, fontsize=12, va="center", **text)
    for number, (caption, pixels) in enumerate(images):
        x, y = number % COLUMNS + 0.5, HEAD + ROW * (number // COLUMNS) + 0.7
        half_height, half_width = np.array(pixels.shape[:2]) * 0.44 / max(pixels.shape[:2])
        extent = (x - half_width, x + half_width, y + half_height, y - half_height)
        axes.imshow(pixels, cmap="gray", vmin=0, vmax=255, extent=extent)
        caption = caption if len(caption) <= 13 else f"{caption[:12]}…"
        axes.text(x, y - half_height - 0.04, caption, fontsize=8, ha="center", **text)
    axes.set(xlim=(0, COLUMNS), ylim=(height, 0), aspect="auto")
    axes.set_axis_off()
    with matplotlib.rc_context(), replace_file(path) as file:
        figure.savefig(file, format="png")
