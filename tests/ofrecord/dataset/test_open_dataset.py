"""Datasets on disk: whole, damaged, of strangers, of the version before; records and statistics."""

import csv
import hashlib
import io
import json
import os
import pickle
import random
import shutil
import struct
import sys

import numpy as np
import pytest
from damage import MANIFEST, change_record, cut, flip, frame, ofrecord, rewrite_manifest
from helpers import assert_one_error, convert, read_manifest, run_python, snapshot

from ofrecord.dataset.images_csv import Row, csv_line, read_rows, write_rows
from ofrecord.dataset.manifest import digest_of, part_sizes
from ofrecord.dataset.open_dataset import dataset_in_use, open_dataset, read_records
from ofrecord.dataset.statistics import EncodedImage, ImageStatistics
from ofrecord.record import BadRecord, OFRecord, read_part, read_record
from runtime.cli import InputError

HIDDEN = ".img2ofrecord"


def problem_of(folder, **options):
    """What open_dataset says of a dataset, or None."""
    try:
        open_dataset(str(folder), **options)
    except InputError as error:
        (line,) = error.lines()
        return line


# -- compared with its manifest -----------------------------------------------------------


def test_a_whole_dataset(converted):
    dataset = open_dataset(str(converted))
    assert dataset.records_per_rank(1) == [50] and dataset.records_per_rank(3) == [20, 20, 10]
    names = [[part.file for part in parts] for parts in dataset.parts_per_rank(3)]
    assert names == [["part-0", "part-1"], ["part-2", "part-3"], ["part-4"]]
    files = [converted / part.file for part in dataset.manifest.parts]
    found = [(image, label) for file in files for _, image, label in read_part(file)]
    rows = [(row.sha256, row.label) for row in read_rows(str(converted))]
    assert rows == [(hashlib.sha256(image).hexdigest()[:16], label) for image, label in found]
    assert len(rows) == 50


def clear(folder):
    for path in folder.iterdir():
        path.unlink()


def hide(folder, *names):
    """Leave files in the hidden folder, as a commit does that is killed."""
    (folder / HIDDEN).mkdir()
    for name in names:
        (folder / name).rename(folder / HIDDEN / name)


CHANGES = {
    "a part flipped": (lambda d: flip(d / "part-3", 99), "part-3 was changed or damaged"),
    "the table flipped": (lambda d: flip(d / "images.csv", 9), "images.csv was changed or damaged"),
    "a part cut off": (lambda d: cut(d / "part-3", -1), "has 2,908 bytes and should have 2,909"),
    "a part missing": (lambda d: (d / "part-3").unlink(), "part-3 is missing"),
    "the table missing": (lambda d: (d / "images.csv").unlink(), "images.csv is missing"),
    "a part too many": (lambda d: (d / "part-5").touch(), "part-5 does not belong to this dataset"),
    "a folder for a part": (lambda d: (d / "part-9").mkdir(), "part-9 does not belong"),
    "no manifest": (lambda d: (d / MANIFEST).unlink(), "has part files but no dataset.json"),
    "a manifest flipped": (lambda d: flip(d / MANIFEST, 40), "dataset.json: "),
    "a hidden folder": (lambda d: clear(d) or hide(d), "interrupted or is still running"),
    "a mark": (lambda d: hide(d, MANIFEST), "at its very end: the same command finishes it"),
    "negative labels": (
        lambda d: rewrite_manifest(d, label_counts={"-1": 50}),
        "labels below 0, which are no classes",
    ),
    "no folder": (shutil.rmtree, "does not exist; make one first with img2ofrecord.py"),
    "an empty folder": (clear, "there is no dataset.json"),
    "a file": (lambda d: shutil.rmtree(d) or d.write_text(""), "is not a folder"),
    "a link to nothing": (lambda d: shutil.rmtree(d) or d.symlink_to("x"), "is a link to nothing"),
}


@pytest.mark.parametrize("change, text", CHANGES.values(), ids=CHANGES)
def test_what_is_not_as_the_manifest_says(dataset, change, text):
    change(dataset)
    assert text in problem_of(dataset)
    assert dataset.name in problem_of(dataset)


def test_a_rank_hashes_its_own_parts(dataset):
    flip(dataset / "part-3", 99)
    assert problem_of(dataset, rank=0, world_size=3) is None
    assert "part-3" in problem_of(dataset, rank=1, world_size=3)
    assert problem_of(dataset, check_hashes=False) is None


def test_a_dataset_of_the_version_before(dataset, converted):
    """It is one line where it is read, and replaced by the converter, but for what is not its own."""
    make_old(dataset)
    for action in "check", "show":
        said = ofrecord(action, dataset)
        assert_one_error(said, "an earlier version wrote this dataset: convert")
    assert "ofrecord index" in problem_of(dataset)
    (dataset / "images.csv").write_text("mine")
    before = snapshot(dataset)
    assert_one_error(convert("--save_dir", dataset), "does not belong to its dataset (images.csv)")
    assert snapshot(dataset) == before
    (dataset / "images.csv").unlink()
    assert convert("--save_dir", dataset, "--part_num", 7).code == 0
    assert convert("--save_dir", dataset).code == 0
    assert snapshot(dataset) == snapshot(converted)


def make_old(folder):
    """Make a dataset one of layout 2."""
    fields = read_manifest(folder)
    (folder / "images.csv").unlink()
    for name in "images_csv", "sha256":
        del fields[name]
    fields.update(layout=2, max_value=None, label_length=None, split_ids=[], mixed_split_ids=[])
    (folder / MANIFEST).write_text(json.dumps({**fields, "sha256": digest_of(fields)}))


@pytest.mark.parametrize("whole", [True, False])
def test_a_commit_of_the_version_before_that_was_killed(dataset, converted, whole):
    make_old(dataset)
    hide(dataset, "part-0", "part-3", MANIFEST)
    if not whole:
        cut(dataset / HIDDEN / MANIFEST, -9)
        (dataset / HIDDEN / "part-0.json").write_text("{}")
        for path in dataset.glob("part-*"):
            path.rename(dataset / HIDDEN / path.name)
    result = convert("--save_dir", dataset)
    assert result.code == 0 and whole == ("very end is finished" in result.err), result
    assert snapshot(dataset) == snapshot(converted)


@pytest.mark.skipif(not shutil.which("setpriv"), reason="no setpriv, which gives up root's rights")
@pytest.mark.parametrize("path", ["", MANIFEST, "part-2", "images.csv"])
def test_what_may_not_be_read_is_one_line(dataset, path):
    os.chmod(dataset / path, 0)
    rights = "--bounding-set=-dac_override,-dac_read_search"
    words = ["setpriv", rights] if not os.getuid() else ["env"]
    for action in ["-m ofrecord check", "-m ofrecord show", "img2ofrecord.py --save_dir"]:
        command = [*words[1:], sys.executable, *action.split(), dataset]
        result = run_python(*command, python=words[0])
        if action.startswith("img2") and path in ("part-2", "images.csv"):  # they are replaced
            assert result.code == 0, result
            return
        assert result.code == 2 and "Permission denied" in result.err, result
        assert "Traceback" not in result.err, result
        assert "check" in action or result.err.count("\n") == 1, result
    os.chmod(dataset / path, 0o755)


def test_a_reader_and_a_converter_at_once(dataset):
    before = snapshot(dataset)
    with dataset_in_use(str(dataset)), dataset_in_use(str(dataset)):
        assert_one_error(convert("--save_dir", dataset), "a training, is using", str(dataset))
    assert snapshot(dataset) == before
    with dataset_in_use(None), dataset_in_use(str(dataset / "nowhere")):
        pass


# -- manifests of strangers ---------------------------------------------------------------

ODD = [
    *(None, True, False, 0, 1, -1, 2**31, 2**63, 10**30, -(10**30), 0.5, 1e308),
    *("", "x", "1", "../victim", "/etc/passwd", "part-0/../../victim", "part-9", "\0", "\ud800"),
    *("x" * 5000, "\n", "part-٣", [], [0], [None], [[]], [1e308] * 3, {}, {"x": 1}, {"0": -50}),
    *([{}], [[0] * 256], [["x"] * 256], ["a"] * 10, list(range(10)), [{"file": "../victim"}]),
]


def places(value, path=()):
    """Every place in a value of JSON, as the keys and indices that lead to it; of lists the first."""
    if isinstance(value, (dict, list)):
        inner = value.items() if isinstance(value, dict) else enumerate(value[:1])
        for key, each in inner:
            yield (*path, key)
            yield from places(each, (*path, key))


def changed(fields, path, value):
    """A copy of the fields with another value in one place."""
    fields = json.loads(json.dumps(fields))
    inner = fields
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return fields


def test_odd_values_in_every_place(dataset):
    """Each is refused in one line, or it is a value that may be there; nothing is written because of it."""
    fields, rng, refused = read_manifest(dataset), random.Random(0), 0
    whole = shutil.copytree(dataset, dataset.parent / "whole")
    (dataset.parent / "victim").write_text("mine")
    for number, path in enumerate(places(fields)):
        for value in rng.sample(ODD, 6):
            rewrite_manifest(dataset, **changed(fields, path, value))
            problem = problem_of(dataset)
            assert problem is None or len(problem) < 600
            refused += problem is not None
        if number % 4 == 0:
            result = convert("--save_dir", dataset, "--part_num", 2)
            assert result.code in (0, 2) and result.err.count(": error: ") <= 1, (path, value)
            assert (dataset.parent / "victim").read_text() == "mine"
            shutil.rmtree(dataset)
            shutil.copytree(whole, dataset)
    assert refused > 200


FILES = {
    "empty": "",
    "no JSON": "{\0",
    "nested": "[" * 200_000,
    "a number": "9" * 10_000,
    "NaN": "NaN",
    "a list": "[1]",
    "a key twice": '{"layout": 3, "layout": 3, "sha256": ""}',
    "no parts": json.dumps({"layout": 2, "sha256": digest_of({"layout": 2})}),
    "large": " " * (2**26 + 1),
}


@pytest.mark.parametrize("text", FILES.values(), ids=FILES)
def test_files_that_are_no_manifest(dataset, text):
    (dataset / MANIFEST).write_text(text)
    assert MANIFEST in problem_of(dataset)
    before = snapshot(dataset)
    assert_one_error(convert("--save_dir", dataset), MANIFEST)
    assert snapshot(dataset) == before


@pytest.mark.parametrize("file", ["../victim", "/etc/hostname", "part-0\n"])
def test_no_name_is_read_from_a_staged_manifest(dataset, file):
    """A conversion that seems to have been killed in its commit, with names that lead elsewhere."""
    (dataset.parent / "victim").write_text("mine")
    parts = read_manifest(dataset)["parts"]
    parts[1]["file"] = file
    rewrite_manifest(dataset, parts=parts)
    hide(dataset, MANIFEST)
    result = convert("--save_dir", dataset)
    assert result.code in (0, 2) and "Traceback" not in result.err, result
    assert (dataset.parent / "victim").read_text() == "mine"


@pytest.mark.parametrize("name", [f"{HIDDEN}/thesis.txt", HIDDEN, "part-9", f"{HIDDEN}/part-1/x"])
@pytest.mark.parametrize("make", ["a file", "a pipe", "a link", "a file and a mark"])
def test_what_is_not_of_the_dataset_is_refused(dataset, tmp_path, name, make):
    """Wherever it is, and whatever."""
    (tmp_path / "victim").mkdir()
    (dataset / name).parent.mkdir(exist_ok=True, parents=True)
    if make == "a pipe":
        os.mkfifo(dataset / name)
    elif make == "a link" and name != "part-9":
        (dataset / name).symlink_to(tmp_path / "victim")
    else:
        (dataset / name).write_text("mine")
    if "mark" in make and name == f"{HIDDEN}/thesis.txt":
        (dataset / MANIFEST).rename(dataset / HIDDEN / MANIFEST)
    before = snapshot(dataset)
    assert_one_error(convert("--save_dir", dataset), name.split("/")[:2][-1])
    assert snapshot(dataset) == before and os.path.lexists(dataset / name)
    assert not any((tmp_path / "victim").iterdir())


# -- records ------------------------------------------------------------------------------


def record_of(label, image=b"an image", kind="int32_list"):
    """A record as it stands in a part file."""
    record = OFRecord()
    record.feature["images"].bytes_list.value.append(image)
    getattr(record.feature["labels"], kind).value.extend(label)
    return frame(record)


def length(*sizes):
    return struct.pack(f"<{len(sizes)}q", *sizes)


NO_LABEL = "record 1: feature 'labels' is not an int32 list with one label"
PARTS = {  # the bytes of a part file; what is wrong with it
    "empty": (b"", "record 0: the part file is empty"),
    "half a length": (record_of([1]) + b"\1\0", "record 1: the file ends inside"),
    "a length of zero": (length(0), "record 0: its length is 0 bytes"),
    "a negative length": (length(-1), "record 0: its length is -1 bytes"),
    "a long length": (length(2**40), "its length is 1,099,511,627,776 bytes, and the file ends"),
    "TFRecord": ((length(50) + b"crc!" + b"a" * 50 + b"crc!") * 2, "record 0: not an OFRecord"),
    "no record": (length(2) + b"\xff\xff", "record 0: not an OFRecord"),
    "two labels": (record_of([1]) + record_of([1, 2]), NO_LABEL),
    "no label": (record_of([1]) + record_of([]), NO_LABEL),
    "a float": (record_of([1]) + record_of([0.5], kind="float_list"), NO_LABEL),
    "no image": (record_of([1], b""), "feature 'images' is not a bytes list with one image"),
}


@pytest.mark.parametrize("data, text", PARTS.values(), ids=PARTS)
def test_parts_that_are_no_records(tmp_path, data, text):
    (tmp_path / "part").write_bytes(data)
    with pytest.raises(BadRecord) as caught:
        list(read_part(tmp_path / "part"))
    assert text in str(caught.value)


def test_records_of_other_converters(tmp_path):
    for kind in "int32", "int64":
        record = record_of([3], kind=f"{kind}_list")[8:]
        assert read_record(record) == (b"an image", 3, kind)
        with pytest.raises(BadRecord, match="no feature 'x', only"):
            read_record(record, image_feature="x")


def test_a_damaged_record_is_an_error_that_names_it(dataset):
    change_record(dataset, lambda feature: feature["labels"].int32_list.value.append(1))
    text = "part-0, record 0: .*ofrecord check .* lists all problems"
    with pytest.raises(InputError, match=text):
        list(read_records(open_dataset(str(dataset))))
    assert len(list(read_part(dataset / "part-1"))) == 10


def test_part_sizes():
    assert part_sizes(50, 7) == [8] + [7] * 6 and part_sizes(3, 3) == [1, 1, 1]


@pytest.mark.parametrize("name", ["a.png", "x\ry.png", 'a\n"b",c\r\n', "\r", " é猫\x85\u2028", ""])
def test_a_table_of_odd_names(tmp_path, name):
    """It is as the csv module writes it, but for what that of Python 3.10 forgets to put in quotes."""
    rows = [Row("part-0", index, name, 3, "b4004edbe7f63934") for index in range(2500)]
    with open(tmp_path / "images.csv", "wb") as file:
        write_rows(file, rows)
    assert list(read_rows(str(tmp_path))) == rows
    written = io.StringIO()
    csv.writer(written, lineterminator="\n").writerow(rows[0])
    if "\r" not in name or "\n" in name:
        assert csv_line(rows[0]) + "\n" == written.getvalue()
    assert csv_line(["", "a", 1]) == ",a,1"


@pytest.mark.parametrize("line", ["", "part-0,x,a.png,1,00", "part-0,0,a.png", '"open'])
def test_tables_of_strangers(tmp_path, line):
    columns = ",".join(Row._fields) + "\n" if line else "part,record\n"
    (tmp_path / "images.csv").write_text(columns + line)
    with pytest.raises(InputError, match="images.csv, line "):
        list(read_rows(str(tmp_path)))


# -- statistics ---------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1100, 1000), (1100, 1000, 3), (1, 1, 3)])
def test_statistics_of_pixels(shape):
    """Exact, also across the blocks in which they are counted, and after a way through a pipe and JSON."""
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    statistics = ImageStatistics()
    for _ in range(2):
        part = ImageStatistics()
        part.add(EncodedImage(b"", shape[1::-1], pixels))
        part.add(EncodedImage(b"", shape[1::-1], pixels, "BMP to PNG", True), measured=False)
        statistics.merge(json.loads(json.dumps(pickle.loads(pickle.dumps(part)).state())))
    channels = pixels.reshape(-1, shape[2] if len(shape) == 3 else 1).T[::-1]  # R, G, B
    counts = [2 * np.bincount(values, minlength=256) for values in channels]
    fields = statistics.manifest_fields()
    np.testing.assert_array_equal(fields["histogram"], counts)
    np.testing.assert_allclose(fields["mean"], channels.mean(axis=1), atol=1e-5)
    np.testing.assert_allclose(fields["std"], channels.std(axis=1), atol=1e-5)
    assert (fields["width"], fields["num_measured"], statistics.num_images) == (shape[1], 2, 4)
    assert (statistics.num_several, statistics.reencode_reasons) == (2, {"BMP to PNG": 2})
