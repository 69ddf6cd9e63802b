"""Draw docs/record.png and docs/pipeline.png from the tutorial's dataset: ``make picture``."""

import io
import os
import sys
from collections.abc import Iterator
from itertools import islice

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import cv2
import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.patches import Rectangle

from img2ofrecord import ndarray2ofrecords
from lenet.augment import augment
from lenet.config import TrainConfig
from lenet.spec import ModelSpec
from lenet_train import ImageReader
from ofrecord.dataset.images_csv import read_rows
from ofrecord.dataset.open_dataset import open_dataset
from ofrecord.record import IMAGE_FEATURE, LABEL_FEATURE, LENGTH, read_part, read_record

DATASET = "dataset/"
IMAGES = "data/images/train_set/"
WIDTH, DPI = 8.0, 150  # inches; 1,200 pixels, which a page shows at about 800
CENTERED = {"ha": "center", "va": "center"}
MONO = {"family": "DejaVu Sans Mono", "ha": "center", "va": "center"}
SHADES = ("gray", 0, 255)
GRAY, BLUE, GREEN, RED, ORANGE = "#e4e4e4", "#9ecbf0", "#cdebc5", "#f5a3a3", "#fbd38b"


def main() -> None:
    draw_record("docs/record.png")
    draw_pipeline("docs/pipeline.png")


def new_axes(height: float):
    """Return a figure of WIDTH and a height in inches, and axes in inches from the top left."""
    figure = pyplot.figure(figsize=(WIDTH, height), dpi=DPI)
    axes = figure.add_axes([0, 0, 1, 1])
    axes.set(xlim=(0, WIDTH), ylim=(height, 0))
    axes.set_axis_off()
    return figure, axes


# -- a record ---------------------------------------------------------------------------


def fields_of(content: bytes) -> Iterator[tuple[int, int, str]]:
    """Yield (start, end, color) of what a reader wants to see in a framed record's bytes.

    All else is protobuf's own: field numbers, types and lengths.
    """
    image, label, _ = read_record(content[LENGTH.size :])
    yield 0, LENGTH.size, BLUE
    for name in (b"images", b"labels"):
        start = content.index(name)
        yield start, start + len(name), ORANGE
    start = content.index(image)
    yield start, start + len(image), GREEN
    # The label's value is the last byte of the labels entry.
    place = content.index(b"labels") + len(b"labels")
    end = content.index(bytes([label]), place + 6)
    yield end, end + 1, RED


def draw_record(path: str) -> None:
    """The bytes of the first record, 16 a row, each field in its color."""
    with open(os.path.join(DATASET, "part-0"), "rb") as part:
        content = part.read(LENGTH.size)
        content += part.read(LENGTH.unpack(content)[0])
    image, label, _ = read_record(content[LENGTH.size :])
    colors = [GRAY] * len(content)
    rows = {}  # of the first byte of each color
    for start, end, color in fields_of(content):
        colors[start:end] = [color] * (end - start)
        rows.setdefault((color, content[start:end]), start // 16)
    cell, line, left, top = 0.272, 0.225, 0.5, 0.42
    figure, axes = new_axes(top + line * -(-len(content) // 16) + 0.15)
    axes.text(0.1, 0.2, "dataset/part-0, the first record", fontsize=11, va="center")
    for index, (value, color) in enumerate(zip(content, colors, strict=True)):
        x, y = left + index % 16 * cell, top + index // 16 * line
        axes.add_patch(Rectangle((x, y), cell, line, color=color, lw=0))
        axes.text(x + cell / 2, y + line / 2, f"{value:02x}", fontsize=8.5, **MONO)
        if index % 16 == 0:
            axes.text(left / 2, y + line / 2, f"{index}", fontsize=8, color="gray", **MONO)
    right = left + 16 * cell
    pixels = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_GRAYSCALE)
    notes = {
        BLUE: f"length of the message: {len(content) - LENGTH.size} bytes\n(int64, little-endian)",
        ORANGE: "names of the features:\n“images” and “labels”",
        GREEN: f"image: {len(image)} bytes of PNG,\nexactly those of the file",
        RED: f"label: {label}",
        GRAY: "protobuf: types and lengths",
    }
    y = top + 0.05
    for color, text in notes.items():
        axes.add_patch(Rectangle((right + 0.2, y), 0.22, 0.22, color=color, lw=0))
        axes.text(right + 0.52, y + 0.11, text.split("\n")[0], fontsize=10, va="center")
        for more in text.split("\n")[1:]:
            axes.text(right + 0.52, y + 0.31, more, fontsize=10, va="center")
        y += 0.62 if "\n" in text else 0.42
        if color == GREEN:
            extent = (right + 0.52, right + 1.92, y + 1.4, y)
            axes.imshow(pixels, cmap="gray", extent=extent, aspect="auto")
            y += 1.58
    figure.savefig(path)


# -- from files to a batch ----------------------------------------------------------------


def draw_pipeline(path: str) -> None:
    """The first three images of the dataset at each stage, a column each."""
    dataset = open_dataset(DATASET)
    spec = ModelSpec.from_dataset(dataset, None)
    config = TrainConfig(crop=0.3)  # strong enough to be seen
    reader = ImageReader(dataset, spec, config.batch_size)
    pixels, labels = reader.next_pixels()
    batch = reader.normalize(pixels)
    augmented = augment(batch, config, np.random.default_rng(0))
    low, high = batch.numpy().min(), batch.numpy().max()
    columns = [  # centre, title, made by, what it is
        (0.78, "image files", "and label.txt", "28x28 pixels"),
        (2.38, "records", "by img2ofrecord.py", "length, image, label"),
        (4.02, "decoded", "by OneFlow's decoders", f"uint8 {tuple(pixels.shape)}"),
        (5.66, "normalized", "by CropMirrorNormalize", f"float32 {tuple(batch.shape)}"),
        (7.2, "augmented", "by augment()", "up to 30 % cropped"),
    ]
    ranges = ["0 to 255", "in part-0", "0 to 255", f"{low:.2f} to {high:.2f}", "in training: 5 %"]
    side, top, step, shown = 1.05, 0.72, 1.4, 3
    figure, axes = new_axes(top + shown * step + 0.62)
    for (x, title, maker, note), extent in zip(columns, ranges, strict=True):
        axes.text(x, 0.22, title, fontsize=12, weight="bold", **CENTERED)
        axes.text(x, 0.48, maker, fontsize=9, **CENTERED)
        axes.text(x, top + shown * step + 0.15, note, fontsize=9, **CENTERED)
        axes.text(x, top + shown * step + 0.38, extent, fontsize=9, color="#505050", **CENTERED)
    centers = [column[0] for column in columns]
    parts = read_part(os.path.join(DATASET, "part-0"))
    for row, (source, (_, image, label)) in enumerate(
        islice(zip(read_rows(DATASET), parts, strict=False), shown)
    ):
        name, y = source.image, top + row * step
        file = cv2.imread(os.path.join(IMAGES, name), cv2.IMREAD_GRAYSCALE)
        stages = [(file, *SHADES), (pixels.numpy()[row], *SHADES)]
        stages += [(each.numpy()[row], "RdBu_r", -1.5, 1.5) for each in (batch, augmented)]
        for x, (stage, colors, lowest, highest) in zip(
            centers[:1] + centers[2:], stages, strict=True
        ):
            axes.imshow(
                stage.reshape(28, 28),
                cmap=colors,
                vmin=lowest,
                vmax=highest,
                extent=(x - side / 2, x + side / 2, y + side, y),
                aspect="auto",
            )
        draw_bytes(axes, image, label, centers[1], y, side)
        captions = [name, "", *[f"label {labels.numpy()[row]}"] * 3]
        for x, caption in zip(centers, captions, strict=True):
            axes.text(x, y + side + 0.14, caption, fontsize=9, **CENTERED)
        for start, end in zip(centers, centers[1:], strict=False):
            ends = (end - 0.62, y + side / 2), (start + 0.62, y + side / 2)
            style = {"arrowstyle": "-|>", "color": "#505050", "lw": 1.3}
            axes.annotate("", *ends, arrowprops=style)
    figure.savefig(path)


def draw_bytes(axes, image: bytes, label: int, x: float, y: float, side: float) -> None:
    """A record as boxes: its length, the beginning of its image, its label."""
    record = io.BytesIO()
    ndarray2ofrecords(record, IMAGE_FEATURE, image, LABEL_FEATURE, label)
    head = " ".join(f"{value:02x}" for value in record.getvalue()[:4])
    start = " ".join(f"{value:02x}" for value in image[:4])
    texts = [(BLUE, f"{head} …"), (GREEN, f"{start} …"), (GREEN, f"({len(image)} bytes)")]
    height = side / 4
    for number, (color, text) in enumerate([*texts, (RED, f"{label:02x}")]):
        corner = (x - 0.58, y + number * height)
        gap = 0 if number == 1 else 0.03
        axes.add_patch(Rectangle(corner, 1.16, height - gap, color=color, lw=0))
        axes.text(x, corner[1] + height / 2 - 0.015, text, fontsize=8.5, **MONO)


if __name__ == "__main__":
    main()
