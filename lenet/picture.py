"""A picture of a training run: some of its images, and how the loss fell."""

import matplotlib

matplotlib.use("Agg")  # no screen needed

from matplotlib import pyplot
from matplotlib.gridspec import GridSpec

ROWS, COLUMNS = 5, 5


def draw_run(path, images, titles, losses):
    """Write a PNG: up to 25 labelled images on the left, the loss of each step on the right.

    ``images`` is uint8, (n, height, width, channels) gray or RGB; ``titles``
    the text over each; ``losses`` one float a step. Raises OSError.
    """
    figure = pyplot.figure(figsize=(10, 4.6), dpi=110)
    left = GridSpec(ROWS, COLUMNS, figure=figure, left=0.01, right=0.43, top=0.86, bottom=0.02, wspace=0.08, hspace=0.28)
    for index, (image, title) in enumerate(zip(images[:ROWS * COLUMNS], titles)):
        axes = figure.add_subplot(left[index])
        axes.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=255)
        axes.set_title(title, fontsize=10, pad=2)
        axes.axis("off")
    figure.text(0.22, 0.94, "images and labels in the dataset", ha="center", fontsize=12)
    right = GridSpec(1, 1, figure=figure, left=0.51, right=0.985, top=0.9, bottom=0.12)
    axes = figure.add_subplot(right[0])
    axes.plot(range(1, len(losses) + 1), losses, marker=".", markersize=4, linewidth=1.1, color="tab:blue")
    axes.set_yscale("log")
    axes.set_xlabel("step")
    figure.text(0.75, 0.94, "loss: {:.3g} at step 1, {:.2g} at step {}".format(losses[0], losses[-1], len(losses)),
                ha="center", fontsize=12)
    axes.grid(which="both", alpha=0.25)
    try:
        figure.savefig(path)
    finally:
        pyplot.close(figure)
