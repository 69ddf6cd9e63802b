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

from runtime.atomic import folder_lock

DIGITS = sorted(IMAGES.glob("*.png"))
SPLITS = {"train": ("train", DIGITS[:40], 60000), "test": ("t10k", DIGITS[40:], 10000)}
OUTPUT = ["test_label", "test_set", "train_label", "train_set"]
LABELS = "train-labels-idx1-ubyte"


def gray(path):
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A folder of a small MNIST's compressed files, which get_mnist takes for MNIST."""
    get_mnist, files = pytest.importorskip("data.get_mnist"), {}
    for name, paths, _ in SPLITS.values():
        pixels = b"".join(gray(path).tobytes() for path in paths)
        header = struct.pack(">4BIII", 0, 0, 8, 3, len(paths), 28, 28)
        files[f"{name}-images-idx3-ubyte"] = header + pixels
        labels = bytes(int(path.stem[-1]) for path in paths)
        files[f"{name}-labels-idx1-ubyte"] = struct.pack(">4BI", 0, 0, 8, 1, len(paths)) + labels
    sums = {name: hashlib.md5(content).hexdigest() for name, content in files.items()}
    assert sorted(get_mnist.MD5) == sorted(sums)
    monkeypatch.setattr(get_mnist, "MD5", sums)
    monkeypatch.setattr(get_mnist, "SPLITS", (("train", "train", 40), ("test", "t10k", 10)))
    (tmp_path / "source").mkdir()
    for name, content in files.items():
        (tmp_path / "source" / f"{name}.gz").write_bytes(gzip.compress(content))
    return tmp_path / "source"


def get_mnist(output, *arguments):
    return call("data.get_mnist", "--output", output, *arguments)


def assert_is_mnist(folder, images_of, every):
    """The files of each split are its images, of which every n-th is compared, and their labels."""
    assert names(folder) == OUTPUT
    for split in SPLITS:
        images, labels = images_of(split)
        expected = [f"{index:08d}_{label}.png" for index, label in enumerate(labels)]
        assert names(folder / f"{split}_set") == expected
        lines = (folder / f"{split}_label" / "label.txt").read_text().splitlines()
        assert [json.loads(line) for line in lines] == [{name: int(name[9])} for name in expected]
        for index in [*range(0, len(expected), every), len(expected) - 1]:
            assert (gray(folder / f"{split}_set" / expected[index]) == images[index]).all()


def small(split):
    paths = SPLITS[split][1]
    return [gray(path) for path in paths], [path.stem[-1] for path in paths]


def original(split):
    def read(kind, offset):
        path = MNIST / f"{SPLITS[split][0]}-{kind}-ubyte.gz"
        return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=offset)

    return read("images-idx3", 16).reshape(SPLITS[split][2], 28, 28), read("labels-idx1", 8)


# -- getting it ---------------------------------------------------------------------------


@pytest.mark.parametrize("compressed", [True, False])
def test_the_files_are_those_of_the_source(source, tmp_path, compressed):
    for path in [] if compressed else list(source.iterdir()):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    (tmp_path / ".get_mnist" / "train_set").mkdir(parents=True)  # of a run that was killed
    (tmp_path / ".get_mnist" / "train_set" / "00000000_0.png").write_bytes(b"half an im")
    result = get_mnist(tmp_path / "m", "--source", source)
    assert result.code == 0 and result.err == "", result
    assert_is_mnist(tmp_path / "m", small, 1)
    assert names(tmp_path) == ["m", "source"]


def test_what_is_there_is_kept(source, tmp_path):
    """A second time nothing is done; what is no complete MNIST is not replaced."""
    assert get_mnist(tmp_path / "m", "--source", source).code == 0
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    label_file = tmp_path / "m" / "train_label" / "label.txt"
    before = snapshot(tmp_path), label_file.stat()
    result = get_mnist(tmp_path / "m", "--source", "nowhere")
    assert result.code == 0 and "already complete" in result.out, result
    assert (snapshot(tmp_path), label_file.stat()) == before
    next((tmp_path / "m" / "test_set").iterdir()).unlink()
    before = snapshot(tmp_path)
    for name, advice in ("m", "remove it and"), ("mine", "--output names another"):
        result = get_mnist(tmp_path / name, "--source", source)
        assert_one_error(result, f"{name} exists and is not a complete MNIST: {advice}")
    with folder_lock(tmp_path, ""):
        result = get_mnist(tmp_path / "new", "--source", source)
        assert_one_error(result, f"another get_mnist.py is writing to {tmp_path}: wait")
    assert snapshot(tmp_path) == before


BAD_SOURCES = {
    "cut off": (lambda path: path.write_bytes(path.read_bytes()[:-10]), f"{LABELS}.gz"),
    "other bytes": (lambda path: path.write_bytes(gzip.compress(b"other")), "the MD5 sum is"),
    "a web page": (lambda path: path.write_bytes(b"<html>log in</html>"), "the MD5 sum is"),
    "missing": (lambda path: path.unlink(), "neither"),
}


@pytest.mark.parametrize("damage, text", BAD_SOURCES.values(), ids=BAD_SOURCES)
def test_bad_sources(source, tmp_path, damage, text):
    damage(source / f"{LABELS}.gz")
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
def mirrors(folder):
    """The options that name two mirrors; the first file is asked for again, the labels of the second one."""
    asked = []
    handler = functools.partial(Mirror, asked, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/"
        yield "--mirror", f"{address}bad/", "--mirror", address
        server.shutdown()
    expected = ["/bad/train-images-idx3", "/bad/train-images-idx3"]
    expected += ["/bad/train-labels-idx1", "/train-labels-idx1"]
    expected += ["/bad/t10k-images-idx3", "/bad/t10k-labels-idx1", "/t10k-labels-idx1"]
    assert [path.replace("-ubyte.gz", "") for path in asked] == expected


@pytest.fixture
def pauses(monkeypatch):
    """The seconds that it would have waited between its tries."""
    monkeypatch.setenv("no_proxy", "*")
    pauses = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    return pauses


def test_download_with_retry_and_a_second_mirror(source, tmp_path, pauses):
    with mirrors(source) as options:
        result = get_mnist(tmp_path / "m", *options)
    assert result.code == 0 and result.err.count("HTTP Error 404") == 2, result
    assert pauses == [2]
    assert_is_mnist(tmp_path / "m", small, 1)
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
    with mirrors(MNIST) as options:
        words = ["data/get_mnist.py", "--output", folder, *options]
        result = run_script(*words, env={"no_proxy": "*"})
    assert result.code == 0 and "60,000 training and 10,000 test images" in result.out, result
    assert names(folder.parent) == ["mnist"]
    return folder


@pytest.mark.slow
@needs_mnist
def test_the_files_are_mnist(mnist):
    assert_is_mnist(mnist, original, 997)
    (tutorials,) = IMAGES.glob("00000030_*.png")  # which is the same image
    assert (gray(tutorials) == gray(mnist / "train_set" / "00000030_3.png")).all()


@pytest.mark.slow
@needs_mnist
def test_killed_it_starts_clean(tmp_path):
    staging = tmp_path / ".get_mnist" / "train_set"
    for stop, code in (signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130):
        process = start_script("data/get_mnist.py", "--source", MNIST, "--output", tmp_path / "m")
        while (staging / "old").exists() or not (staging / "00000100_5.png").exists():
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(stop)
        _, err = process.communicate(timeout=60)
        assert process.returncode == code and "Traceback" not in err, err
        assert names(tmp_path) == ([".get_mnist"] if stop == signal.SIGKILL else []), err
        if stop == signal.SIGKILL:
            (staging / "old").touch()
    assert err.endswith("interrupted\n"), err


@pytest.mark.slow
@needs_mnist
def test_mnist_is_learned(mnist, tmp_path):
    """configs/mnist.yaml for as many steps as 98 % takes; and then digits, dark on paper, that it never saw."""
    for split in ("train", "test"):
        options = ["--image_root", mnist / f"{split}_set", "--save_dir", tmp_path / split]
        options += ["--label_dir", mnist / f"{split}_label" / "label.txt"]
        result = run_script("img2ofrecord.py", *options)
        assert result.code == 0, result.err[-3000:]
    options = ["--config", PROJECT / "configs/mnist.yaml", "--device", "cpu", "--steps", 160]
    options += ["--dataset_dir", tmp_path / "train", "--eval_dataset_dir", tmp_path / "test"]
    result = run_script("lenet_train.py", *options, "--run_dir", tmp_path / "run", timeout=1200)
    assert result.code == 0, result
    right, count = re.search(r"epoch 1/1: accuracy ([\d,]+)/([\d,]+)", result.err).groups()
    assert count == "10,000" and int(right.replace(",", "")) >= 9800, result
    digits = sorted((mnist / "test_set").iterdir())[:100]
    photos = write_photos(digits, tmp_path)
    words = ["-m", "lenet.predict", "--checkpoint", tmp_path / "run" / "best.npz", *photos]
    result = run_python(*words)
    assert result.code == 0, result
    pairs = zip(predicted_labels(result), digits, strict=True)
    assert sum(label == file.stem[-1] for label, file in pairs) >= 95
