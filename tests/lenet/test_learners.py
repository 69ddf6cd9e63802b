"""The training step as a graph: the same losses as op by op, its state, and what OneFlow keeps silent about."""

import numpy as np
from damage import without
from helpers import assert_one_error, losses, run_script, snapshot, train
from runs import OPTIONS, resume

# -- trainings ----------------------------------------------------------------------------


def test_a_graph_trains_as_op_by_op(converted):
    """With dropout, augmentation and label smoothing."""
    options = ["--steps", 30, "--image_size", 12, "--init", "he", "--label_smoothing", 0.05]
    options += ["--schedule", "cosine", "--warmup", 0.1, "--rotation", 10]
    eager, graph = (
        np.array(losses(train(converted, *options, "--graph", mode))) for mode in ("false", "true")
    )
    assert len(eager) == 30 and eager[-5:].mean() < 0.5 * eager[0]
    # What is left is Adam's bias correction, which graphs compute in float32 and the eager
    # optimizer in float64.
    assert np.abs(eager - graph).max() < 1e-3
    assert (eager != graph).any()


def test_graphs_that_are_not_resumed(converted, tmp_path):
    """Op by op; and with an entry missing, which OneFlow would take without a word."""
    run, options = tmp_path / "run", ["--steps", 2, "--schedule", "constant", "--warmup", 0]
    result = train(converted, *OPTIONS, *options, "--graph", "--run_dir", run)
    assert result.code == 0 and "as a graph on 1 rank\n" in result.err, result
    content = (run / "last.npz").read_bytes()
    assert_one_error(resume(run, "--graph", "false"), "graph true, not false", started=True)
    for name in ("model.conv1.bias-m", "System-Train-TrainStep"):
        without(f"training/{name}")(run / "last.npz")
        before = snapshot(run)
        assert_one_error(resume(run, "--steps", 3), f"{name} is missing", started=True)
        assert snapshot(run) == before
        (run / "last.npz").write_bytes(content)


# -- learners in this process, on a LeNet for images of 8 x 8 pixels: inner names -----------


def make(scale):
    """A new graph that scales gradients on the CPU too, first by so much."""
    from lenet.config import TrainConfig
    from lenet.engine import flow
    from lenet.learner import make_learner
    from lenet.spec import ModelSpec, init_weights
    from lenet_train import LeNet

    size = {"channels": 1, "height": 8, "width": 8, "mean": [0.0], "scale": [255.0]}
    model = LeNet(ModelSpec(**size, num_classes=3, class_names=None))
    init_weights(model, "he", 0)
    learner = make_learner(model, TrainConfig(graph=True), 100)
    learner._amp = True
    learner._graph.set_grad_scaler(flow.amp.GradScaler(init_scale=scale))
    return learner


def batch(factor):
    from lenet.engine import flow

    images = np.random.default_rng(1).standard_normal((6, 1, 8, 8)).astype(np.float32)
    return flow.tensor(factor * images), flow.arange(6, dtype=flow.int32) % 3, flow.ones(6, 512)


def test_a_step_that_overflows_is_skipped_and_the_scale_is_kept():
    """Mixed precision; float32 overflows like float16, only later."""

    def counts(learner):
        state, scaler = learner.state_dict(), "System-Train-DynamicLossScale-"  # no graph's name
        names = ("System-Train-TrainStep", scaler + "LossScale", scaler + "GoodStepCounter")
        return [state[name].item() for name in names]

    learner, other = make(2.0**127), make(2.0**127)
    learner.step(*batch(100))  # large gradients
    assert counts(learner) == [0, 2.0**126, 0]
    other.load_state_dict(learner.state_dict())
    for _ in range(4):  # as its weights are those of the start, too
        assert other.step(*batch(0.001)).item() == learner.step(*batch(0.001)).item()
    assert counts(other) == counts(learner) == [4, 2.0**126, 4]


def test_amp_without_a_gpu(converted):
    options = ["--dataset_dir", converted, "--amp", "--graph", "--image_size", 12, "--steps", 2]
    result = run_script("lenet_train.py", *options, env={"CUDA_VISIBLE_DEVICES": ""})
    assert len(losses(result)) == 2
    assert "warning: amp: mixed precision requires a GPU; using float32" in result.err, result
    assert "as a graph on 1 rank\n" in result.err  # and not in mixed precision
