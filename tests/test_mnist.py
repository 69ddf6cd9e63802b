"""All of MNIST: getting it, and a training on it.

The quick tests get a small MNIST, of the tutorial's 50 digits, by the same
script. The slow ones get the real one, and are skipped where it is not there.
"""

import functools
import gzip
import hashlib
import http.server
import json
import re
import signal
import socket
import struct
import threading
import time
from contextlib import contextmanager

import cv2
import numpy as np
import pytest
from helpers import (
    IMAGES,
    MNIST,
    PROJECT,
    assert_one_error,
    call,
    needs_mnist,
    run_python,
    run_script,
    snapshot,
    start_script,
)
from photos import predicted_labels, write_photos

NAMES = [
    f"{split}-{kind}-ubyte"
    for split in ("train", "t10k")
    for kind in ("images-idx3", "labels-idx1")
]
OUTPUT = ["test_label", "test_set", "train_label", "train_set"]


def gray(path):
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def small_files():
    """{name: the bytes of a file in MNIST's format}, of 40 training and 10 test images."""
    files = {}
    digits = sorted(IMAGES.glob("*.png"))
    for split, paths in (("train", digits[:40]), ("t10k", digits[40:])):
        header = struct.pack(">4BIII", 0, 0, 8, 3, len(paths), 28, 28)
        files[f"{split}-images-idx3-ubyte"] = header + b"".join(
            gray(path).tobytes() for path in paths
        )
        labels = bytes(int(path.stem[-1]) for path in paths)
        files[f"{split}-labels-idx1-ubyte"] = struct.pack(">4BI", 0, 0, 8, 1, len(paths)) + labels
    return files


@pytest.fixture
def source(small_files, tmp_path, monkeypatch):
    """A folder of a small MNIST's compressed files, which get_mnist takes for MNIST."""
    get_mnist = pytest.importorskip("data.get_mnist")
    sums = {name: hashlib.md5(content).hexdigest() for name, content in small_files.items()}
    assert sorted(get_mnist.MD5) == sorted(sums)
    monkeypatch.setattr(get_mnist, "MD5", sums)
    monkeypatch.setattr(get_mnist, "SPLITS", (("train", "train", 40), ("test", "t10k", 10)))
    folder = tmp_path / "source"
    folder.mkdir()
    for name, content in small_files.items():
        (folder / f"{name}.gz").write_bytes(gzip.compress(content))
    return folder


def get_mnist(output, *arguments):
    return call("data.get_mnist", "--output", output, *arguments)


def assert_is_small_mnist(folder):
    assert names(folder) == OUTPUT
    digits = sorted(IMAGES.glob("*.png"))
    for split, paths in (("train", digits[:40]), ("test", digits[40:])):
        expected = [f"{index:08d}_{path.stem[-1]}.png" for index, path in enumerate(paths)]
        assert names(folder / f"{split}_set") == expected
        lines = (folder / f"{split}_label" / "label.txt").read_text().splitlines()
        assert [json.loads(line) for line in lines] == [{name: int(name[9])} for name in expected]
        for name, path in zip(expected, paths, strict=True):
            assert (gray(folder / f"{split}_set" / name) == gray(path)).all()


# -- getting it ---------------------------------------------------------------------------


def test_the_files_are_those_of_the_source(source, tmp_path):
    (tmp_path / ".get_mnist" / "train_set").mkdir(parents=True)  # of a run that was killed
    (tmp_path / ".get_mnist" / "train_set" / "00000000_0.png").write_bytes(b"half an im")
    result = get_mnist(tmp_path / "m", "--source", source)
    assert result.code == 0 and result.err == "", result
    assert_is_small_mnist(tmp_path / "m")
    assert names(tmp_path) == ["m", "source"]


def test_a_source_that_is_not_compressed(source, small_files, tmp_path):
    for name, content in small_files.items():
        (source / f"{name}.gz").unlink()
        (source / name).write_bytes(content)
    assert get_mnist(tmp_path / "m", "--source", source).code == 0
    assert_is_small_mnist(tmp_path / "m")


def test_a_second_time_nothing_is_done(source, tmp_path):
    assert get_mnist(tmp_path / "m", "--source", source).code == 0
    label_file = tmp_path / "m" / "train_label" / "label.txt"
    before = snapshot(tmp_path), label_file.stat()
    result = get_mnist(tmp_path / "m", "--source", "nowhere")
    assert result.code == 0 and "already complete" in result.out, result
    assert (snapshot(tmp_path), label_file.stat()) == before
    next((tmp_path / "m" / "test_set").iterdir()).unlink()
    before = snapshot(tmp_path)
    result = get_mnist(tmp_path / "m", "--source", source)
    assert_one_error(result, "exists and is not a complete MNIST")
    assert snapshot(tmp_path) == before


def test_where_something_else_is(source, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    before = snapshot(tmp_path)
    result = get_mnist(tmp_path / "mine", "--source", source)
    assert_one_error(result, "exists and is not a complete MNIST")
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    "damage, text",
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-10]), "train-labels-idx1-ubyte.gz"),
        (lambda path: path.write_bytes(gzip.compress(b"other bytes")), "the MD5 sum is"),
        (lambda path: path.write_bytes(b"<html>log in first</html>"), "the MD5 sum is"),
        (lambda path: path.unlink(), "neither"),
    ],
    ids=["cut off", "other bytes", "a web page", "missing"],
)
def test_bad_sources(source, tmp_path, damage, text):
    damage(source / "train-labels-idx1-ubyte.gz")
    assert_one_error(get_mnist(tmp_path / "m", "--source", source), text)
    assert names(tmp_path) == ["source"]


def test_the_script_itself_says_what_is_missing(tmp_path):
    result = run_script("data/get_mnist.py", "--output", tmp_path / "m", "--source", tmp_path)
    assert_one_error(result, "neither", "train-images-idx3-ubyte.gz")
    assert names(tmp_path) == []


class Mirror(http.server.SimpleHTTPRequestHandler):
    """A mirror that cuts its first answer off, and says of labels under /bad/ that it has none."""

    def __init__(self, asked, *arguments, **options):
        self.asked = asked
        super().__init__(*arguments, **options)

    def do_GET(self):
        self.asked.append(self.path)
        if self.path.startswith("/bad/") and "labels" in self.path:
            return self.send_error(404)
        self.path = self.path.replace("/bad/", "/")
        if len(self.asked) > 1:
            return super().do_GET()
        with open(self.translate_path(self.path), "rb") as file:
            content = file.read()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2])

    def log_message(self, *_):
        pass


@contextmanager
def served(folder):
    """A Mirror of a folder: its address, and a list that fills with the paths that were asked for."""
    asked = []
    handler = functools.partial(Mirror, asked, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/", asked
        server.shutdown()


def assert_retried(asked, result):
    """The first file was asked for again, those that the first mirror has not of the second one."""
    assert [path.replace("-ubyte.gz", "") for path in asked] == [
        "/bad/train-images-idx3",
        "/bad/train-images-idx3",  # the first time it was cut off
        "/bad/train-labels-idx1",
        "/train-labels-idx1",
        "/bad/t10k-images-idx3",
        "/bad/t10k-labels-idx1",
        "/t10k-labels-idx1",
    ]
    assert result.err.count("HTTP Error 404") == 2, result  # (the port may have a 404 in it too)


@pytest.fixture
def pauses(monkeypatch):
    """The seconds that it would have waited between its tries."""
    monkeypatch.setenv("no_proxy", "*")
    pauses = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    return pauses


def test_download_with_retry_and_a_second_mirror(source, tmp_path, pauses):
    with served(source) as (address, asked):
        result = get_mnist(tmp_path / "m", "--mirror", f"{address}bad/", "--mirror", address)
    assert result.code == 0, result
    assert_retried(asked, result)
    assert pauses == [2]
    assert_is_small_mnist(tmp_path / "m")
    assert names(tmp_path) == ["m", "source"]


def test_no_network_is_one_line(tmp_path, pauses):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{closed.getsockname()[1]}/"
        result = get_mnist(tmp_path / "m", "--mirror", address)
    assert_one_error(result, "could not download MNIST", "--source")
    assert ": warning: http://127.0.0.1:" in result.err and "refused" in result.err, result
    assert pauses == [2, 4]
    assert names(tmp_path) == []


# -- all of it ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mnist(tmp_path_factory):
    """MNIST as files, made once, from two mirrors. Read only."""
    folder = tmp_path_factory.mktemp("mnist") / "mnist"
    with served(MNIST) as (address, asked):
        mirrors = ["--mirror", f"{address}bad/", "--mirror", address]
        options = ["--output", folder, *mirrors]
        result = run_script("data/get_mnist.py", *options, env={"no_proxy": "*"})
    assert result.code == 0 and "60,000 training and 10,000 test images" in result.out, result
    assert_retried(asked, result)
    assert names(folder.parent) == ["mnist"]
    return folder


def read_original(name, offset):
    content = gzip.decompress((MNIST / f"{name}.gz").read_bytes())
    return np.frombuffer(content, np.uint8, offset=offset)


@pytest.mark.slow
@needs_mnist
def test_the_files_are_mnist(mnist):
    assert names(mnist) == OUTPUT
    for split, original, count in (("train", "train", 60000), ("test", "t10k", 10000)):
        images = read_original(f"{original}-images-idx3-ubyte", 16).reshape(count, 28, 28)
        labels = read_original(f"{original}-labels-idx1-ubyte", 8)
        lines = (mnist / f"{split}_label" / "label.txt").read_text().splitlines()
        found = [next(iter(json.loads(line).items())) for line in lines]
        expected = [f"{index:08d}_{label}.png" for index, label in enumerate(labels)]
        assert found == list(zip(expected, labels.tolist(), strict=True))
        assert names(mnist / f"{split}_set") == expected
        for index in [*range(0, count, 997), count - 1]:
            assert (gray(mnist / f"{split}_set" / expected[index]) == images[index]).all()
    (tutorials,) = IMAGES.glob("00000030_*.png")  # which is the same image
    assert (gray(tutorials) == gray(mnist / "train_set" / "00000030_3.png")).all()


@pytest.mark.slow
@needs_mnist
def test_killed_it_starts_clean(tmp_path):
    staging = tmp_path / ".get_mnist" / "train_set"

    def start_and_wait(ready):
        options = ["--source", MNIST, "--output", tmp_path / "m"]
        process = start_script("data/get_mnist.py", *options)
        deadline = time.monotonic() + 60
        while not ready():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        return process

    process = start_and_wait(lambda: (staging / "00000100_5.png").exists())
    process.kill()
    process.communicate()
    assert names(tmp_path) == [".get_mnist"]
    (staging / "old").touch()
    process = start_and_wait(
        lambda: not (staging / "old").exists() and (staging / "00000100_5.png").exists()
    )
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert err.endswith("interrupted\n") and process.returncode == 130, err
    assert names(tmp_path) == []


@pytest.fixture(scope="module")
def full_run(mnist, tmp_path_factory):
    """configs/mnist.yaml on all images, for as many steps as 98 % takes. Its folder and Result."""
    folder = tmp_path_factory.mktemp("full")
    for split in ("train", "test"):
        options = ["--image_root", mnist / f"{split}_set"]
        options += ["--label_dir", mnist / f"{split}_label" / "label.txt"]
        result = run_script("img2ofrecord.py", *options, "--save_dir", folder / split)
        assert result.code == 0, result.err[-3000:]
    options = ["--config", PROJECT / "configs/mnist.yaml", "--device", "cpu", "--steps", 160]
    options += ["--dataset_dir", folder / "train", "--eval_dataset_dir", folder / "test"]
    result = run_script("lenet_train.py", *options, "--run_dir", folder / "run", timeout=1200)
    assert result.code == 0, result
    return folder / "run", result


@pytest.mark.slow
@needs_mnist
def test_mnist_is_learned(full_run):
    _, result = full_run
    right, count = re.search(r"epoch 1/1: accuracy ([\d,]+)/([\d,]+)", result.err).groups()
    print(f"after 160 steps of 128 images: {right} of {count}")
    assert count == "10,000" and int(right.replace(",", "")) >= 9800, result


@pytest.mark.slow
@needs_mnist
def test_photos_of_test_digits(full_run, mnist, tmp_path):
    """A trained LeNet recognizes digits that it never saw, dark on paper, nearly as well as MNIST's own."""
    digits = sorted((mnist / "test_set").iterdir())[:100]
    photos = write_photos(digits, tmp_path)
    result = run_python("-m", "lenet.predict", "--checkpoint", full_run[0] / "best.npz", *photos)
    assert result.code == 0, result
    pairs = zip(predicted_labels(result), digits, strict=True)
    right = sum(label == file.stem[-1] for label, file in pairs)
    print(f"photos: {right} of {len(photos)}")
    assert right >= 95
