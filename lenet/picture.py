"""Pictures of a training: its images, how the loss fell, what the model says."""

import math
import os

import matplotlib

matplotlib.use("Agg")  # no screen needed

import numpy as np
from matplotlib import pyplot
from matplotlib.gridspec import GridSpec

ROWS, COLUMNS = 5, 5
ACROSS = 10  # predictions in a row
RED = "#c02020"


def draw_run(path, images, titles, losses):
    """Write a PNG: up to 25 labelled images on the left, the loss of each step on the right.

    ``images`` is uint8, (n, height, width, channels) gray or RGB; ``titles``
    the text over each; ``losses`` one float a step. Raises OSError.
    """
    figure = pyplot.figure(figsize=(10, 4.6), dpi=110)
    left = GridSpec(ROWS, COLUMNS, figure=figure, left=0.01, right=0.43, top=0.86, bottom=0.02, wspace=0.08, hspace=0.28)
    for index, (image, title) in enumerate(zip(images[:ROWS * COLUMNS], titles)):
        _draw_image(figure.add_subplot(left[index]), image, title, "black")
    figure.text(0.22, 0.94, "images and labels in the dataset", ha="center", fontsize=12)
    right = GridSpec(1, 1, figure=figure, left=0.51, right=0.985, top=0.9, bottom=0.12)
    axes = figure.add_subplot(right[0])
    axes.plot(range(1, len(losses) + 1), losses, marker=".", markersize=4, linewidth=1.1, color="tab:blue")
    axes.set_yscale("log")
    axes.set_xlabel("step")
    figure.text(0.75, 0.94, "loss: {:.3g} at step 1, {:.2g} at step {}".format(losses[0], losses[-1], len(losses)),
                ha="center", fontsize=12)
    axes.grid(which="both", alpha=0.25)
    _save(figure, path)


def draw_losses(path, run):
    """Write a PNG: the loss of each step with a smoothed line, and the accuracy of each evaluation. Raises OSError."""
    losses, evaluations = np.array(run.losses), sorted(run.evaluations.items())
    figure, (upper, lower) = pyplot.subplots(2, 1, sharex=True, figsize=(9, 6.5), dpi=110,
                                             gridspec_kw={"height_ratios": [3, 2], "hspace": 0.08})
    steps = np.arange(1, len(losses) + 1)
    shown = np.unique(np.linspace(0, len(losses) - 1, 4000).astype(int))  # as many as a picture can show
    upper.plot(steps[shown], losses[shown], linewidth=0.7, color="tab:blue", alpha=0.35, label="training, each step")
    smooth, window = smoothed(losses)
    upper.plot(steps[shown], smooth[shown], linewidth=1.8, color="tab:blue",
               label="training, mean of {} steps".format(window))
    if evaluations:
        upper.plot([step for step, _ in evaluations], [loss for _, (loss, _) in evaluations], "o-", color=RED,
                   markersize=5, linewidth=1.2, label=_evaluated_on(run))
    if (losses > 0).all():
        upper.set_yscale("log")
    upper.set_ylabel("loss")
    upper.grid(which="both", alpha=0.2)
    upper.legend(loc="upper right")
    upper.set_title("{}: step {:,} of {:,}".format(os.path.basename(os.path.abspath(run.folder)), run.step, run.plan.steps))

    errors = [100 * accuracy for _, (_, accuracy) in evaluations]
    lower.plot([step for step, _ in evaluations], errors, "o-", color=RED, markersize=5, linewidth=1.2)
    for (step, _), percent in list(zip(evaluations, errors))[-12:]:
        lower.annotate("{:.2f}".format(percent), (step, percent), textcoords="offset points", xytext=(0, -14), ha="center",
                       fontsize=9, color=RED)
    if errors:
        span = max(max(errors) - min(errors), 0.05)
        lower.set_ylim(min(errors) - 0.35 * span, max(errors) + 0.15 * span)
    else:
        lower.text(0.5, 0.5, "not evaluated yet", transform=lower.transAxes, ha="center", color="gray")
        lower.set_yticks([])
    lower.set_ylabel("right, %")
    lower.set_xlabel("step ({:,} are an epoch)".format(math.ceil(run.plan.records / run.plan.batch_size)))
    lower.set_xlim(0, run.plan.steps * 1.03)
    lower.grid(alpha=0.2)
    _save(figure, path)


def smoothed(losses):
    """Each loss replaced by the mean of the last few, up to 100 or a tenth of all; and how many that is."""
    window = max(1, min(100, len(losses) // 10))
    sums = np.concatenate([[0.0], np.cumsum(losses)])
    ends = np.arange(1, len(losses) + 1)
    starts = np.maximum(ends - window, 0)
    return (sums[ends] - sums[starts]) / (ends - starts), window


def draw_predictions(path, spec, evaluation):
    """Write a PNG: the first images with what the model said of them, and its surest mistakes. Raises OSError."""
    samples, mistakes = evaluation.samples, evaluation.mistakes
    wrong = evaluation.count - evaluation.right
    groups = [("the first {} of {:,} images, and what the model says they are".format(len(samples), evaluation.count), samples),
              ("no mistake" if not wrong else "all {} mistakes".format(wrong) if wrong == len(mistakes) else
               "{} of the {:,} mistakes, those it was surest of".format(len(mistakes), wrong), mistakes)]
    heights = [0.45 + 1.12 * math.ceil(len(group) / ACROSS) for _, group in groups]  # inches
    figure = pyplot.figure(figsize=(ACROSS, sum(heights)), dpi=100)
    top = 1.0
    for (title, group), height in zip(groups, heights):
        share = height / sum(heights)
        figure.text(0.01, top - 0.25 / sum(heights), title, fontsize=13, va="center")
        grid = GridSpec(max(math.ceil(len(group) / ACROSS), 1), ACROSS, figure=figure, left=0.01, right=0.99,
                        top=top - 0.68 / sum(heights), bottom=top - share + 0.04 / sum(heights), wspace=0.1, hspace=0.42)
        for index, sample in enumerate(group):
            said = spec.name(sample.said)
            if sample.said == sample.label:
                text, color = said, "black"
            else:
                text = "{} ({:.0%}), is {}".format(_short(said), sample.probability, _short(spec.name(sample.label)))
                color = RED
            _draw_image(figure.add_subplot(grid[index]), sample.pixels, text, color)
        top -= share
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
    """Whole or not at all, as somebody may be looking."""
    try:
        figure.savefig(path + ".new", format="png")
        os.replace(path + ".new", path)
    finally:
        pyplot.close(figure)
