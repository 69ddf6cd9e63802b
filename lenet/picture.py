"""Pictures of a training: its images, the loss of each step, the model's predictions."""

import math
import os
from collections.abc import Sequence

import matplotlib

matplotlib.use("Agg")  # no screen needed

import numpy as np
from matplotlib import pyplot
from matplotlib.gridspec import GridSpec

from runtime.cli import count

from .evaluation import Evaluation
from .model import Spec
from .run import Run

ROWS, COLUMNS = 5, 5
ACROSS = 10  # predictions in a row
RED = "#c02020"


def draw_run(path: str, images: np.ndarray, titles: Sequence[str], losses: Sequence[float]) -> None:
    """Write a PNG: up to 25 labelled images on the left, the loss of each step on the right.

    ``images`` is uint8 (n, height, width, channels), gray or RGB; ``titles``
    are the texts above them; ``losses`` holds one float per step. Raises OSError.
    """
    figure = pyplot.figure(figsize=(10, 4.6), dpi=110)
    left = GridSpec(
        ROWS,
        COLUMNS,
        figure=figure,
        left=0.01,
        right=0.43,
        top=0.86,
        bottom=0.02,
        wspace=0.08,
        hspace=0.28,
    )
    shown = ROWS * COLUMNS
    for index, (image, title) in enumerate(zip(images[:shown], titles[:shown], strict=True)):
        _draw_image(figure.add_subplot(left[index]), image, title, "black")
    figure.text(0.22, 0.94, "images and labels in the dataset", ha="center", fontsize=12)
    right = GridSpec(1, 1, figure=figure, left=0.51, right=0.985, top=0.9, bottom=0.12)
    axes = figure.add_subplot(right[0])
    axes.plot(
        range(1, len(losses) + 1), losses, marker=".", markersize=4, linewidth=1.1, color="tab:blue"
    )
    axes.set_yscale("log")
    axes.set_xlabel("step")
    title = f"loss: {losses[0]:.3g} at step 1, {losses[-1]:.2g} at step {len(losses)}"
    figure.text(0.75, 0.94, title, ha="center", fontsize=12)
    axes.grid(which="both", alpha=0.25)
    _save(figure, path)


def draw_losses(path: str, run: Run) -> None:
    """Write a PNG: the loss of each step, with its moving mean, and every evaluation's accuracy.

    Raises OSError.
    """
    losses, evaluations = np.array(run.losses), sorted(run.evaluations.items())
    figure, (upper, lower) = pyplot.subplots(
        2,
        1,
        sharex=True,
        figsize=(9, 6.5),
        dpi=110,
        gridspec_kw={"height_ratios": [3, 2], "hspace": 0.08},
    )
    steps = np.arange(1, len(losses) + 1)
    # At most 4,000 steps: more cannot be distinguished in the picture.
    shown = np.unique(np.linspace(0, len(losses) - 1, 4000).astype(int))
    upper.plot(
        steps[shown],
        losses[shown],
        linewidth=0.7,
        color="tab:blue",
        alpha=0.35,
        label="training, each step",
    )
    smooth, window = smoothed(losses)
    upper.plot(
        steps[shown],
        smooth[shown],
        linewidth=1.8,
        color="tab:blue",
        label=f"training, mean of {count(window, 'step')}",
    )
    if evaluations:
        upper.plot(
            [step for step, _ in evaluations],
            [loss for _, (loss, _) in evaluations],
            "o-",
            color=RED,
            markersize=5,
            linewidth=1.2,
            label=_evaluated_on(run),
        )
    if (losses > 0).all():
        upper.set_yscale("log")
    upper.set_ylabel("loss")
    upper.grid(which="both", alpha=0.2)
    upper.legend(loc="upper right")
    name = os.path.basename(os.path.abspath(run.folder))
    upper.set_title(f"{name}: step {run.step:,} of {run.plan.steps:,}")

    percents = [100 * accuracy for _, (_, accuracy) in evaluations]
    lower.plot(
        [step for step, _ in evaluations], percents, "o-", color=RED, markersize=5, linewidth=1.2
    )
    for (step, _), percent in list(zip(evaluations, percents, strict=True))[-12:]:
        lower.annotate(
            f"{percent:.2f}",
            (step, percent),
            textcoords="offset points",
            xytext=(0, -14),
            ha="center",
            fontsize=9,
            color=RED,
        )
    if percents:
        span = max(max(percents) - min(percents), 0.05)
        lower.set_ylim(min(percents) - 0.35 * span, max(percents) + 0.15 * span)
    else:
        lower.text(
            0.5, 0.5, "not evaluated yet", transform=lower.transAxes, ha="center", color="gray"
        )
        lower.set_yticks([])
    lower.set_ylabel("accuracy, %")
    epoch_steps = math.ceil(run.plan.num_records / run.plan.batch_size)
    lower.set_xlabel(f"step (1 epoch: {count(epoch_steps, 'step')})")
    lower.set_xlim(0, run.plan.steps * 1.03)
    lower.grid(alpha=0.2)
    _save(figure, path)


def smoothed(losses: np.ndarray) -> tuple[np.ndarray, int]:
    """Return the moving mean of the losses and its window, a tenth of the steps, at most 100."""
    window = max(1, min(100, len(losses) // 10))
    sums = np.concatenate([[0.0], np.cumsum(losses)])
    ends = np.arange(1, len(losses) + 1)
    starts = np.maximum(ends - window, 0)
    return (sums[ends] - sums[starts]) / (ends - starts), window


def draw_predictions(path: str, spec: Spec, evaluation: Evaluation) -> None:
    """Write a PNG: the first images with their predictions, and the most confident mistakes.

    Raises OSError.
    """
    samples, mistakes = evaluation.samples, evaluation.mistakes
    images = count(evaluation.num_images, "image")
    wrong = evaluation.num_images - evaluation.num_correct
    if not wrong:
        mistakes_title = "no mistakes"
    elif wrong == len(mistakes):
        mistakes_title = f"{count(wrong, 'mistake')}: label → predicted (probability)"
    else:
        mistakes_title = (
            f"the {len(mistakes)} most confident of {wrong:,} mistakes: "
            "label → predicted (probability)"
        )
    groups = [
        (f"predictions for the first {len(samples)} of {images}", samples),
        (mistakes_title, mistakes),
    ]
    heights = [0.45 + 1.12 * math.ceil(len(group) / ACROSS) for _, group in groups]  # inches
    figure = pyplot.figure(figsize=(ACROSS, sum(heights)), dpi=100)
    top = 1.0
    for (title, group), height in zip(groups, heights, strict=True):
        fraction = height / sum(heights)
        figure.text(0.01, top - 0.25 / sum(heights), title, fontsize=13, va="center")
        grid = GridSpec(
            max(math.ceil(len(group) / ACROSS), 1),
            ACROSS,
            figure=figure,
            left=0.01,
            right=0.99,
            top=top - 0.68 / sum(heights),
            bottom=top - fraction + 0.04 / sum(heights),
            wspace=0.1,
            hspace=0.42,
        )
        for index, sample in enumerate(group):
            label, predicted = spec.class_name(sample.label), spec.class_name(sample.predicted)
            if sample.predicted == sample.label:
                text, color = predicted, "black"
            else:
                text = f"{_short(label)} → {_short(predicted)} ({sample.probability:.0%})"
                color = RED
            _draw_image(figure.add_subplot(grid[index]), sample.pixels, text, color)
        top -= fraction
    _save(figure, path)


def _draw_image(axes, image, title, color):
    axes.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=255)
    axes.set_title(title, fontsize=9 if len(title) > 3 else 10, pad=2, color=color)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(color != "black")
        spine.set_color(color)
        spine.set_linewidth(2)


def _evaluated_on(run):
    return "evaluation" if run.plan.each_epoch else "training images, after training"


def _short(name):
    return name if len(name) <= 8 else name[:7] + "…"


def _save(figure, path):
    """Write the file atomically, as a viewer may have it open."""
    try:
        figure.savefig(path + ".new", format="png")
        os.replace(path + ".new", path)
    finally:
        pyplot.close(figure)
