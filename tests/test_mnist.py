"""The whole of MNIST: getting it, and a training on all of it. (Skipped where its files are not there.)"""

import functools
import gzip
import hashlib
import http.server
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import cv2
import numpy as np
import pytest

from conftest import MNIST, PROJECT, assert_one_error, needs_mnist, run_module, run_script
from test_predict import labels_of, on_paper


def get_mnist(output, *arguments, **options):
    return run_script("data/get_mnist.py", "--output", output, *arguments, **options)


@pytest.fixture(scope="module")
def mnist(tmp_path_factory):
    """MNIST as files, made once. Read only."""
    folder = tmp_path_factory.mktemp("mnist") / "mnist"
    result = get_mnist(folder, "--source", MNIST)
    assert result.code == 0 and "60,000 training and 10,000 test images" in result.out, result
    return folder


def read_original(name, offset):
    return np.frombuffer(gzip.decompress((MNIST / (name + ".gz")).read_bytes()), np.uint8, offset=offset)


@needs_mnist
def test_the_files_are_mnist(mnist):
    assert sorted(path.name for path in mnist.iterdir()) == ["test_label", "test_set", "train_label", "train_set"]
    for split, name, count in (("train", "train", 60000), ("test", "t10k", 10000)):
        images = read_original(name + "-images-idx3-ubyte", 16).reshape(count, 28, 28)
        labels = read_original(name + "-labels-idx1-ubyte", 8)
        lines = (mnist / (split + "_label") / "label.txt").read_text().splitlines()
        assert len(lines) == len(os.listdir(str(mnist / (split + "_set")))) == count
        for index in list(range(0, count, 997)) + [count - 1]:
            file, label = next(iter(json.loads(lines[index]).items()))
            assert file == "{:08d}_{}.png".format(index, labels[index]) and label == labels[index]
            assert (cv2.imread(str(mnist / (split + "_set") / file), cv2.IMREAD_UNCHANGED) == images[index]).all()
    tutorials = next((PROJECT / "data/images/train_set").glob("00000030_*.png"))  # which is the same image
    assert (cv2.imread(str(tutorials), 0) == cv2.imread(str(mnist / "train_set" / "00000030_3.png"), 0)).all()


@needs_mnist
def test_a_second_time_nothing_is_done(mnist):
    before = os.stat(str(mnist / "train_label" / "label.txt"))
    result = get_mnist(mnist, "--source", "nowhere")
    assert result.code == 0 and "already there" in result.out, result
    assert os.stat(str(mnist / "train_label" / "label.txt")) == before


def test_where_something_else_is(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    assert_one_error(get_mnist(tmp_path / "mine", "--source", tmp_path), "is there and is not all of MNIST")
    assert (tmp_path / "mine" / "thesis.txt").exists()


@needs_mnist
def test_killed_it_starts_clean(tmp_path):
    process = subprocess.Popen([sys.executable, str(PROJECT / "data/get_mnist.py"), "--source", str(MNIST), "--output",
                                str(tmp_path / "m")])
    staging = tmp_path / ".get_mnist" / "train_set"
    deadline = time.time() + 60
    while not staging.is_dir() or len(os.listdir(str(staging))) < 500:
        assert time.time() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (tmp_path / "m").exists() and staging.is_dir()
    process = subprocess.Popen([sys.executable, str(PROJECT / "data/get_mnist.py"), "--source", str(MNIST), "--output",
                                str(tmp_path / "m")], stderr=subprocess.PIPE)
    time.sleep(1.5)
    process.send_signal(signal.SIGINT)
    assert process.communicate()[1].endswith(b"interrupted\n") and process.returncode == 130
    assert list(tmp_path.iterdir()) == []


@needs_mnist
@pytest.mark.parametrize("damage, said", [
    (lambda path: path.write_bytes(path.read_bytes()[:-100]), "train-labels-idx1-ubyte.gz"),
    (lambda path: path.write_bytes(gzip.compress(b"other bytes")), "its MD5 sum is"),
    (lambda path: path.write_bytes(b"<html>log in first</html>"), "its MD5 sum is"),
    (lambda path: path.unlink(), "neither"),
], ids=["cut off", "other bytes", "a web page", "missing"])
def test_bad_sources(tmp_path, damage, said):
    source = tmp_path / "source"
    shutil.copytree(str(MNIST), str(source))
    os.chmod(str(source), 0o755)
    os.chmod(str(source / "train-labels-idx1-ubyte.gz"), 0o644)
    damage(source / "train-labels-idx1-ubyte.gz")
    assert_one_error(get_mnist(tmp_path / "m", "--source", source), said)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


class Server(http.server.SimpleHTTPRequestHandler):
    """A mirror that cuts its first answer off, and says of labels that it has none."""

    asked = []

    def do_GET(self):
        self.asked.append(self.path)
        if self.path.startswith("/bad/") and "labels" in self.path:
            return self.send_error(404)
        self.path = self.path.replace("/bad/", "/")
        if len(self.asked) == 1:
            content = (MNIST / self.path.strip("/")).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[:len(content) // 2])
            return None
        return super().do_GET()

    def log_message(self, *_):
        pass


@needs_mnist
def test_download_with_retry_and_a_second_mirror(tmp_path):
    Server.asked.clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Server, directory=str(MNIST))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = "http://127.0.0.1:{}/".format(server.server_port)
        result = get_mnist(tmp_path / "m", "--mirror", address + "bad/", "--mirror", address, env={"no_proxy": "*"})
        server.shutdown()
    assert result.code == 0, result
    assert [path.replace("-ubyte.gz", "") for path in Server.asked] == [
        "/bad/train-images-idx3", "/bad/train-images-idx3",  # the first time it was cut off
        "/bad/train-labels-idx1", "/train-labels-idx1", "/bad/t10k-images-idx3", "/bad/t10k-labels-idx1", "/t10k-labels-idx1"]
    assert result.err.count("HTTP Error 404") == 2, result  # (the port may have a 404 in it too)


def test_no_network_is_one_line(tmp_path):
    result = get_mnist(tmp_path / "m", "--mirror", "http://127.0.0.1:9/", env={"no_proxy": "*"})
    assert_one_error(result, "could not download MNIST", "refused", "--source")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def full_run(mnist, tmp_path_factory):
    """configs/mnist.yaml on all images, for as many steps as 98.5 % takes. Its folder and Result."""
    folder = tmp_path_factory.mktemp("full")
    for split in ("train", "test"):
        result = run_script("img2ofrecord.py", "--image_root", mnist / (split + "_set"), "--label_dir",
                            mnist / (split + "_label") / "label.txt", "--save_dir", folder / split, "--progress", "auto")
        assert result.code == 0, result.err
    result = run_script("lenet_train.py", "--config", PROJECT / "configs/mnist.yaml", "--dataset_dir", folder / "train",
                        "--eval_dataset_dir", folder / "test", "--run_dir", folder / "run", "--device", "cpu", "--steps", 450,
                        timeout=1200)
    assert result.code == 0, result
    return folder / "run", result


@needs_mnist
def test_mnist_is_learned(full_run):
    """Slow: a minute and a half."""
    folder, result = full_run
    right, count = re.search(r"epoch 1 of 1: ([\d,]+) of ([\d,]+) right", result.err).groups()
    assert count == "10,000" and int(right.replace(",", "")) >= 9850, result.err
    print("after 450 steps of 64 images:", right, "of", count)


@needs_mnist
def test_photos_of_test_digits(full_run, mnist, tmp_path):
    """A trained LeNet reads digits that it never saw, dark on paper, nearly as well as MNIST's own."""
    files = sorted((mnist / "test_set").iterdir())[:200]
    for seed, file in enumerate(files):
        cv2.imwrite(str(tmp_path / (file.stem + ".jpg")), on_paper(cv2.imread(str(file), 0), seed))
    result = run_module("lenet.predict", "--checkpoint", full_run[0] / "best", *sorted(tmp_path.glob("*.jpg")))
    assert result.code == 0, result
    right = sum(label == file.stem[-1] for label, file in zip(labels_of(result), files))
    print("photos:", right, "of 200")
    assert right >= 190
