"""The pictures of a training: what is written in them lies beside each other, and inside."""

import itertools

import numpy as np
import pytest
from helpers import cases
from matplotlib import text
from matplotlib.figure import Figure


@pytest.fixture
def figures(monkeypatch):
    """The figures that were drawn."""
    drawn, save = [], Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *args, **how: (drawn.append(self), save(self, *args, **how))
    )
    return drawn


def written(figure):
    """[(text, its box in pixels)] of all that is visible in a figure."""
    figure.draw_without_rendering()
    hidden = set()
    for axes in figure.axes:
        if not axes.axison:
            hidden |= {*axes.xaxis.findobj(text.Text), *axes.yaxis.findobj(text.Text)}
        for axis in (axes.xaxis, axes.yaxis):  # ticks outside of the limits are not drawn
            shown = {label for tick in axis._update_ticks() for label in tick.findobj(text.Text)}
            ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
            hidden |= {label for tick in ticks for label in tick.findobj(text.Text)} - shown
    return [
        (each.get_text(), each.get_window_extent())
        for each in figure.findobj(text.Text)
        if each.get_visible() and each.get_text().strip() and each not in hidden
    ]


def assert_legible(figure):
    """No text lies over another or leaves the picture."""
    boxes = written(figure)
    assert len(boxes) > 5
    whole = figure.bbox
    for name, box in boxes:
        assert (box.min >= whole.min - 1).all() and (box.max <= whole.max + 1).all(), name
    for (one, first), (other, second) in itertools.combinations(boxes, 2):
        shared = np.minimum(first.max, second.max) - np.maximum(first.min, second.min)
        assert (shared < 1).any(), f"{one!r} lies over {other!r}"
    return [name for name, _ in boxes]


ACCURACIES = {  # of each epoch
    "rising": lambda n: 1 - 0.5 * 0.8 ** np.arange(n),
    "falling": lambda n: 0.9 - 0.9 * np.arange(n) / max(n - 1, 1),
    "all right": lambda n: np.ones(n),
    "all wrong": lambda n: np.zeros(n),
    "nearly equal": lambda n: 0.99 + 0.0001 * (np.arange(n) % 3),
}
EPOCHS = cases([(name, 20) for name in ACCURACIES], [("rising", 1), ("nearly equal", 100)])


@pytest.mark.parametrize("name, epochs", EPOCHS)
def test_losses_and_accuracies(figures, converted, tmp_path, name, epochs):
    from lenet.config import TrainConfig
    from lenet.history import History
    from lenet.plan import Plan
    from lenet.plots import draw_losses
    from ofrecord.dataset.open_dataset import open_dataset

    config = TrainConfig(steps=None, epochs=epochs, eval_dataset_dir="x")
    plan = Plan(config, open_dataset(str(converted)))
    history = History(plan)
    for step, accuracy in enumerate(ACCURACIES[name](epochs)):
        history.add_losses([3 / (step + 1), 2 / (step + 1)], [0.001, 0.001])
        history.add_evaluation(2 / (step + 1), float(accuracy))
    draw_losses(str(tmp_path / "loss.png"), "a long name for a run, " * 5, plan, history)
    (figure,) = figures
    assert_legible(figure)
    low, high = figure.axes[-1].get_ylim()
    assert low >= 0 and 100 < high < 120
    labels = [each for each in figure.axes[-1].texts if each.get_text()]
    assert 1 <= len(labels) <= 10
    assert labels[0].get_text() == f"{100 * ACCURACIES[name](epochs)[-1]:.2f}"  # of the last
    frame = figure.axes[-1].get_window_extent()
    for label in labels:
        box = label.get_window_extent()
        assert frame.y0 <= box.y0 and box.y1 <= frame.y1, label.get_text()


DIGITS, WIDE = list("0123456789"), ["W" * 40, "M" * 40, "W" * 39]
LONG = ["coffee cup", "coffee can", "a class with a very long name indeed", "$5 to $10", "红"]


@pytest.mark.parametrize("names, wrong", [(DIGITS, 39), (LONG, 39), (WIDE, 39), (DIGITS, 0)])
def test_predictions(figures, tmp_path, names, wrong):
    from lenet.evaluation import Evaluation
    from lenet.plots import draw_predictions
    from lenet.spec import ModelSpec

    rng, evaluation = np.random.default_rng(0), Evaluation()
    labels = rng.integers(0, len(names), 60)
    logits = 9.0 * np.eye(len(names))[labels]
    logits[:wrong] = np.roll(logits[:wrong], 1, axis=1)
    pixels = rng.integers(0, 256, (60, 28, 28, 1), dtype=np.uint8)
    evaluation.add(pixels, labels, logits)
    size = {"channels": 1, "height": 28, "width": 28, "mean": [0.0], "scale": [255.0]}
    spec = ModelSpec(**size, num_classes=len(names), class_names=names)
    draw_predictions(str(tmp_path / "predictions.png"), spec, evaluation)
    (figure,) = figures
    texts = assert_legible(figure)
    assert len(texts) == 2 + 40 + wrong
