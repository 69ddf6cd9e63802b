"""Several ranks, started by OneFlow's launcher: the same training as one, and what happens when one of them fails."""

import csv
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from conftest import PROJECT, Result, run_module, run_script
from lenet.checkpoint import open_checkpoint

MINUTE = 60
SCRIPT = PROJECT / "lenet_train.py"

# Every batch is the whole dataset, in whatever order, and nothing is random.
PLAIN = ["--batch_size", 50, "--shuffle_buffer", 0, "--steps", 12, "--dropout", 0, "--augment", "false", "--learning_rate", 0.0005]
RANDOM = ["--batch_size", 10, "--steps", 33, "--rotation", 10, "--schedule", "cosine", "--warmup", 0.1, "--checkpoint_every", 10]

# What the launched script does differently in some tests.
HASHES = """
train = lenet_train.train
def hashing(run, pipeline, step, model, *rest):
    train(run, pipeline, step, model, *rest)
    digest = hashlib.sha256(b"".join(weight.numpy().tobytes() for weight in model.state_dict().values()))
    os.write(2, "rank {} has {}\\n".format(lenet_train.ranks.RANK, digest.hexdigest()).encode())
lenet_train.train = hashing
"""
FAILS = """
train_step, taken = lenet_train.train_step, []
def failing(*arguments):
    taken.append(None)
    if len(taken) == 15 and lenet_train.ranks.RANK == int(os.environ["FAILS"]):
        raise ZeroDivisionError("this rank divides by zero")
    return train_step(*arguments)
lenet_train.train_step = failing
"""
OWN_SEED = "sys.argv += ['--seed', os.environ['RANK']]\n"


@pytest.fixture
def changed_script(tmp_path):
    """The trainer with a few lines of ours, as a script to launch."""
    def write(lines):
        path = tmp_path / "changed_train.py"
        path.write_text("import sys; sys.path.insert(0, {!r})\nfrom lenet.guard import guard\nguard(__name__)\n"
                        "import hashlib, os\nimport lenet_train\n{}\nlenet_train.run(lenet_train.main)\n".format(
                            str(PROJECT), lines))
        return path
    return write


def command(script, arguments, ranks=2):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [sys.executable, "-m", "oneflow.distributed.launch", "--nproc_per_node", str(ranks), "--master_port", str(port),
            str(script), "--device", "cpu"] + [str(argument) for argument in arguments]


ENVIRONMENT = {**{name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")},
               "OMP_NUM_THREADS": "1"}  # else the launcher says on stdout that it sets it


def launch(*arguments, script=SCRIPT):
    return Result(subprocess.run(command(script, arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8",
                                 env=ENVIRONMENT, timeout=2 * MINUTE))


@pytest.fixture(scope="module")
def dealt(tmp_path_factory):
    """The tutorial's images in so many parts: dealt(4). Read only."""
    made = {}

    def deal(parts):
        if parts not in made:
            made[parts] = tmp_path_factory.mktemp("dealt") / str(parts)
            assert run_script("img2ofrecord.py", "--part_num", parts, "--save_dir", made[parts]).code == 0
        return made[parts]
    return deal


def rows(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def losses(folder):
    return [float(row["loss"]) for row in rows(folder) if row["loss"]]


def evaluations(folder):
    return [(float(row["eval_loss"]), float(row["eval_accuracy"])) for row in rows(folder) if row["eval_loss"]]


def weights(folder):
    return {name: tensor.numpy() for name, tensor in open_checkpoint(str(folder / "last")).load("model").items()}


@pytest.mark.parametrize("graph", ["false", "true"])
def test_two_ranks_train_as_one_process_does(dealt, changed_script, tmp_path, graph):
    """The same losses, weights and evaluations, equal parameters on both ranks; rank 0 alone prints and saves.

    50 images are evaluated from three parts, 34 of them by one rank and 16 by
    the other, in batches of 25.
    """
    options = ["--dataset_dir", dealt(2), "--eval_dataset_dir", dealt(3), "--graph", graph, *PLAIN]
    two = launch(*options, "--run_dir", tmp_path / "two", script=changed_script(HASHES))
    assert two.code == 0, two
    one = run_script("lenet_train.py", "--device", "cpu", *options, "--run_dir", tmp_path / "one")
    assert one.code == 0, one

    assert len(two.out.splitlines()) == 12  # of losses, and nothing else
    assert "ranks: 2, each takes 25 images of a step's 50" in two.err
    assert two.err.count("device: cpu") == 1 and two.err.count("is \\ said") == 1
    hashes = [line.split()[-1] for line in two.err.splitlines() if line.startswith("rank ")]
    assert len(hashes) == 2 and hashes[0] == hashes[1], two
    saved = hashlib.sha256(b"".join(weight.tobytes() for weight in weights(tmp_path / "two").values())).hexdigest()
    assert saved == hashes[0]

    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), atol=1e-4)
    assert len(evaluations(tmp_path / "one")) == 12
    for (loss, accuracy), (loss_of_one, accuracy_of_one) in zip(evaluations(tmp_path / "two"), evaluations(tmp_path / "one")):
        assert accuracy == accuracy_of_one and loss == pytest.approx(loss_of_one, rel=1e-4)
    confusion = [[line for line in result.err.splitlines() if line[:1].isdigit() and " · " in line] for result in (two, one)]
    assert confusion[0] == confusion[1] and len(confusion[0]) == 10
    for name, weight in weights(tmp_path / "one").items():
        np.testing.assert_allclose(weights(tmp_path / "two")[name], weight, atol=1e-4)


def start(script, arguments, **environment):
    return subprocess.Popen(command(script, arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8",
                            env={**ENVIRONMENT, **environment}, start_new_session=True)


def processes_with(text):
    """{process id: (parent's, its rank or None)} of the processes that have ``text`` in their command line."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_text()
            environment = (path / "environ").read_bytes().split(b"\0")
            state, parent = (path / "stat").read_text().rpartition(")")[2].split()[:2]
        except OSError:  # it has just ended
            continue
        if text in words and state != "Z":
            rank = [int(entry[5:]) for entry in environment if entry.startswith(b"RANK=")]
            found[int(path.name)] = int(parent), rank[0] if rank and "distributed.launch" not in words else None
    return found


def trainers(text):
    """By rank, the process that trains: not the guard that is its parent."""
    found = processes_with(text)
    return {rank: process for process, (parent, rank) in found.items()
            if rank is not None and found.get(parent, (None, None))[1] == rank}


def wait_for_steps(process, steps):
    count = 0
    while count < steps:
        line = process.stdout.readline()
        assert line, process.stderr.read()
        count += line.startswith("[")


def test_killed_and_resumed_bit_for_bit(dealt, tmp_path):
    """Three trainings of the same: never stopped; one rank killed, and resumed by the command that the run prints."""
    options = ["--dataset_dir", dealt(4), "--graph", "true", *RANDOM]
    assert launch(*options, "--run_dir", tmp_path / "whole").code == 0
    process = start(SCRIPT, [*options, "--fetch_every", 1, "--run_dir", tmp_path / "killed"])
    wait_for_steps(process, 24)
    os.kill(trainers(str(tmp_path / "killed"))[1], signal.SIGKILL)
    process.communicate(timeout=MINUTE)
    assert process.returncode != 0
    going_on = (tmp_path / "killed" / "config.yaml").read_text().splitlines()[1].strip("# ").split()
    assert going_on[:6] == ["python", "-m", "oneflow.distributed.launch", "--nproc_per_node", "2", "lenet_train.py"]
    result = launch(*going_on[6:])
    assert result.code == 0 and "resumed: 20 steps" in result.err, result
    assert (tmp_path / "killed" / "metrics.csv").read_text() == (tmp_path / "whole" / "metrics.csv").read_text()
    for name, weight in weights(tmp_path / "whole").items():
        assert (weights(tmp_path / "killed")[name] == weight).all(), name
    about = json.loads((tmp_path / "killed" / "last" / "checkpoint.json").read_text())["about"]
    assert about["how"] == "as a graph on 2 ranks"

    # The model goes where one process goes: prediction.
    answer = run_module("lenet.predict", "--checkpoint", tmp_path / "killed" / "best",
                        PROJECT / "data" / "images" / "train_set" / "00000030_3.png")
    assert answer.code == 0 and "3 (" in answer.out, answer


FAILURES = {
    "killed": lambda rank, mark, launcher: os.kill(trainers(mark)[rank], signal.SIGKILL),
    "interrupted": lambda rank, mark, launcher: os.kill(trainers(mark)[rank], signal.SIGINT),
    "crashed": lambda rank, mark, launcher: os.kill(trainers(mark)[rank], signal.SIGSEGV),
    "raised": lambda rank, mark, launcher: None,  # the script itself does
}
SAID = {"killed": "rank {} ended by SIGKILL", "interrupted": "interrupted", "crashed": "rank {} ended by SIGSEGV",
        "raised": "ZeroDivisionError: this rank divides by zero"}


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("failure", list(FAILURES))
def test_a_rank_that_fails_takes_all_down(dealt, changed_script, tmp_path, rank, failure):
    mark = str(tmp_path / "run")
    process = start(changed_script(FAILS if failure == "raised" else ""),
                    ["--dataset_dir", dealt(4), "--batch_size", 10, "--steps", 10000, "--fetch_every", 1, "--run_dir", mark],
                    FAILS=str(rank))
    wait_for_steps(process, 12)
    begin = time.monotonic()
    FAILURES[failure](rank, mark, process)
    assert_all_gone(process, mark, begin, SAID[failure].format(rank))


def assert_all_gone(process, mark, begin, said):
    _, err = process.communicate(timeout=MINUTE)
    while processes_with(mark) and time.monotonic() - begin < MINUTE:
        time.sleep(0.1)
    assert time.monotonic() - begin < 15, err
    assert process.returncode != 0 and said in err, err


@pytest.mark.parametrize("end, said", [
    (lambda process: os.killpg(process.pid, signal.SIGINT), "rank 0 was interrupted"),  # Ctrl-C on a terminal
    (lambda process: process.kill(), "")], ids=["Ctrl-C", "SIGKILL"])
def test_no_rank_outlives_its_launcher(dealt, tmp_path, end, said):
    mark = str(tmp_path / "run")
    process = start(SCRIPT, ["--dataset_dir", dealt(4), "--batch_size", 10, "--steps", 10000, "--fetch_every", 1,
                             "--run_dir", mark])
    wait_for_steps(process, 3)
    begin = time.monotonic()
    end(process)
    assert_all_gone(process, mark, begin, said)


@pytest.mark.parametrize("parts, options, said", [
    (4, ["--batch_size", 25], "batch_size 25 cannot be shared by 2 ranks: take a multiple of 2"),
    (5, [], "has 5 parts, which 2 ranks cannot share evenly: convert with --part_num 6"),
    (1, [], "has 1 parts, which 2 ranks cannot share evenly: convert with --part_num 2"),
    (2, ["--eval_dataset_dir", 1], "has 1 parts, too few for 2 ranks: convert with --part_num 2")],
    ids=["batch", "parts", "one part", "parts to evaluate"])
def test_what_cannot_be_shared_is_one_line_before_the_start(dealt, tmp_path, parts, options, said):
    options = [dealt(option) if option == 1 else option for option in options]
    result = launch("--dataset_dir", dealt(parts), "--batch_size", 10, *options, "--run_dir", tmp_path / "run")
    assert result.code != 0, result
    errors = [line for line in result.err.splitlines() if "error: " in line]
    assert len(errors) == 1 and said in errors[0] and "rank 1" not in errors[0], result
    assert not (tmp_path / "run").exists()


def test_ranks_with_different_options_are_refused(dealt, changed_script):
    result = launch("--dataset_dir", dealt(2), "--batch_size", 10, script=changed_script(OWN_SEED))
    assert result.code != 0 and "the ranks must all have the same seed: here it is 0, and for rank 1 1" in result.err, result


def test_parts_are_dealt_as_oneflow_deals_them(dealt, tmp_path):
    """Each rank's labels, as its reader delivers them, against its share of the parts in the manifest."""
    script = tmp_path / "read.py"
    script.write_text("import sys; sys.path.insert(0, {!r})\n"
                      "from lenet_train import ImagePipeline, Spec, open_dataset, ranks\n"
                      "import json, os\n"
                      "folder = sys.argv[-1]; dataset = open_dataset(folder); records = ranks.share_records(dataset)[ranks.RANK]\n"
                      "labels = ImagePipeline(folder, dataset, Spec.of(dataset, None), 1)\n"
                      "found = [int(labels()[1].numpy()[0]) for _ in range(records + 1)]\n"
                      "os.write(1, (json.dumps([ranks.RANK, found]) + '\\n').encode())\n"
                      "ranks.wait_for_all()\n".format(str(PROJECT)))
    from ofrecord.record import read_record, split_records

    labels = [[read_record(record)[1] for record in split_records((dealt(3) / "part-{}".format(index)).read_bytes())]
              for index in range(3)]
    result = launch(dealt(3), script=script)
    assert result.code == 0, result
    found = dict(json.loads(line) for line in result.out.splitlines())
    shares = [labels[0] + labels[1], labels[2]]
    assert found == {rank: share + share[:1] for rank, share in enumerate(shares)}  # and around again


def test_a_port_in_use_is_one_line(dealt):
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        words = command(SCRIPT, ["--dataset_dir", dealt(2), "--batch_size", 10])
        words[words.index("--master_port") + 1] = str(taken.getsockname()[1])
        result = Result(subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8",
                                       env=ENVIRONMENT, timeout=2 * MINUTE))
    assert result.code != 0 and "(Address already in use): give the launcher another, --master_port" in result.err, result
