"""ofrecord/portable.py: alone under other Pythons, against protobuf's answers, and with damage; what ofrecord exports."""

import csv
import io
import os
import shutil
import struct
import subprocess
import sys

import numpy as np
import pytest
from damage import flip, frame, rewrite_manifest
from helpers import PROJECT, assert_one_error, read_manifest, run_python
from making import change_table, make

from ofrecord.portable import BadDataset, read_dataset, read_part, write_files
from ofrecord.record import OFRecord

PORTABLE = PROJECT / "ofrecord" / "portable.py"
OTHERS = filter(None, map(shutil.which, ("python3.8", "python3.11", "python3.13")))


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


@pytest.mark.parametrize("python", [sys.executable, *OTHERS])
def test_it_runs_alone_and_under_other_pythons(tmp_path, converted, python):
    found = run_python("-c", "import sys; print(sys.executable)", python=python)
    if found.code:
        pytest.skip("pyenv has the name, and no such Python")
    python = found.out.strip()
    copy, out = shutil.copy(PORTABLE, tmp_path / "copy.py"), tmp_path / "out"
    result = run_python("-I", copy, converted, cwd=tmp_path, python=python)
    assert result.code == 0 and not result.err, result
    rows = list(csv.reader(io.StringIO(result.out)))
    assert rows[:2] == [["image", "label"], ["00000030_3.png", "3"]] and len(rows) == 51
    result = run_python("-I", copy, converted, out, python=python)
    assert result.code == 0 and result.out == f"{out}: 50 images\n" and not result.err, result
    for name, image, label, _ in read_dataset(converted):
        assert (out / name).read_bytes() == image and f"_{label}" in name
    left = tmp_path / "left.unfinished"
    left.mkdir()  # by a run that was stopped
    refused = (converted, out, "out exists: "), (converted, tmp_path / "left", f"{left} exists: ")
    for folder, new, text in *refused, (tmp_path, tmp_path / "new", "missing"):
        assert_one_error(run_python("-I", copy, folder, new, python=python), text)
    assert not (tmp_path / "new").exists()


def test_a_reader_that_stops_early_is_no_error(converted):
    reader, writer = os.pipe()
    os.close(reader)  # as `head` does when it has seen enough
    command = [sys.executable, PORTABLE, converted]
    result = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (result.returncode, result.stderr) == (0, b"")


def test_mutations_of_a_part_raise_nothing_else(tmp_path, converted):
    """Half of them in the first record alone, whose length is right: so that it is looked at."""
    whole, path = (converted / "part-0").read_bytes()[:1000], tmp_path / "part-0"
    rng, number, refused = np.random.default_rng(0), 500, 0
    first = whole[: 8 + struct.unpack_from("<q", whole)[0]]
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


def lose(part, records=lambda data: b""):
    """Damages a part, all of it unless ``records`` says what is left."""
    return lambda d: (d / part).write_bytes(records((d / part).read_bytes()))


def other_rows(number):
    return lambda d: change_table(d, lambda rows: rows[:number])


CHANGED = "images.csv: it, or dataset.json, was changed or damaged after it was written"
DAMAGE = {  # the one line, and how a dataset is damaged
    "part-1, record 9: not an OFRecord": lose("part-1", lambda data: data[:-1]),
    "part-2, record 9: images.csv has in its place: part-2,": lose("part-2", lambda data: data[::-1].replace(b"TADI", b"XADI", 1)[::-1]),
    "part-1, record 1: images.csv has in its place: nothing": other_rows(11),
    "part-2, record 0: images.csv has in its place: part-1, 0, ": lose("part-1"),
    ": images.csv has more records than the parts": lose("part-4"),
    CHANGED: lambda d: flip(d / "images.csv", 60),
    CHANGED[12:]: lambda d: (d / "dataset.json").write_text((d / "dataset.json").read_text().replace("50", "51", 1)),
    "dataset.json: maximum recursion": lambda d: (d / "dataset.json").write_bytes(b"[" * 10**5),
    "it has not one x and one labels": lambda d: rewrite_manifest(d, image_feature="x"),
}  # fmt: skip


@pytest.mark.parametrize("text", DAMAGE)
def test_damage_is_one_line_that_names_it(tmp_path, dataset, text):
    DAMAGE[text](dataset)
    assert_one_error(run_python("-I", PORTABLE, dataset), text)
    with pytest.raises(BadDataset):
        write_files(dataset, tmp_path / "new")
    assert not (tmp_path / "new").exists()  # perhaps half of it, as new.unfinished


def test_the_names_of_parts_come_from_counting(dataset):
    parts = [{**part, "file": f"../../{part['file']}"} for part in read_manifest(dataset)["parts"]]
    rewrite_manifest(dataset, parts=[{**parts[0], "file": "part-0"}, *parts[1:]])
    assert len(list(read_dataset(dataset))) == 50


NASTY = {  # an image's name: where its file is
    "../../up.jpg": "up.jpg", "/etc/passwd": "etc/passwd.jpg", "C:\\Windows\\x.jpg": "C_/Windows/x.jpg", "a/../../b.jpg": "a/b.jpg",
    "..": "_.jpg", ".": "record-5/_.jpg", "": "00000006.jpg", "e. ": "e.jpg", "nul": "_nul.jpg", "com1.jpg": "_com1.jpg",
    "a.jpg": "a.jpg", "A.JPG": "A.JPG", "./a.jpg": "record-12/a.jpg", "a.jpg/b.jpg": "record-13/a.jpg/b.jpg",
    "x" * 300: "x" * 60 + ".jpg", "é中.jpeg": "é中.jpeg", "record-17/e.jpg": "record-17/e.jpg", "e.jpg": "record-17/record-17/e.jpg",
    "~/a.jpg": "~/a.jpg", "images.csv": "images.csv.jpg", "a:b.jpg": "a_b.jpg", "con.x/y.jpg": "_con.x/y.jpg",
    "..\\..\\c.jpg": "c.jpg", "a\nc.jpg": "a_c.jpg", "p.jp2": "p.jp2.jpg", "scan.tiff": "scan.tiff.jpg", "-rf.jpg": "-rf.jpg", "x.y/z": "x.y/z.jpg",
}  # fmt: skip


def test_nothing_is_written_outside_or_over_another(tmp_path):
    files = {"a": {f"{number:02d}.png": number for number in range(len(NASTY))}}
    folder = make(tmp_path / "d", files, part_num=1, img_format=".jpg")
    change_table(folder, lambda rows: [row._replace(image=name) for row, name in zip(rows, NASTY, strict=True)])  # fmt: skip
    (tmp_path / "new").mkdir()
    out = tmp_path / "new" / "out"
    write_files(folder, out)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["out"]
    with open(out / "images.csv", newline="", encoding="utf-8") as file:
        names = [name for name, _ in csv.reader(file)][1:]
    assert names == [*NASTY.values()]
    images = [image for _, image, _, _ in read_dataset(folder)]
    assert [(out / name).read_bytes() for name in names] == images
    assert sum(path.is_file() for path in out.rglob("*")) == len(names) + 1


# -- what may be imported from ofrecord itself, with and without OneFlow -----------------------

PUBLIC = """
import sys, ofrecord
assert not {"numpy", "cv2", "pydantic"} & set(sys.modules)
from ofrecord import open_dataset, read_part, read_records, read_rows
dataset = open_dataset(sys.argv[1])
assert [record.row for record in read_records(dataset)] == list(read_rows(sys.argv[1]))
assert [label for _, _, label in read_part(sys.argv[1] + "/part-0")][:2] == [3, 0]
"""


def test_public_names(converted):
    """They are there, and nothing is imported before one of them is asked for."""
    result = run_python("-c", PUBLIC, converted)
    assert result.code == 0, result
    bare = run_python("-S", "-c", "import ofrecord.portable, ofrecord; ofrecord.open_dataset")
    last = bare.err.splitlines()[-1]
    assert last.startswith("ImportError: ofrecord.open_dataset needs ") and "portable" in last
