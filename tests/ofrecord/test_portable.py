"""ofrecord/portable.py: alone under other Pythons, against protobuf's answers, and with damage."""

import csv
import hashlib
import io
import json
import os
import shutil
import struct
import subprocess
import sys
import tracemalloc

import cv2
import numpy as np
import pytest
from decode import Dataset, decode_with_oneflow
from helpers import PROJECT, convert, run_python

from ofrecord.portable import BadDataset, read_dataset, read_part, safe_name, write_files
from ofrecord.record import OFRecord

PORTABLE = PROJECT / "ofrecord" / "portable.py"
OTHERS = filter(None, map(shutil.which, ("python3.8", "python3.11", "python3.13")))
PYTHONS = [path for path in (sys.executable, *OTHERS) if run_python("-V", python=path).code == 0]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("portable") / "dataset"
    assert convert("--save_dir", folder).code == 0
    return folder


def from_protobuf(path):
    """The features of a part's records, as protobuf's own classes read them."""
    data, records = path.read_bytes(), []
    while data:
        size = 8 + struct.unpack_from("<q", data)[0]
        feature, data = OFRecord.FromString(data[8:size]).feature, data[size:]
        lists = {name: getattr(each, each.WhichOneof("kind")) for name, each in feature.items()}
        records.append({name: list(each.value) for name, each in lists.items()})
    return records


def write_part(path, *records):
    serialized = [record.SerializeToString() for record in records]
    path.write_bytes(b"".join(struct.pack("<q", len(each)) + each for each in serialized))


def test_features_of_all_kinds_are_those_of_protobuf(tmp_path, dataset):
    record = OFRecord()
    values = {"bytes_list": [b"", b"x" * 300], "float_list": [0.5, -2.0], "double_list": [1e300]}
    values |= {"int32_list": [0, -1, 2**31 - 1, -(2**31)], "int64_list": [2**63 - 1, -(2**63)]}
    for kind, several in values.items():
        getattr(record.feature[f"a {kind} é"], kind).value.extend(several)
    write_part(tmp_path / "part-0", record, record)
    assert list(read_part(tmp_path / "part-0")) == from_protobuf(tmp_path / "part-0")
    for path in dataset.glob("part-*"):
        assert list(read_part(path)) == from_protobuf(path)


def test_oneflow_reads_the_same(dataset):
    images, labels = decode_with_oneflow({0: Dataset(dataset, [(28, 28)] * 50, 1, 5)})[0]
    records = list(read_dataset(dataset))
    assert [label for _, _, label, _ in records] == labels
    for (_, image, _, _), pixels in zip(records, images, strict=True):
        assert (cv2.imdecode(np.frombuffer(image, np.uint8), 0) == pixels[:, :, 0]).all()


@pytest.mark.parametrize("python", PYTHONS)
def test_it_runs_alone_and_under_other_pythons(tmp_path, dataset, python):
    copy, out = shutil.copy(PORTABLE, tmp_path / "copy.py"), tmp_path / "out"
    result = run_python("-I", copy, dataset, cwd=tmp_path, python=python)
    assert result.code == 0 and not result.err, result
    rows = list(csv.reader(io.StringIO(result.out)))
    assert rows[:2] == [["image", "label"], ["00000030_3.png", "3"]] and len(rows) == 51
    result = run_python("-I", copy, dataset, out, python=python)
    assert result.code == 0 and not result.out + result.err, result
    for name, image, label, _ in read_dataset(dataset):
        assert (out / name).read_bytes() == image and f"_{label}" in name
    for arguments in ([dataset, out], [tmp_path / "no", tmp_path / "new"], []):
        again = run_python("-I", copy, *arguments, python=python)
        assert again.code == 2 and again.err.count("\n") == 1, again
    assert not (tmp_path / "new").exists()


def test_a_reader_that_stops_early_is_no_error(dataset):
    reader, writer = os.pipe()
    os.close(reader)  # as `head` does when it has seen enough
    command = [sys.executable, PORTABLE, dataset]
    result = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (result.returncode, result.stderr) == (0, b"")


@pytest.mark.parametrize("number", [1000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_mutations_of_a_part_raise_nothing_else(tmp_path, dataset, number):
    whole, path = (dataset / "part-0").read_bytes()[:1000], tmp_path / "part-0"
    rng, refused = np.random.default_rng(number), 0
    tracemalloc.start()
    for _ in range(number):
        data = bytearray(whole)
        for _ in range(int(rng.integers(1, 4))):
            data[int(rng.integers(len(data)))] = int(rng.integers(256))
        path.write_bytes(data[: int(rng.integers(len(data)))] if rng.random() < 0.2 else data)
        try:
            assert list(read_part(path)) == from_protobuf(path)
        except BadDataset as error:
            assert "part-0, record " in str(error)
            refused += 1
    assert refused > number / 2 and tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


DAMAGE = {  # what is changed: (its file, how, the one line)
    "cut": ("part-1", lambda data: data[:-1], "part-1, record 9: not an OFRecord"),
    "empty": ("part-1", lambda data: b"", "part-2, record 0: images.csv has another"),
    "last": ("part-4", lambda data: b"", "images.csv has more records than the parts"),
    "image": ("part-2", lambda data: data.replace(b"IDAT", b"IDAX"), "part-2, record 0: images"),
    "table": ("images.csv", lambda data: data[:200], "images.csv has another image"),
    "text": ("images.csv", lambda data: data + b"\xff\n", "images.csv has more records"),
    "json": ("dataset.json", lambda data: data[:200], "dataset.json is damaged"),
    "deep": ("dataset.json", lambda data: b"[" * 10**5, "dataset.json is damaged"),
    "parts": ("dataset.json", lambda data: b'{"parts": 5}', "dataset.json is damaged"),
    "class": (
        "dataset.json",
        lambda data: data.replace(b'"class_names": null', b'"class_names": ["\\ud800"]'),
        None,
    ),
    "named": ("dataset.json", lambda data: data.replace(b"part-0", b"../../"), None),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_one_line_that_names_it(tmp_path, dataset, case):
    name, change, text = DAMAGE[case]
    copy = shutil.copytree(dataset, tmp_path / "copy")
    (copy / name).write_bytes(change((copy / name).read_bytes()))
    result = run_python("-I", PORTABLE, copy)
    if text is None:  # the parts' names come from counting
        assert result.code == 0 and result.out.count("\n") == 51, result
    else:
        assert result.code == 2 and result.err.count("\n") == 1 and text in result.err, result


NASTY = ["../../up.png", "/etc/passwd", "C:\\Windows\\x.png", "a/../../b.png", "..", ".", "", "e. "]
NASTY += ["nul", "com1.png", "a.png", "A.PNG", "a.png", "a.png/b.png", "x" * 300, "é中.jpeg"]
NASTY += [
    "record-25/e.png",
    "e.png",
    "e.png",
    "record-25/e.png",
    "~/a.png",
    "images.csv",
    "a:b.png",
    "con.x/y.png",
    "..\\..\\c.png",
    "a\nb.png",
    "-rf.png",
]


def test_nothing_is_written_outside_or_over_another(tmp_path):
    folder, out, records = tmp_path / "d", tmp_path / "out", []
    digest = hashlib.sha256(b"\x89PNG").hexdigest()[:16]
    folder.mkdir()
    rows = [["part", "record", "image", "label", "sha256"]]
    for number, name in enumerate(NASTY):
        records.append(OFRecord())
        records[-1].feature["images"].bytes_list.value.append(b"\x89PNG")
        records[-1].feature["labels"].int32_list.value.append(number)
        rows.append(["part-00", number, name, number, digest])
    write_part(folder / "part-00", *records)
    manifest = {"parts": [{"file": "part-00"}], "num_records": len(NASTY), "class_names": None}
    (folder / "dataset.json").write_text(json.dumps(manifest))
    with open(folder / "images.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    write_files(folder, out)
    assert {path.name for path in tmp_path.iterdir()} == {"d", "out"}
    files = {path for path in out.rglob("*") if path.is_file()}
    with open(out / "images.csv", newline="", encoding="utf-8") as file:
        names = [name for name, _ in csv.reader(file)][1:]
    assert len(set(names)) == len(NASTY)
    assert {out / name for name in names} | {out / "images.csv"} == files
    assert not any(set(name) & set('<>:"|?*\\\n\0') for name in names)


def test_names_get_the_ending_of_their_format():
    names = ["scan.tiff", "a.JPEG", "b", "c\0d.jpg", "x.y/z", "p.jp2"]
    endings = ["scan.tiff.jpg", "a.JPEG", "b.jpg", "c_d.jpg", "x.y/z.jpg", "p.jp2.jpg"]
    assert [safe_name(name, ".jpg") for name in names] == endings
