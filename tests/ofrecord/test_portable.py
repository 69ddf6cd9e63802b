"""ofrecord/portable.py: alone under other Pythons, against protobuf's answers, and with damage; what ofrecord exports."""

import csv
import io
import json
import os
import resource
import shutil
import struct
import subprocess
import sys
import tracemalloc
from functools import partial

import cv2
import numpy as np
import pytest
from damage import frame
from decode import Dataset, decode_with_oneflow
from helpers import PROJECT, run_python
from making import write_record

from ofrecord.dataset.images_csv import image_digest
from ofrecord.portable import BadDataset, read_dataset, read_part, write_files
from ofrecord.record import OFRecord

PORTABLE = PROJECT / "ofrecord" / "portable.py"
OTHERS = filter(None, map(shutil.which, ("python3.8", "python3.11", "python3.13")))
PYTHONS = [path for path in (sys.executable, *OTHERS) if run_python("-V", python=path).code == 0]


def from_protobuf(path):
    """The features of a part's records, as protobuf's own classes read them."""
    data, records = path.read_bytes(), []
    while data:
        size = 8 + struct.unpack_from("<q", data)[0]
        feature, data = OFRecord.FromString(data[8:size]).feature, data[size:]
        lists = {name: getattr(each, each.WhichOneof("kind")) for name, each in feature.items()}
        records.append({name: list(each.value) for name, each in lists.items()})
    return records


def test_features_of_all_kinds_are_those_of_protobuf(tmp_path, converted):
    record = OFRecord()
    values = {"bytes_list": [b"", b"x" * 300], "float_list": [0.5, -2.0], "double_list": [1e300]}
    values |= {"int32_list": [0, -1, 2**31 - 1, -(2**31)], "int64_list": [2**63 - 1, -(2**63)]}
    for kind, several in values.items():
        getattr(record.feature[f"a {kind} é"], kind).value.extend(several)
    (tmp_path / "part-0").write_bytes(frame(record) * 2)
    for path in (tmp_path / "part-0", *converted.glob("part-*")):
        assert list(read_part(path)) == from_protobuf(path)


def test_oneflow_reads_the_same(converted):
    images, labels = decode_with_oneflow({0: Dataset(converted, [(28, 28)] * 50, 1, 5)})[0]
    records = list(read_dataset(converted))
    assert [label for _, _, label, _ in records] == labels
    for (_, image, _, _), pixels in zip(records, images, strict=True):
        assert (cv2.imdecode(np.frombuffer(image, np.uint8), 0) == pixels[:, :, 0]).all()


@pytest.mark.parametrize("python", PYTHONS)
def test_it_runs_alone_and_under_other_pythons(tmp_path, converted, python):
    copy, out = shutil.copy(PORTABLE, tmp_path / "copy.py"), tmp_path / "out"
    result = run_python("-I", copy, converted, cwd=tmp_path, python=python)
    assert result.code == 0 and not result.err, result
    rows = list(csv.reader(io.StringIO(result.out)))
    assert rows[:2] == [["image", "label"], ["00000030_3.png", "3"]] and len(rows) == 51
    result = run_python("-I", copy, converted, out, python=python)
    assert result.code == 0 and not result.out + result.err, result
    for name, image, label, _ in read_dataset(converted):
        assert (out / name).read_bytes() == image and f"_{label}" in name
    for arguments in ([converted, out], [tmp_path / "no", tmp_path / "new"], []):
        again = run_python("-I", copy, *arguments, python=python)
        assert again.code == 2 and again.err.count("\n") == 1, again
    assert not (tmp_path / "new").exists()


def test_a_reader_that_stops_early_is_no_error(converted):
    reader, writer = os.pipe()
    os.close(reader)  # as `head` does when it has seen enough
    command = [sys.executable, PORTABLE, converted]
    result = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (result.returncode, result.stderr) == (0, b"")


@pytest.mark.parametrize("number", [1000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_mutations_of_a_part_raise_nothing_else(tmp_path, converted, number):
    """Half of them in the first record alone, whose length is right: so that it is looked at."""
    whole, path = (converted / "part-0").read_bytes()[:1000], tmp_path / "part-0"
    rng, refused = np.random.default_rng(number), 0
    first = whole[: 8 + struct.unpack_from("<q", whole)[0]]
    tracemalloc.start()
    for index in range(number):
        data = bytearray(whole if index % 2 else first)
        for _ in range(int(rng.integers(1, 4))):
            data[int(rng.integers(len(data)))] = int(rng.integers(256))
        path.write_bytes(data[: int(rng.integers(len(data)))] if rng.random() < 0.2 else data)
        try:
            assert list(read_part(path)) == from_protobuf(path)
        except BadDataset as error:
            assert "part-0, record " in str(error)
            refused += 1
    assert number / 2 < refused < 0.95 * number
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def replace(old, new):
    return lambda data: data.replace(old, new)


def nested(number, content):
    """A protobuf field of bytes."""
    return bytes([8 * number + 2, len(content)]) + content


BACKWARDS = b"\x0a\xf5" + b"\xff" * 8 + b"\x01"  # a field of -11 bytes: it begins again
ENDLESS = nested(1, nested(1, b"a") + nested(2, nested(4, BACKWARDS)))
DAMAGE = {  # the one line, or None: its file, and what it becomes
    "part-1, record 9: not an OFRecord": ("part-1", lambda data: data[:-1]),
    "part-2, record 0: images.csv has another image": ("part-1", lambda data: b""),
    "part-0, record 0: not an OFRecord (a field is cut off)": ("part-0", lambda data: struct.pack("<q", len(ENDLESS)) + ENDLESS),
    "images.csv has more records than the parts": ("part-4", lambda data: b""),
    "part-2, record 9: images.csv has another image": ("part-2", lambda data: data[::-1].replace(b"TADI", b"XADI", 1)[::-1]),
    "part-0, record 3: images.csv has another image": ("images.csv", lambda data: data[:200]),
    ": images.csv has more records": ("images.csv", lambda data: data + b"\xff\n"),
    "dataset.json is damaged": ("dataset.json", lambda data: data[:200]),
    "dataset.json is damaged: maximum recursion": ("dataset.json", lambda data: b"[" * 10**5),
    "dataset.json is damaged: 'int' object": ("dataset.json", lambda data: b'{"parts": 5}'),
    "it has not one x and one labels": ("dataset.json", replace(b'feature": "images"', b'feature": "x"')),
    None: ("dataset.json", replace(b"part-0", b"../../")),  # the parts' names come from counting
    "\\ud800": ("dataset.json", replace(b'"class_names": null', b'"class_names": ["\\ud800"]')),
}  # fmt: skip


@pytest.mark.parametrize("text", DAMAGE)
def test_damage_is_one_line_that_names_it(tmp_path, converted, text):
    name, change = DAMAGE[text]
    copy = shutil.copytree(converted, tmp_path / "copy")
    (copy / name).write_bytes(change((copy / name).read_bytes()))
    limit = partial(resource.setrlimit, resource.RLIMIT_AS, (2**29, 2**29))
    result = run_python("-I", PORTABLE, copy, preexec_fn=limit)
    if text in (None, "\\ud800"):
        assert result.code == 0 and result.out.count("\n") == 51, result
        assert (text or "") in result.out
    else:
        assert result.code == 2 and result.err.count("\n") == 1 and text in result.err, result


NASTY = {  # an image's name: where its file is
    "../../up.png": "up.png", "/etc/passwd": "etc/passwd.png", "C:\\Windows\\x.png": "C_/Windows/x.png", "a/../../b.png": "a/b.png",
    "..": "_.png", ".": "record-5/_.png", "": "6.png", "e. ": "e.png", "nul": "_nul.png", "com1.png": "_com1.png",
    "a.png": "a.png", "A.PNG": "A.PNG", "./a.png": "record-12/a.png", "a.png/b.png": "record-13/a.png/b.png",
    "x" * 300: "x" * 60 + ".png", "é中.jpeg": "é中.jpeg", "record-17/e.png": "record-17/e.png", "e.png": "record-17/record-17/e.png",
    "~/a.png": "~/a.png", "images.csv": "images.csv.png", "a:b.png": "a_b.png", "con.x/y.png": "_con.x/y.png",
    "..\\..\\c.png": "c.png", "a\nc.png": "a_c.png", "d.JPG": "d.JPG", "p.jp2": "p.jp2.jpg", "scan.tiff": "scan.tiff.png", "-rf.png": "-rf.png", "scan.pnm": "scan.pnm.png", "x.y/z": "x.y/z.png",
}  # fmt: skip


def test_nothing_is_written_outside_or_over_another(tmp_path):
    folder, out = tmp_path / "d", tmp_path / "out"
    folder.mkdir()
    rows = []
    with open(folder / "part-00", "wb") as file:
        for number, name in enumerate(NASTY):
            image = (b"\xff\xd8%d" if "jp" in name.lower() else b"\x89P%d") % number
            write_record(file, image, number)
            rows.append(["part-00", number, name, number, image_digest(image)])
    manifest = {"parts": [{"file": "part-00"}], "class_names": None}
    (folder / "dataset.json").write_text(json.dumps(manifest))
    with open(folder / "images.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([[], *rows])
    write_files(folder, out)
    assert {path.name for path in tmp_path.iterdir()} == {"d", "out"}
    with open(out / "images.csv", newline="", encoding="utf-8") as file:
        names = [name for name, _ in csv.reader(file)][1:]
    assert names == [*NASTY.values()]
    assert [(out / name).read_bytes()[2:] for name in names] == [
        b"%d" % n for n in range(len(names))
    ]
    assert sum(path.is_file() for path in out.rglob("*")) == len(names) + 1


# -- what may be imported from ofrecord itself, with and without OneFlow -----------------------

PUBLIC = """
import sys, ofrecord
assert not {"numpy", "cv2", "pydantic"} & set(sys.modules)
from ofrecord import open_dataset, read_part, read_records, read_rows
dataset = open_dataset(sys.argv[1])
assert [record.row for record in read_records(dataset)] == list(read_rows(sys.argv[1]))
assert [label for _, _, label in read_part(sys.argv[1] + "/part-0")][:2] == [3, 0]
assert not hasattr(ofrecord, "nothing")
"""


def test_public_names(converted):
    """They are there, and nothing is imported before one of them is asked for."""
    result = run_python("-c", PUBLIC, converted)
    assert result.code == 0, result


def test_without_our_packages():
    python = shutil.which("python3.11", path="/usr/local/bin:/usr/bin:/bin")
    if not python:
        pytest.skip("no other Python here")
    code = "import ofrecord.portable, ofrecord; ofrecord.open_dataset"
    last = run_python("-S", "-c", code, python=python).err.splitlines()[-1]
    assert last.startswith("ImportError: ofrecord.open_dataset needs ") and "portable" in last
