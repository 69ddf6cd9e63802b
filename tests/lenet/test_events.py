"""Event files for TensorBoard: what is in them, and that they never end a training."""

import csv
import struct

import pytest
from helpers import losses, run_script, train
from runs import files_of

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


def event_files(run):
    return sorted(run.glob("events.out.tfevents.*"), key=lambda path: path.stat().st_mtime_ns)


def test_a_run_and_its_continuation_are_in_its_folder(converted, tmp_path):
    """All that metrics.csv has, once each; and the picture of predictions."""
    pytest.importorskip("tensorboardX")
    run = tmp_path / "my run"
    options = ["--batch_size", 10, "--image_size", 12, "--run_dir", run]
    first = train(converted, *options, "--steps", 3)
    assert f"to watch the training: tensorboard --logdir '{run}'\n" in first.err, first
    picture = (run / "predictions.png").read_bytes()
    assert first.code == train(converted, *options, "--steps", 5, "--resume").code == 0
    one, two = map(events, event_files(run))

    assert [found[0].file_version for found in (one, two)] == ["brain.Event:2"] * 2
    # Where the earlier files' events end, for TensorBoard.
    logs = [(found[1].session_log.status, found[1].step) for found in (one, two)]
    assert logs == [(1, 1), (1, 4)]
    expected = {
        (int(row["step"]), tag): float(row[name])
        for row in csv.DictReader((run / "metrics.csv").open())
        for name, tag in TAGS.items()
        if row[name]
    }
    values = [(event.step, value) for event in one + two for value in event.summary.value]
    figures = [(step, value) for step, value in values if value.HasField("simple_value")]
    assert [(step, value.tag) for step, value in figures] == [*expected]
    assert [value.simple_value for _, value in figures] == pytest.approx([*expected.values()])
    image = next(value.image for _, value in values if value.tag == "predictions")
    assert image.encoded_image_string == picture
    assert (image.width, image.height) == struct.unpack(">II", picture[16:24])


def test_without_a_folder_nothing_is_written(converted, tmp_path):
    result = train(converted, *NO_RUN, cwd=tmp_path)
    assert losses(result) and "tensorboard" not in result.err and not list(tmp_path.iterdir())


BROKEN = """
class EventsWriter:
    def __init__(self, *names): self.n = 0
    def flush(self): pass
    def write_event(self, event):
        self.n += 1
        if self.n > 3: raise OSError("broken")
"""


def test_what_fails_is_one_warning(converted, tmp_path):
    """With a module in the place of tensorboardX that cannot write any more after three events."""
    package, run = tmp_path / "lib" / "tensorboardX", tmp_path / "run"
    (package / "proto").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "event_file_writer.py").write_text(BROKEN)
    (package / "proto" / "event_pb2.py").write_text("def Event(**fields): pass")
    options = ["--device", "cpu", "--dataset_dir", converted, *NO_RUN, "--run_dir", run]
    result = run_script("lenet_train.py", *options, env={"PYTHONPATH": str(tmp_path / "lib")})
    assert len(losses(result)) == 2, result
    warning = "warning: cannot write events for TensorBoard: broken\n"
    assert result.err.count("TensorBoard") == result.err.count(warning) == 1, result
    assert {"best.npz", "last.npz", "loss.png", "predictions.png"} < set(files_of(run))
