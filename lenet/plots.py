"""Pictures of a training: the loss of each step, and the model's predictions."""

import numpy as np
from matplotlib.figure import Figure

from ofrecord.commands.sheet import Tile, draw_groups, save_figure, text_style
from runtime.cli import count

from .evaluation import Evaluation, Prediction
from .history import History
from .plan import Plan
from .spec import ModelSpec

ACROSS = 10  # predictions in a row
MAX_POINTS = 4000  # more cannot be distinguished in the picture
MAX_FIGURES = 10  # accuracies that are written beside their points
MAX_CAPTION = 16  # characters in a line above a picture
BLUE, RED = "tab:blue", "#c02020"


def draw_losses(path: str, title: str, plan: Plan, history: History) -> None:
    """Write a PNG: the loss of each step, with its moving mean, and each epoch's evaluation.

    Raises OSError.
    """
    evaluations = history.evaluations
    steps = list(evaluations)
    losses = [loss for loss, _ in evaluations.values()]
    percents = [100 * accuracy for _, accuracy in evaluations.values()]
    each_epoch = plan.evaluates_each_epoch
    figure = Figure((9, 5), dpi=110, layout="constrained")
    axes = figure.subplots(1 + each_epoch, sharex=True, squeeze=False)
    upper, lower = axes[0, 0], axes[-1, 0]
    upper.set_title(f"{title[:60]}: step {history.step:,} of {plan.num_steps:,}", **text_style())
    _plot_losses(upper, history.losses())
    if each_epoch:
        upper.plot(steps, losses, "o-", color=RED, markersize=5, label="evaluation")
        _plot_accuracies(lower, steps, percents)
    upper.legend(loc="upper right")
    length = plan.num_records / plan.batch_size
    digits = ",.0f" if length > 99 else ".3g"
    lower.set_xlabel(f"step (1 epoch: {length:{digits}} steps)")
    lower.set_xlim(0, plan.num_steps * 1.03)
    save_figure(figure, path)


def _plot_losses(axes, losses):
    shown = np.unique(np.linspace(0, len(losses) - 1, MAX_POINTS).astype(int))
    smooth, window = smoothed(losses)
    axes.plot(shown + 1, losses[shown], lw=0.7, color=BLUE, alpha=0.35, label="training, each step")
    label = f"training, mean of {count(window, 'step')}"
    axes.plot(shown + 1, smooth[shown], lw=1.8, color=BLUE, label=label)
    if (losses > 0).all():
        axes.set_yscale("log")
    axes.set_ylabel("loss")
    axes.grid(which="both", alpha=0.2)


def _plot_accuracies(axes, steps, percents):
    axes.plot(steps, percents, "o-", color=RED, markersize=5)
    lowest = min(percents, default=0)
    room = max(100 - lowest, 1)
    bottom, top = max(lowest - 0.35 * room, 0), 100 + 0.1 * room
    shown = slice(None, None, -(-len(steps) // MAX_FIGURES or 1))
    for step, percent in zip(steps[::-1][shown], percents[::-1][shown], strict=True):
        down = percent > bottom + 0.3 * (top - bottom)  # above a point that is close to the axis
        style = {"ha": "center", "va": "top" if down else "bottom", "fontsize": 9, "color": RED}
        place = {"textcoords": "offset points", "xytext": (0, -5 if down else 5)}
        axes.annotate(f"{percent:.2f}", (step, percent), **place, **style)
    axes.set_ylim(bottom, top)
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.set_ylabel("accuracy, %")
    axes.grid(alpha=0.2)


def smoothed(losses: np.ndarray) -> tuple[np.ndarray, int]:
    """Return the moving mean of the losses and its window, a tenth of the steps, at most 100."""
    window = max(1, min(100, len(losses) // 10))
    sums = np.concatenate([[0.0], np.cumsum(losses)])
    ends = np.arange(1, len(losses) + 1)
    starts = np.maximum(ends - window, 0)
    return (sums[ends] - sums[starts]) / (ends - starts), window


def draw_predictions(path: str, spec: ModelSpec, evaluation: Evaluation) -> None:
    """Write a PNG: the first images with their predictions, and the most confident mistakes.

    Raises OSError.
    """
    wrong, images = len(evaluation.mistakes), count(evaluation.num_images, "image")
    title = (
        f"{count(wrong, 'mistake')}: label → predicted (probability)" if wrong else "no mistakes"
    )
    if wrong > len(evaluation.worst):
        title = f"the {len(evaluation.worst)} most confident of {title}"
    first = f"predictions for the first {len(evaluation.samples)} of {images}"
    groups = [(first, evaluation.samples), (title, evaluation.worst)]
    draw_groups(path, [(text, [_tile(*each, spec) for each in of]) for text, of in groups], ACROSS)


def _tile(prediction: Prediction, pixels: np.ndarray, spec: ModelSpec) -> Tile:
    _, label, predicted, probability = prediction
    if label == predicted:
        return Tile(spec.class_name(label), pixels)
    caption = f"{spec.class_name(label)} → {spec.class_name(predicted)} ({probability:.0%})"
    if len(caption) > MAX_CAPTION:
        caption = caption.replace("→ ", "→\n")
    return Tile(caption, pixels, RED)
