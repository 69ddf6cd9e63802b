"""Several ranks, started by OneFlow's launcher: the training of one process, and what happens when one fails."""

import os
import re
import signal
import socket

import numpy as np
import pytest
from helpers import PROJECT, call, cases, convert, losses, read_manifest, snapshot
from runs import EACH_LOSS, OPTIONS, entries, wait_for_losses

slow = pytest.mark.slow  # of tests that have no quick case

# Every batch is the whole dataset, in whatever order, and nothing is random.
PLAIN = "--device cpu --batch_size 50 --shuffle_buffer 0 --steps 6 --image_size 14".split()
PLAIN += "--dropout 0 --augment false --learning_rate 0.0005".split()
ENDLESS = [*OPTIONS, "--steps", 10**6, *EACH_LOSS, "--schedule", "constant", "--warmup", 0]

# What the launched script does differently in some tests.
RAISES = "if RANK == 1:\n    evaluate = lambda *arguments: 1 / 0\n"
OWN_SEED = "import sys; sys.argv += ['--seed', str(RANK)]\n"
HIDES_CHECKPOINT = """
import os

if RANK:
    opened = os.path.lexists
    os.path.lexists = lambda path: ".npz" not in str(path) and opened(path)
"""


def changed(folder, lines):
    """A copy of the script that has more lines before its last ones."""
    body, start, end = (PROJECT / "lenet_train.py").read_text().rpartition("if __name__ ==")
    (folder / "changed_train.py").write_text(f"{body}{lines}\n\n{start}{end}")
    return folder / "changed_train.py"


@pytest.fixture(scope="module")
def dealt(tmp_path_factory):
    """The tutorial's images in so many parts: dealt(4). Read only."""
    made = {}

    def deal(parts):
        if parts not in made:
            made[parts] = tmp_path_factory.mktemp("dealt") / str(parts)
            assert convert("--part_num", parts, "--save_dir", made[parts]).code == 0
        return made[parts]

    return deal


def error_line(result):
    (line,) = (line for line in result.err.splitlines() if "error: " in line)
    return line


# -- the same training ------------------------------------------------------------------

EPOCH = re.compile(r"epoch \d+/6: accuracy (\d+)/50 .*?\bloss ([\d.]+),", re.M)


@pytest.mark.parametrize("mode", cases([[]], [["--graph"]]), ids=str)
def test_two_ranks_train_as_one_process_does(trainer, dealt, tmp_path, mode):
    """The same losses, weights and evaluations; rank 0 alone prints; one process can go on.

    50 images are evaluated from three parts, 34 of them by one rank and 16 by
    the other, in batches of 25.
    """
    options = ["--dataset_dir", dealt(2), "--eval_dataset_dir", dealt(3), *PLAIN, *mode]
    one, two = (trainer.run(*options, "--run_dir", tmp_path / str(n), ranks=n) for n in (1, 2))
    assert len(losses(two)) == 6  # and nothing else on stdout
    np.testing.assert_allclose(losses(two), losses(one), atol=1e-4)
    assert " on 2 ranks\n" in two.err and two.err.count("device: cpu") == 1, two
    evaluations = [np.array(EPOCH.findall(result.err), float) for result in (two, one)]
    assert evaluations[0].shape == (6, 2), two
    assert (evaluations[0][:, 0] == evaluations[1][:, 0]).all()  # how many are right
    np.testing.assert_allclose(*evaluations, rtol=1e-4, atol=1.1e-4)  # printed with four decimals
    classes = [re.findall(r"^  \d: .*", result.err, re.M) for result in (two, one)]
    assert classes[0] == classes[1] and len(classes[0]) == 10
    if mode:  # goes on with another number of ranks
        words = [["--run_dir", tmp_path / name, "--resume", "--steps", 9] for name in "12"]
        more = [call("lenet_train", *each) for each in words]
        assert "resumed after step 6, of a training on 2 ranks\n" in more[1].err, more[1]
        np.testing.assert_allclose(*map(losses, more), atol=1e-4)
    of_one, of_two = (entries(tmp_path / name / "last.npz") for name in "12")
    for name in ("conv1.weight", "dense1.weight", "dense2.bias"):
        np.testing.assert_allclose(of_two[name], of_one[name], atol=1e-4, err_msg=name)


# -- one falls, all fall ----------------------------------------------------------------


QUICK = [  # the rank that gets a signal, None for the launcher; the signal
    ("all", signal.SIGINT, ()),
    (1, signal.SIGKILL, ("--graph",)),
    (None, signal.SIGKILL, ()),
]
SLOW = [(0, signal.SIGKILL, ("--graph",)), (None, signal.SIGTERM, ("--graph",))]


@pytest.mark.parametrize("rank, number, mode", cases(QUICK, SLOW))
def test_all_ranks_end_together_and_can_go_on(trainer, datasets, tmp_path, rank, number, mode):
    """However one ends; the command that resumes stood at the start, for as many ranks."""
    options = [*datasets, *ENDLESS, *mode, "--run_dir", tmp_path / "run"]
    process = trainer.start(*options, ranks=2)
    wait_for_losses(process, 12)
    if rank == "all":
        os.killpg(process.pid, number)
    else:
        os.kill(trainer.process_of(rank), number)
    result = trainer.assert_all_end(process, "to resume after a stop: python -m oneflow.")
    line = re.search(r"to resume after a stop: (.*)", result.err)[1]
    assert re.fullmatch(
        "python -m oneflow.distributed.launch --nproc_per_node 2 --master_port [0-9]+ "
        f"{PROJECT}/lenet_train.py --run_dir {tmp_path}/run --resume",
        line,
    )
    if rank == "all":
        process = trainer.start("--run_dir", tmp_path / "run", "--resume", ranks=2)
        wait_for_losses(process, 1)
        os.killpg(process.pid, signal.SIGTERM)
        assert "\nresumed after step " in trainer.assert_all_end(process).err


def test_a_rank_that_raises_takes_all_down(trainer, datasets, tmp_path):
    script, options = changed(tmp_path, RAISES), [*datasets, *ENDLESS, "--graph"]
    process = trainer.start(*options, ranks=2, script=script)
    trainer.assert_all_end(process, "ZeroDivisionError: division by zero")


# -- what is refused --------------------------------------------------------------------

UNEVEN = "records each; they need equal parts: `python -m ofrecord merge "
FEWER = "has 1 part, fewer than the world size 2: `python -m ofrecord merge "
BATCH = "batch_size 25 is not divisible by the world size 2: give a multiple of 2"
SHARES = {  # parts, parts of the dataset to evaluate on, batch size, message
    "parts": (5, None, 10, f"2 ranks would read 30 and 20 {UNEVEN}"),
    "batch": (4, None, 25, BATCH),
    "parts to evaluate": (2, 1, 10, FEWER),
}


@pytest.mark.parametrize("case", cases(["parts"], SHARES))
def test_what_cannot_be_shared_is_one_line(trainer, dealt, tmp_path, case):
    parts, eval_parts, batch_size, text = SHARES[case]
    options = ["--dataset_dir", dealt(parts), *OPTIONS, "--batch_size", batch_size]
    options += ["--eval_dataset_dir", dealt(eval_parts)] if eval_parts else []
    result = trainer.run(*options, "--run_dir", tmp_path / "run", ranks=2)
    assert result.code != 0 and "[" not in result.out, result
    line = error_line(result)
    assert text in line and "rank 1" not in line, result
    assert not (tmp_path / "run").exists()
    if case == "parts":  # what the line names makes them
        words = re.search(r"`python -m ofrecord (.*) NEW_DIR (.*)`", line).groups()
        merge = [*words[0].split(), tmp_path / "even", *words[1].split()]
        assert call("ofrecord.__main__", *merge).code == 0
        records = [part["num_records"] for part in read_manifest(tmp_path / "even")["parts"]]
        assert sum(records[:3]) - sum(records[3:]) in (0, 1, 2, 3) and len(records) == 6


@slow
@pytest.mark.parametrize(
    "change, text",
    [
        (OWN_SEED, "the same seed, but it is 0 on rank 0 and 1 on rank 1"),
        (HIDES_CHECKPOINT, "the same checkpoint in run_dir, but it is of step 2 on rank 0"),
    ],
    ids=["seed", "checkpoint"],
)
def test_ranks_that_differ_are_refused(trainer, dealt, tmp_path, change, text):
    """In settings; or as on a second machine that does not share the folder: one would start anew."""
    options = ["--dataset_dir", dealt(2), *OPTIONS, "--steps", 2, "--run_dir", tmp_path / "run"]
    if change == HIDES_CHECKPOINT:
        assert call("lenet_train", *options).code == 0
        options = ["--run_dir", tmp_path / "run", "--resume"]
    result = trainer.run(*options, ranks=2, script=changed(tmp_path, change))
    assert result.code != 0 and f"all ranks must have {text}" in error_line(result), result


def test_a_run_that_would_take_other_steps_on_two_ranks_is_not_resumed(trainer, dealt, tmp_path):
    """Of four parts with 13, 13, 12 and 12 images one rank reads 26: its epochs are longer."""
    options = ["--dataset_dir", dealt(4), "--batch_size", 10, "--image_size", 12]
    options += ["--steps", "null", "--epochs", 2, "--run_dir", tmp_path / "run"]
    options += ["--schedule", "cosine"]  # which needs the number of steps
    assert len(losses(call("lenet_train", "--device", "cpu", *options))) == 10
    before = snapshot(tmp_path / "run")
    result = trainer.run("--run_dir", tmp_path / "run", "--resume", ranks=2)
    assert result.code != 0 and "would take 11 steps, not 10" in result.err, result
    assert snapshot(tmp_path / "run") == before


def test_a_port_in_use_is_one_line(trainer, dealt):
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = trainer.run("--dataset_dir", dealt(2), *OPTIONS, ranks=2, port=port)
    text = f"port {port} cannot be used (Address already in use): launch with --master_port N"
    assert result.code != 0 and text in error_line(result) and "Check failed" not in result.err, (
        result
    )


LAUNCHED = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29400"}
VARIABLES = [({"WORLD_SIZE": "abc"}, 2), ({"RANK": "2"}, 2), ({"MASTER_PORT": "99999"}, 2)]
VARIABLES += [({"MASTER_ADDR": ""}, 2), ({"WORLD_SIZE": ""}, 0), ({"WORLD_SIZE": "1"}, 0)]


@pytest.mark.parametrize("some, code", VARIABLES, ids=str)
def test_the_launchers_variables_from_elsewhere(trainer, dealt, some, code):
    """As cluster schedulers set them: one line, or one process; nothing waits for ranks that never come."""
    options = ["--dataset_dir", dealt(2), *OPTIONS, "--steps", 1]
    result = trainer.run(*options, env={**LAUNCHED, **some})
    assert result.code == code and len(result.out.splitlines()) == (not code), result
    if code:
        (line,) = result.err.splitlines()
        assert "WORLD_SIZE is set, but " in line and "unset WORLD_SIZE" in line
    assert "Warning" not in result.err, result
