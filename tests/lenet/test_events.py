"""Event files for TensorBoard: what is in them, and that they never end a training."""

import csv
import struct
import sys

import pytest
from helpers import cases, losses, train

NO_RUN = ["--steps", 2, "--image_size", 12]


def events(path):
    """The events in a file, in order: each record is its length, a checksum, its bytes, a checksum."""
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    data, position, found = path.read_bytes(), 0, []
    while position < len(data):
        (length,) = struct.unpack_from("<Q", data, position)
        position += 12
        found.append(event_pb2.Event.FromString(data[position : position + length]))
        position += length + 4
    return found


TAGS = {  # by the columns of metrics.csv
    "loss": "loss/training",
    "learning_rate": "learning_rate",
    "eval_loss": "loss/evaluation",
    "eval_accuracy": "accuracy/evaluation",
}


def figures(found):
    """[(step, name, figure)] of events, without pictures."""
    return [
        (event.step, value.tag, value.simple_value)
        for event in found
        for value in event.summary.value
        if value.HasField("simple_value")
    ]


def event_files(run):
    return sorted(run.glob("events.out.tfevents.*"), key=lambda path: path.stat().st_mtime_ns)


def test_a_run_and_its_continuation_are_in_its_folder(converted, tmp_path):
    """All that metrics.csv has, once each; and the picture of predictions."""
    pytest.importorskip("tensorboardX")
    run = tmp_path / "my run"
    options = ["--batch_size", 10, "--image_size", 12, "--run_dir", run]
    first = train(converted, *options, "--steps", 3)
    assert f"to watch the training: tensorboard --logdir '{run}'\n" in first.err, first
    (one,) = event_files(run)
    picture = (run / "predictions.png").read_bytes()
    second = train(converted, *options, "--steps", 5, "--resume")
    assert losses(first) and losses(second)
    one, two = map(events, event_files(run))

    assert [found[0].file_version for found in (one, two)] == ["brain.Event:2"] * 2
    # Where the earlier files' events end, for TensorBoard.
    logs = [(found[1].session_log.status, found[1].step) for found in (one, two)]
    assert logs == [(1, 1), (1, 4)]
    expected = [
        (int(row["step"]), tag, float(row[name]))
        for row in csv.DictReader((run / "metrics.csv").open())
        for name, tag in TAGS.items()
        if row[name]
    ]
    found = figures(one) + figures(two)
    assert [each[:2] for each in found] == [each[:2] for each in expected]
    assert [each[2] for each in found] == pytest.approx([each[2] for each in expected])
    shown = [value for event in one for value in event.summary.value if value.HasField("image")]
    pictures = [(value.tag, value.image.encoded_image_string) for value in shown]
    assert pictures == [("predictions", picture)]
    assert (shown[0].image.width, shown[0].image.height) == struct.unpack(">II", picture[16:24])


def test_without_a_folder_nothing_is_written(converted, tmp_path):
    result = train(converted, *NO_RUN, cwd=tmp_path)
    assert losses(result) and "tensorboard" not in result.err and not list(tmp_path.iterdir())


BROKEN = {  # modules that stand for a tensorboardX that fails
    "import": {"event_file_writer": "raise TypeError('broken')"},
    "opening": {"event_file_writer": "def EventsWriter(*names): raise OSError('broken')"},
    "writing": {
        "event_file_writer": "class EventsWriter:\n"
        "    def __init__(self, *names): self.n = 0\n"
        "    def flush(self): pass\n"
        "    def write_event(self, event):\n"
        "        self.n += 1\n"
        "        if self.n > 3: raise OSError('broken')",
        "proto/event_pb2": "def Event(**fields): pass",
    },
}


@pytest.mark.parametrize("name", cases(["writing"], ["import", "opening"]))
def test_what_fails_is_one_warning(converted, tmp_path, monkeypatch, name):
    package = tmp_path / "lib" / "tensorboardX"
    (package / "proto").mkdir(parents=True)
    for module, text in {"__init__": "", "proto/__init__": "", **BROKEN[name]}.items():
        (package / f"{module}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path / "lib")
    for each in [each for each in sys.modules if each.partition(".")[0] == "tensorboardX"]:
        monkeypatch.delitem(sys.modules, each)
    try:
        result = train(converted, *NO_RUN, "--run_dir", tmp_path / "run")
    finally:
        for each in [each for each in sys.modules if each.partition(".")[0] == "tensorboardX"]:
            del sys.modules[each]
    assert len(losses(result)) == 2, result
    warning = "warning: cannot write events for TensorBoard: broken\n"
    assert result.err.count("TensorBoard") == result.err.count(warning) == 1, result
    files = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"best.npz", "last.npz", "loss.png", "predictions.png"} < files
