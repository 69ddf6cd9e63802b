"""The training step as a graph: the same losses as op by op, checkpoints for both, and what OneFlow would keep silent."""

import csv

import numpy as np
import pytest
from helpers import assert_one_error, losses, run_script, start_script, train

from lenet.checkpoint import open_checkpoint
from lenet.engine import flow
from lenet.model import LeNet, Spec
from lenet.step import EagerStep, GraphStep

RUN = [
    "--batch_size",
    10,
    "--steps",
    30,
    "--checkpoint_every",
    10,
    "--schedule",
    "cosine",
    "--warmup",
    0.1,
]


def weights(path):
    return {
        name: tensor.numpy() for name, tensor in open_checkpoint(str(path)).load("model").items()
    }


@pytest.mark.parametrize("start", ["tutorial", pytest.param("he", marks=pytest.mark.slow)])
def test_a_graph_trains_as_op_by_op(converted, start):
    options = [
        "--steps",
        50,
        "--dropout",
        0,
        "--augment",
        "false",
        "--weights",
        start,
        "--schedule",
        "cosine",
        "--warmup",
        0.1,
    ]
    eager, graph = (
        np.array(losses(train(converted, *options, *more))) for more in ([], ["--graph"])
    )
    assert len(eager) == 50 and eager[-1] < 0.3 * eager[0]
    # What is left is Adam's bias correction, which graphs compute in float32 and the eager optimizer in float64.
    assert np.abs(eager - graph).max() < 1e-4


@pytest.fixture(scope="module")
def runs(converted, tmp_path_factory):
    """A run of each mode that was never stopped. Read only."""
    folders = {}
    for graph in ("false", "true"):
        folders[graph] = tmp_path_factory.mktemp("modes") / graph
        assert train(converted, *RUN, "--graph", graph, "--run_dir", folders[graph]).code == 0
    return folders


def stopped(converted, folder, graph):
    """A run that was killed after its checkpoint of step 20."""
    process = start_script(
        "lenet_train.py",
        "--device",
        "cpu",
        "--dataset_dir",
        converted,
        *RUN,
        "--fetch_every",
        1,
        "--graph",
        graph,
        "--run_dir",
        folder,
    )
    for _ in range(24):
        assert process.stdout.readline()
    process.kill()
    process.communicate()
    return folder


@pytest.mark.slow
def test_a_graph_is_resumed_bit_for_bit(converted, runs, tmp_path):
    """With dropout and augmentation."""
    folder = stopped(converted, tmp_path / "run", "true")
    result = train(converted, *RUN, "--graph", "--run_dir", folder, "--resume")
    assert result.code == 0 and "resumed after step 20" in result.err, result
    assert (folder / "metrics.csv").read_text() == (runs["true"] / "metrics.csv").read_text()
    for name, weight in weights(runs["true"] / "last").items():
        assert (weights(folder / "last")[name] == weight).all(), name


@pytest.mark.slow
@pytest.mark.parametrize("first, then", [("false", "true"), ("true", "false")])
def test_a_run_goes_on_in_the_other_mode(converted, runs, tmp_path, first, then):
    """Weights, moments, count of steps and learning rate go over: up to rounding it ends as one that never changed."""
    folder = stopped(converted, tmp_path / "run", first)
    result = train(converted, *RUN, "--graph", then, "--run_dir", folder, "--resume")
    assert result.code == 0 and "resumed after step 20" in result.err, result
    assert (
        "the run was trained {} on 1 rank and is resumed {} on 1 rank".format(
            *("as a graph" if graph == "true" else "op by op" for graph in (first, then))
        )
        in result.err
    )
    found, expected = (
        [float(row["loss"]) for row in csv.DictReader((each / "metrics.csv").open()) if row["loss"]]
        for each in (folder, runs[first])
    )
    assert found[:20] == expected[:20]
    np.testing.assert_allclose(found, expected, atol=1e-3)
    for name, weight in weights(runs[first] / "last").items():
        np.testing.assert_allclose(weights(folder / "last")[name], weight, atol=1e-4)


# -- in this process ------------------------------------------------------------------


def made():
    spec = Spec(1, 8, 8, [0.0], [255.0], 3, None)
    model = LeNet(spec).init_weights("he", np.random.default_rng(0))
    return (model, *make_optimizer(model.parameters()))


def make_optimizer(parameters):
    optimizer = flow.optim.Adam(parameters, lr=1e-3)
    return optimizer, flow.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0, total_iters=0)


def batch():
    rng = np.random.default_rng(1)
    return (
        flow.tensor(rng.standard_normal((6, 1, 8, 8)).astype(np.float32)),
        flow.arange(6, dtype=flow.int32) % 3,
        flow.ones(6, 512),
    )


def test_gradients_that_are_there_do_not_stop_a_graph_from_training():
    """OneFlow's trap: a graph whose parameters have a gradient, zeros too, when it is first called never trains."""
    model, optimizer, schedule = made()
    model(batch()[0]).sum().backward()
    optimizer.zero_grad()
    assert model.conv1.weight.grad is not None
    before = {name: weight.numpy().copy() for name, weight in model.state_dict().items()}
    step = GraphStep(model, optimizer, make_optimizer)
    first = step(*batch()).item()
    for _ in range(4):
        last = step(*batch()).item()
    assert last < first
    step.pull()
    for name, weight in model.state_dict().items():
        assert (weight.numpy() != before[name]).any(), name
    assert optimizer.state_dict()["state"]["step"] == 5


def test_a_graph_that_does_not_train_is_found_out():
    model, optimizer, schedule = made()
    step = GraphStep(model, optimizer, make_optimizer)
    for parameter in step.graph._blocks["model"].to(flow.nn.Module).parameters():
        parameter.grad = flow.zeros_like(parameter)
    assert step(*batch()).item() == step(*batch()).item()  # it computes, and stays as it is
    with pytest.raises(RuntimeError, match="does not train"):
        step.pull()


def test_both_steps_leave_the_same_moments():
    states = []
    for kind in (EagerStep, lambda model, optimizer: GraphStep(model, optimizer, make_optimizer)):
        model, optimizer, schedule = made()
        step = kind(model, optimizer)
        for _ in range(3):
            step(*batch())
        step.pull()
        states.append(optimizer.state_dict()["state"])
    eager, graph = states
    assert eager["step"] == graph["step"] == 3
    for index in range(8):
        for moment in ("exp_avg", "exp_avg_sq"):
            np.testing.assert_allclose(
                graph[index][moment].numpy(), eager[index][moment].numpy(), rtol=1e-3, atol=1e-7
            )


# -- mixed precision ---------------------------------------------------------------------


def with_scaler(step, scale):
    """A GraphStep on the CPU scales gradients too, where it is told to; float32 overflows like float16, only later."""
    step.graph.set_grad_scaler(flow.amp.GradScaler(init_scale=scale))
    return step


def test_a_step_that_overflows_is_skipped_and_the_scale_is_kept(tmp_path):
    model, optimizer, schedule = made()
    images, labels, kept = batch()
    step = with_scaler(GraphStep(model, optimizer, make_optimizer), 2.0**127)
    step(100 * images, labels, kept)  # large gradients
    step.pull()
    assert (
        optimizer.state_dict()["state"]["step"] == 0 and step.scaler["LossScale"].item() == 2.0**126
    )
    for _ in range(3):
        step(images / 1000, labels, kept)
    step.pull()
    assert (
        optimizer.state_dict()["state"]["step"] == 3 and step.scaler["GoodStepCounter"].item() == 3
    )

    flow.save(
        {"scaler": step.scaler, "optimizer": optimizer.state_dict()}, str(tmp_path / "training")
    )
    saved = flow.load(str(tmp_path / "training"))
    again, optimizer_again, _ = made()
    again.load_state_dict(model.state_dict())
    optimizer_again.load_state_dict(saved["optimizer"])
    resumed = with_scaler(
        GraphStep(again, optimizer_again, make_optimizer, scaler=saved["scaler"]), 2.0**127
    )
    assert resumed(images, labels, kept).item() == step(images, labels, kept).item()
    resumed.pull()
    step.pull()
    assert resumed.scaler["LossScale"].item() == step.scaler["LossScale"].item() == 2.0**126
    for name, weight in model.state_dict().items():
        assert (again.state_dict()[name].numpy() == weight.numpy()).all(), name


def test_amp_where_it_cannot_work(converted):
    assert_one_error(train(converted, "--amp"), "amp", "--graph")
    assert_one_error(train(converted, "--amp", "--graph"), "amp", "requires a GPU")
    arguments = ["lenet_train.py", "--dataset_dir", converted, "--amp", "--graph", "--steps", 2]
    no_gpu = {"CUDA_VISIBLE_DEVICES": ""}
    assert_one_error(run_script(*arguments, "--device", "cuda", env=no_gpu), "device cuda")
    result = run_script(*arguments, env=no_gpu)
    assert len(losses(result)) == 2
    assert "warning: amp: mixed precision requires a GPU; using float32" in result.err, result
    assert "as a graph\n" in result.err  # and not in mixed precision
