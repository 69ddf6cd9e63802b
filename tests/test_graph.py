"""The training step as a graph: the same losses as op by op, its checkpoints, and what OneFlow keeps silent about."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import (
    assert_one_error,
    call,
    convert,
    losses,
    run_script,
    snapshot,
    start_script,
    train,
)

# Everything random is on. At 12 x 12 pixels a step takes a fifth of the time.
OPTIONS = ["--batch_size", 10, "--steps", 30, "--image_size", 12, "--checkpoint_every", 10]
OPTIONS += ["--schedule", "cosine", "--warmup", 0.1, "--rotation", 10, "--label_smoothing", 0.05]
EAGER, GRAPH = ["--graph", "false"], ["--graph"]


@pytest.mark.parametrize("init", ["he", pytest.param("tutorial", marks=pytest.mark.slow)])
def test_a_graph_trains_as_op_by_op(converted, init):
    """With dropout and augmentation, which are drawn outside of both."""
    options = ["--steps", 30, "--image_size", 12, "--init", init, *OPTIONS[8:]]
    eager, graph = (np.array(losses(train(converted, *options, *mode))) for mode in (EAGER, GRAPH))
    assert len(eager) == 30 and eager[-5:].mean() < 0.5 * eager[0]
    # What is left is Adam's bias correction, which graphs compute in float32 and the eager
    # optimizer in float64.
    assert np.abs(eager - graph).max() < 1e-3
    assert (eager != graph).any()


# -- stopped and resumed ------------------------------------------------------------------


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    """A dataset of 40 images to train on and one of 10 to evaluate on: the options for both. Read only."""
    folder = tmp_path_factory.mktemp("datasets") / "dataset"
    result = convert("--val_fraction", 0.2, "--save_dir", folder)
    assert result.code == 0, result
    return ["--dataset_dir", folder, "--eval_dataset_dir", folder.with_name("dataset_val")]


def command(datasets, folder, *more):
    return ["--device", "cpu", *datasets, *OPTIONS, "--run_dir", folder, *more]


def train_run(datasets, folder, *more):
    return call("lenet_train", *command(datasets, folder, *more))


@pytest.fixture(scope="module")
def whole(datasets, tmp_path_factory):
    """A graph's run that was never stopped. Read only."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    result = train_run(datasets, folder, *GRAPH)
    assert result.code == 0 and "as a graph on 1 rank\n" in result.err, result
    return folder


@pytest.fixture(scope="module")
def stopped(datasets, tmp_path_factory):
    """A function that returns a run of a mode that was interrupted. Made once a mode; read only."""
    folders = {}

    def folder_of(mode):
        if str(mode) not in folders:
            folder = folders[str(mode)] = tmp_path_factory.mktemp("stopped") / "run"
            process = start_script(
                "lenet_train.py", *command(datasets, folder, "--fetch_every", 1, *mode)
            )
            for _ in range(13):
                assert process.stdout.readline()
            process.terminate()
            _, err = process.communicate(timeout=60)
            assert process.returncode == 130 and f"saved {folder} after step " in err, err
        return folders[str(mode)]

    return folder_of


def entries(path):
    with np.load(path) as file:
        return {name: array for name, array in file.items() if name != "checkpoint"}


def test_a_graph_is_resumed_bit_for_bit(datasets, whole, stopped, tmp_path):
    folder = Path(shutil.copytree(stopped(GRAPH), tmp_path / "run"))
    result = train_run(datasets, folder, *GRAPH, "--resume")
    assert result.code == 0 and "resumed after step 1" in result.err, result
    assert 0 < len(losses(result)) < 18
    assert (folder / "metrics.csv").read_text() == (whole / "metrics.csv").read_text()
    for name in ("last.npz", "best.npz"):
        found, expected = entries(folder / name), entries(whole / name)
        assert found.keys() == expected.keys() and len(found) == (25 if name[0] == "l" else 8)
        for entry, array in expected.items():
            assert found[entry].dtype == array.dtype and (found[entry] == array).all(), entry


@pytest.mark.parametrize("mode, other", [(GRAPH, EAGER), (EAGER, GRAPH)], ids=["graph", "eager"])
def test_a_run_is_not_resumed_in_the_other_mode(datasets, stopped, mode, other):
    folder = stopped(mode)
    before = snapshot(folder)
    texts = ("true", "false") if mode == GRAPH else ("false", "true")
    text = (
        "cannot resume {}: it was started with graph {}, not {}; --run_dir DIR starts another run"
    )
    result = train_run(datasets, folder, *other, "--resume")
    assert_one_error(result, text.format(folder, *texts))
    assert snapshot(folder) == before


STEP = "training/System-Train-TrainStep"


@pytest.mark.parametrize("name", ["conv1.bias", "training/model.conv1.bias-m", STEP])
def test_a_graphs_checkpoint_with_an_entry_missing(datasets, stopped, tmp_path, name):
    """OneFlow would take it without a word and train something else."""
    folder = Path(shutil.copytree(stopped(GRAPH), tmp_path / "run"))
    with np.load(folder / "last.npz") as file:
        found = dict(file)
    del found[name]
    np.savez(folder / "last.npz", **found)
    before = snapshot(folder)
    result = train_run(datasets, folder, *GRAPH, "--resume")
    assert_one_error(result, f"{name.removeprefix('training/')} is missing", started=True)
    assert snapshot(folder) == before


# -- learners in this process, on a LeNet for images of 8 x 8 pixels -----------------------


@pytest.fixture(scope="module")
def flow():
    from lenet.engine import flow

    return flow


def make(graph, scale=None):
    """A new learner; a graph on the CPU scales gradients too, where it is told to: ``scale`` is the first."""
    from lenet.config import TrainConfig
    from lenet.engine import flow
    from lenet.learner import make_learner
    from lenet.model import LeNet, ModelSpec

    spec = ModelSpec(
        channels=1, height=8, width=8, mean=[0.0], scale=[255.0], num_classes=3, class_names=None
    )
    model = LeNet(spec).init_weights("he", 0)
    learner = make_learner(model, TrainConfig(graph=graph), 100, amp=scale is not None)
    if scale:
        learner._graph.set_grad_scaler(flow.amp.GradScaler(init_scale=scale))
    return learner


@pytest.fixture
def batch(flow):
    images = np.random.default_rng(1).standard_normal((6, 1, 8, 8)).astype(np.float32)
    return flow.tensor(images), flow.arange(6, dtype=flow.int32) % 3, flow.ones(6, 512)


def weights_of(learner):
    return {name: weight.numpy().copy() for name, weight in learner.model.state_dict().items()}


def assert_same_arrays(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert (found[name] == array).all(), name


def test_gradients_that_are_there_do_not_stop_a_graph_from_training(batch):
    """OneFlow's trap: a graph whose parameters have a gradient, even zeros, when it is first called never trains."""
    learner = make(graph=True)
    model = learner.model
    model(batch[0]).sum().backward()
    assert model.conv1.weight.grad is not None
    before = weights_of(learner)
    first, *_, last = [learner.step(*batch).item() for _ in range(5)]
    assert last < first
    for name, weight in weights_of(learner).items():
        assert (weight != before[name]).any(), name
    assert learner.state_dict()["System-Train-TrainStep"].tolist() == [5]


def test_a_graph_that_does_not_train_is_found_out(flow, batch):
    learner = make(graph=True)
    for parameter in learner._copy.parameters():
        parameter.grad = flow.zeros_like(parameter)
    assert learner.step(*batch).item() == learner.step(*batch).item()  # it computes, and stays
    for look in (learner.state_dict, lambda: learner.model):
        with pytest.raises(RuntimeError, match="does not train"):
            look()


def test_both_learners_have_the_same_moments(batch):
    eager, graph = learners = make(graph=False), make(graph=True)
    for learner in learners:
        for _ in range(3):
            learner.step(*batch)
    eager, graph = eager.state_dict(), graph.state_dict()
    assert eager.pop("step") == graph.pop("System-Train-TrainStep")[0] == 3
    assert len(eager) == len(graph) == 16
    for name, array in eager.items():
        parameter, moment = name.split("/")
        other = graph[f"model.{parameter}-{'m' if moment == 'exp_avg' else 'v'}"]
        np.testing.assert_allclose(other, array, rtol=1e-3, atol=1e-7, err_msg=name)


@pytest.mark.parametrize("graph", [False, True])
def test_a_state_is_what_its_layout_says_and_goes_on(batch, graph):
    learner, other = make(graph), make(graph)
    for _ in range(3):
        learner.step(*batch)
    state, weights = learner.state_dict(), weights_of(learner)
    layout = {name: (array.shape, array.dtype) for name, array in state.items()}
    assert layout == learner.state_layout() == other.state_layout()
    other.load_state_dict(weights, state)
    assert_same_arrays(weights_of(other), weights)
    assert other.learning_rate == learner.learning_rate
    assert other.step(*batch).item() == learner.step(*batch).item()
    assert_same_arrays(weights_of(other), weights_of(learner))
    assert_same_arrays(other.state_dict(), learner.state_dict())


# -- mixed precision ----------------------------------------------------------------------


def test_a_step_that_overflows_is_skipped_and_the_scale_is_kept(batch):
    """Float32 overflows like float16, only later."""
    images, labels, mask = batch
    learner = make(graph=True, scale=2.0**127)
    before = weights_of(learner)
    scaler = "System-Train-DynamicLossScale-"  # followed by no name of a graph

    def counts():
        state = learner.state_dict()
        names = ("System-Train-TrainStep", scaler + "LossScale", scaler + "GoodStepCounter")
        return [state[name].item() for name in names]

    learner.step(100 * images, labels, mask)  # large gradients
    assert counts() == [0, 2.0**126, 0]
    assert_same_arrays(weights_of(learner), before)
    for _ in range(3):
        learner.step(images / 1000, labels, mask)
    assert counts() == [3, 2.0**126, 3]

    other = make(graph=True, scale=2.0**127)
    state = learner.state_dict()
    assert {name: (a.shape, a.dtype) for name, a in state.items()} == other.state_layout()
    other.load_state_dict(weights_of(learner), state)
    assert other.step(images, labels, mask).item() == learner.step(images, labels, mask).item()
    assert_same_arrays(other.state_dict(), learner.state_dict())
    assert_same_arrays(weights_of(other), weights_of(learner))


def test_amp_where_it_cannot_work(converted):
    assert_one_error(train(converted, "--amp"), "amp", "--graph")
    assert_one_error(train(converted, "--amp", "--graph"), "amp", "requires a GPU")
    options = ["--amp", "--graph", "--image_size", 12, "--steps", 2]
    arguments = ["lenet_train.py", "--dataset_dir", converted, *options]
    no_gpu = {"CUDA_VISIBLE_DEVICES": ""}
    assert_one_error(run_script(*arguments, "--device", "cuda", env=no_gpu), "device cuda")
    result = run_script(*arguments, env=no_gpu)
    assert len(losses(result)) == 2
    assert "warning: amp: mixed precision requires a GPU; using float32" in result.err, result
    assert "as a graph on 1 rank\n" in result.err  # and not in mixed precision
