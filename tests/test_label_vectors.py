"""Labels that are several numbers: multi-hot and float, from the table to OneFlow's decoder and back."""

import json
import shutil

import cv2
import numpy as np
import pytest
from damage import change_record, frame, ofrecord, rewrite_manifest
from helpers import (
    assert_one_error,
    convert,
    read_manifest,
    records,
    run_python,
    snapshot,
    train,
)

from ofrecord.labels import Samples
from ofrecord.manifest import load_manifest, parse_manifest
from ofrecord.record import BadRecord, LabelKind, OFRecord, read_part, read_record

NUMBER = 12  # images
HOT = {  # column: values
    "cat": [index % 2 for index in range(NUMBER)],
    "dog": [int(index < 3) for index in range(NUMBER)],
    "eel": [int(index != 5) for index in range(NUMBER)],
}
FLOAT = {
    "x": [0.1 * index for index in range(NUMBER)],
    "y, mm": [-3.5e8, 1e-40, 16777217, *range(3, NUMBER)],
}
ONE = {"x": [index % 2 for index in range(NUMBER)]}
KINDS = {  # name of the dataset: (columns, options, type)
    "hot": (HOT, [], "int32"),
    "float": (FLOAT, [], "float32"),
    "hot_as_float": (HOT, ["--label_type", "float"], "float32"),
    "one": (ONE, ["--label_type", "float"], "float32"),
}


def label_column(columns):
    """The value of --label_column: names with a comma between them, quoted as in a CSV file."""
    return ",".join(f'"{name}"' if "," in name else name for name in columns)


def write_table(path, columns, delimiter=","):
    header = [f'"{name}"' if "," in name else name for name in columns]
    lines = [delimiter.join(["image", *header])]
    for index, row in enumerate(zip(*columns.values(), strict=True)):
        lines.append(delimiter.join([f"{index}.png", *map(str, row)]))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_images(folder):
    folder.mkdir()
    for index in range(NUMBER):
        assert cv2.imwrite(str(folder / f"{index}.png"), np.full((8, 9), 20 * index, np.uint8))
    return folder


@pytest.fixture
def images(tmp_path):
    """Twelve images, 0.png to 11.png, in ``in/``; number n has the pixels 20 n."""
    write_images(tmp_path / "in")
    return tmp_path


def convert_table(folder, table, *options, target="d"):
    options = ["--label_dir", table, "--save_dir", folder / target, "--part_num", 2, *options]
    return convert("--image_root", folder / "in", *options)


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    """The folder of a dataset of each of KINDS, by name. Read only."""
    folder = tmp_path_factory.mktemp("vectors")
    write_images(folder / "in")
    for name, (columns, options, _) in KINDS.items():
        table = write_table(folder / f"{name}.csv", columns)
        options = ["--label_column", label_column(columns), *options]
        result = convert_table(folder, table, *options, target=name)
        assert result.code == 0, result
    return folder


def labels_of(folder):
    return [label for _, label in records(folder)]


def rows_of(columns, dtype):
    return np.array(list(columns.values())).T.astype(dtype)


# -- written as OneFlow reads it -------------------------------------------------------------

READ = """
import json, sys
from lenet.engine import flow

for folder, number, length, dtype in json.loads(sys.argv[1]):
    reader = flow.nn.OFRecordReader(folder, batch_size=number, data_part_num=2)
    decode = flow.nn.OFRecordRawDecoder("labels", shape=(length,), dtype=getattr(flow, dtype))
    values = decode(reader())
    print(json.dumps([str(values.dtype), values.numpy().tolist()]))
"""


def test_oneflow_reads_the_numbers(datasets):
    asked = [
        (str(datasets / name), NUMBER, len(columns), dtype)
        for name, (columns, _, dtype) in KINDS.items()
    ]
    result = run_python("-c", READ, json.dumps(asked))
    assert result.code == 0, result
    for line, (columns, _, dtype) in zip(result.out.splitlines(), KINDS.values(), strict=True):
        found, values = json.loads(line)
        assert found == f"oneflow.{dtype}"
        np.testing.assert_array_equal(values, rows_of(columns, dtype))


@pytest.mark.parametrize("name", KINDS)
def test_records_and_manifest(datasets, name):
    columns, _, dtype = KINDS[name]
    labels, manifest = labels_of(datasets / name), read_manifest(datasets / name)
    np.testing.assert_array_equal(labels, rows_of(columns, dtype))
    assert all(type(label) is tuple for label in labels)
    assert {type(value) for label in labels for value in label} == {
        int if dtype == "int32" else float
    }
    assert (manifest["label_type"], manifest["label_length"]) == (dtype, len(columns))
    assert (manifest["class_names"], manifest["num_classes"]) == (list(columns), len(columns))
    counts = {str(n): sum(values) for n, values in enumerate(columns.values())}
    assert manifest["label_counts"] == (counts if dtype == "int32" else {})
    assert load_manifest(datasets / name).label_kind == LabelKind(dtype, len(columns))


@pytest.mark.parametrize("name", KINDS)
def test_exported_and_converted_again(datasets, tmp_path, name):
    """labels.csv has the table's own numbers, and the parts are the same, byte for byte."""
    columns, options, dtype = KINDS[name]
    result = ofrecord("export", datasets / name, tmp_path / "in", "--flat")
    assert result.code == 0 and "12 images" in result.out, result
    table = (tmp_path / "in/labels.csv").read_text().splitlines()
    assert table[0] == f"image,{label_column(columns)}"
    if name == "float":
        assert [line.split(",")[1] for line in table[1:4]] == ["0.0", "0.1", "0.2"]
    assert not (tmp_path / "in/classes.txt").exists()
    options = ["--label_column", label_column(columns), *options]
    result = convert_table(tmp_path, tmp_path / "in/labels.csv", *options)
    assert result.code == 0, result
    assert snapshot(tmp_path / "d") == snapshot(datasets / name)


def test_ndarray2ofrecords(tmp_path):
    from img2ofrecord import ndarray2ofrecords

    labels = [3, (1, 0), [0.5, 1, -2], (0.25,), 4]
    with (tmp_path / "part").open("wb") as file:
        for label in labels:
            ndarray2ofrecords(file, "images", b"an image", "labels", label)
    found = [label for _, _, label in read_part(tmp_path / "part")]
    assert found == [3, (1, 0), (0.5, 1.0, -2.0), (0.25,), 4]
    with pytest.raises(
        BadRecord, match="record 1: feature 'labels' is not an int32 list with one label"
    ):
        list(read_part(tmp_path / "part", kind=LabelKind("int32")))
    record = OFRecord()
    record.feature["images"].bytes_list.value.append(b"x")
    record.feature["labels"].float_list.value.extend([1, 2])
    for kind in (LabelKind("float32", 3), LabelKind("int32", 2)):
        with pytest.raises(BadRecord, match=f"is not {kind}"):
            read_record(record.SerializeToString(), kind=kind)


# -- from a table ----------------------------------------------------------------------------


def test_samples_keep_their_vectors():
    vectors = np.arange(6, dtype=np.float32).reshape(3, 2)
    samples = Samples("abc", [0] * 3, ["x", "y"], None, vectors)
    assert samples[1:] == [("b", [2.0, 3.0]), ("c", [4.0, 5.0])]
    taken = samples.take([2, 0])
    assert taken[:] == [("c", [4.0, 5.0]), ("a", [0.0, 1.0])] and taken.class_names == ["x", "y"]


@pytest.mark.parametrize("delimiter", [",", "\t", ";"])
def test_split_shuffled_and_skipped(images, delimiter):
    """Each image keeps its own numbers, whatever becomes of the order."""
    columns = {"a": list(range(NUMBER)), "b": [0.5] * NUMBER}
    table = write_table(images / "labels.txt", columns, delimiter)
    (images / "in/7.png").write_bytes(b"no image")
    options = ["--label_column", "A, b", "--skip_bad", "--shuffle", "--val_fraction", 0.25]
    result = convert_table(images, table, *options)
    assert result.code == 0 and "columns with one value in all images: b\n" in result.err, result
    assert "single class" not in result.err and "without images" not in result.err
    found = records(images / "d") + records(images / "d_val")
    assert len(records(images / "d_val")) == 3
    assert sorted(label for _, label in found) == [(n, 0.5) for n in range(NUMBER) if n != 7]
    for data, (number, _) in found:
        assert cv2.imdecode(np.frombuffer(data, np.uint8), 0)[0, 0] == 20 * number


@pytest.mark.parametrize(
    "values, dtype",
    [
        (["0", "1", "1.0", "+1", "00", "0."], "int32"),
        (["0", "1", "2"], "float32"),
        (["0", "1", "-1"], "float32"),
        (["0", "1e0", ".5"], "float32"),
    ],
)
def test_which_type_it_is(images, values, dtype):
    columns = {"a": (values * NUMBER)[:NUMBER], "b": [0] * NUMBER}
    table = write_table(images / "labels.csv", columns)
    result = convert_table(images, table, "--label_column", "a,b")
    assert result.code == 0 and f"labels in 'a', 'b' ({dtype})\n" in result.err, result
    assert read_manifest(images / "d")["label_type"] == dtype
    assert [label[0] for label in labels_of(images / "d")] == list(map(float, columns["a"]))


def test_a_whole_header_with_a_comma_is_one_column(images):
    lines = [f"{index}.png,{index % 3},1,0\n" for index in range(NUMBER)]
    (images / "labels.csv").write_text('image,"a,b",a,b\n' + "".join(lines))
    result = convert_table(images, images / "labels.csv", "--label_column", "a,b")
    assert result.code == 0, result
    assert labels_of(images / "d") == [index % 3 for index in range(NUMBER)]
    result = convert_table(images, images / "labels.csv", "--label_column", '"a,b",b')
    assert result.code == 0, result
    assert labels_of(images / "d") == [(index % 3, 0) for index in range(NUMBER)]


def test_one_column_of_fractions_needs_the_option(images):
    table = write_table(images / "labels.csv", {"label": [0, 1, 0.75, *range(9)]})
    assert_one_error(convert_table(images, table), "line 4", "is not an integer", started=True)
    result = convert_table(images, table, "--label_type", "float")
    assert result.code == 0 and labels_of(images / "d")[2] == (0.75,), result


CELLS = [
    "",
    "x",
    "NaN",
    "nan",
    "inf",
    "-Infinity",
    "1e39",
    "-1" + "0" * 400,
    "1_0",
    "٣",
    "0x1",
    "1,5",
]


@pytest.mark.parametrize("cell", CELLS)
def test_cells_that_are_no_float32(images, cell):
    lines = [f"{index}.png;{index};1\n" for index in range(NUMBER)]
    lines[4] = f"4.png;4;{cell}\n"
    (images / "labels.csv").write_text("image;a;b\n" + "".join(lines), encoding="utf-8")
    result = convert_table(images, images / "labels.csv", "--label_column", "a,b")
    text = f"labels.csv, line 6: the label {cell[:60]!r} in column 'b' is not a number"
    assert_one_error(result, text, started=True)
    assert ("(write 0.5, not 0,5)" in result.err) == (cell == "1,5"), result
    assert not (images / "d").exists()


def test_hundreds_of_columns(images):
    names = [f"column {number} with a long name" for number in range(300)]
    table = write_table(images / "labels.csv", {name: [0, 1] * (NUMBER // 2) for name in names})
    result = convert_table(images, table, "--label_column", ",".join(names))
    assert result.code == 0, result
    assert labels_of(images / "d")[1] == (1,) * 300


def test_each_problem_of_a_table_has_a_line(images):
    text = "image,a,b\n0.png,x,\n1.png,1,2\n1.png,1,2\n2.png,1\n"
    (images / "labels.csv").write_text(text)
    result = convert_table(images, images / "labels.csv", "--label_column", "a,b")
    assert result.code == 2, result
    errors = [line.split("labels.csv")[1] for line in result.err.splitlines() if "error: " in line]
    assert len(errors) == 5, result
    starts = [", line 2: the label '' in column 'b' ", ", line 2: the label 'x' in column 'a' "]
    starts += [", line 4: duplicate image '1.png'", ", line 5: 2 columns, but the header has 3"]
    assert all(map(str.startswith, errors, starts)), result


REFUSED = {  # options: the one line
    "--label_column a,z": "must have the column 'z'; it has 'image', 'a', 'b'",
    "--label_column a,,b": "must have the column ''",
    "--label_column a,A": "--label_column a,A names a column twice",
    "--label_column \n": "must have the column ''",
    "--label_column a,b --classes c.txt": "--classes is for classes, not for numbers in",
    "--label_column a --label_type float --classes c.txt": "--classes is for classes",
    "--label_type float": "must have the column 'label'",
    "--label_type double": "label_type: it should be 'auto' or 'float'",
}


@pytest.mark.parametrize("options, text", REFUSED.items(), ids=map(repr, REFUSED))
def test_options_that_are_refused(images, options, text):
    write_table(images / "labels.csv", {"a": HOT["cat"], "b": HOT["dog"]})
    (images / "c.txt").write_text("zero\none\n")
    result = convert_table(
        images, images / "labels.csv", *options.replace("c.txt", str(images / "c.txt")).split(" ")
    )
    assert_one_error(result, text, started=True)
    assert not (images / "d").exists()


@pytest.mark.parametrize("options", [["--label_column", "a,b"], ["--label_type", "float"]])
@pytest.mark.parametrize(
    "name, text", [("l.txt", '{"0.png": 1}\n'), ("l.lst", "0\t1\t0.png\n"), ("m.txt", "0.png 1\n")]
)
def test_only_tables_have_columns(images, options, name, text):
    (images / name).write_text(text)
    result = convert_table(images, images / name, *options)
    assert_one_error(result, f"{name}, line 1: the header must have the column", started=True)


def test_class_folders_have_no_columns(images):
    options = ["--class_folders", "--label_type", "float", "--save_dir", images / "d"]
    result = convert("--image_root", images / "in", *options)
    assert_one_error(result, "are for a table, not for --class_folders")


# -- commands ----------------------------------------------------------------------------------


@pytest.fixture
def copies(datasets, tmp_path):
    """The datasets again, to damage."""
    for name in KINDS:
        shutil.copytree(datasets / name, tmp_path / name)
    return tmp_path


def set_list(kind, values):
    """For change_record: another label."""

    def change(feature):
        feature["labels"].Clear()
        getattr(feature["labels"], kind).value.extend(values)

    return change


@pytest.mark.parametrize(
    "name, kind, values, text",
    [
        ("hot", "int32_list", [1, 0], "is not an int32 list of length 3"),
        ("hot", "int32_list", [1], "is not an int32 list of length 3"),
        ("hot", "int32_list", [], "is not an int32 list of length 3"),
        ("hot", "float_list", [1, 0, 1], "is not an int32 list of length 3"),
        ("hot", "int64_list", [1, 0, 1], "is not an int32 list of length 3"),
        ("one", "float_list", [1, 0], "is not a float32 list of length 1"),
        ("one", "int32_list", [1], "is not a float32 list of length 1"),
    ],
)
def test_check_and_show_find_a_label_of_another_kind(copies, name, kind, values, text):
    change_record(copies / name, set_list(kind, values))
    result = ofrecord("check", copies / name)
    assert result.code == 2 and f"part-0, record 0: feature 'labels' {text}\n" in result.err, result
    assert_one_error(ofrecord("show", copies / name), f"part-0, record 0: feature 'labels' {text}")


def test_a_class_dataset_has_one_label_a_record(dataset):
    change_record(dataset, set_list("float_list", [1.0]))
    result = ofrecord("check", dataset)
    assert "record 0: feature 'labels' is not an int32 list with one label\n" in result.err, result


def test_check_counts_the_columns(copies):
    for name in KINDS:
        result = ofrecord("check", copies / name)
        assert result.code == 0 and "12 records" in result.out, result
    change_record(copies / "hot", set_list("int32_list", [1, 1, 1]))  # it was 0, 1, 1
    result = ofrecord("check", copies / "hot")
    assert_one_error(result, "label 0 has 7 records, but dataset.json lists 6")


def test_show(datasets, tmp_path):
    shown = {}
    for name in KINDS:
        sheet = tmp_path / f"{name}.png"
        result = ofrecord("show", datasets / name, "--sheet", sheet)
        assert result.code == 0 and cv2.imread(str(sheet)).shape[0] > 100, result
        shown[name] = result.out.splitlines()
    assert "12 gray PNG images 9x8, 3 int32 label columns, in 2 parts" in shown["hot"][0]
    assert shown["hot"][2:5] == [
        f"  cat   6  {'█' * 22}",
        f"  dog   3  {'█' * 11}",
        f"  eel  11  {'█' * 40}",
    ]
    assert "2 float32 label columns, in" in shown["float"][0]
    assert shown["float"][2] == "      x  mean 0.55, min 0, max 1.1"
    assert shown["float"][3].startswith("  y, mm  mean -2.777e+07, min -3.5e+08, max 1.678e+07")
    assert "1 float32 label column, in" in shown["one"][0]
    # A row for each column, with the images that have it; of floats one row, with all.
    rows = {"hot": [[n for n in range(NUMBER) if values[n]] for values in HOT.values()]}
    for name, expected in {**rows, "float": [range(NUMBER)]}.items():
        sheet = cv2.imread(str(tmp_path / f"{name}.png"), 0)
        assert sheet.shape == (40 + 134 * len(expected), 1200)
        for row, numbers in enumerate(expected):
            found = sheet[40 + 134 * row + 40 + 46, 50::100]
            pixels = [*(20 * n for n in numbers), *[255] * (12 - len(numbers))]
            np.testing.assert_allclose(found, pixels, atol=2)


def test_show_where_no_image_has_a_column(images, tmp_path):
    columns = {"a": [0] * NUMBER, "b": [0] * NUMBER}
    table = write_table(images / "labels.csv", columns)
    assert convert_table(images, table, "--label_column", "a,b").code == 0
    result = ofrecord("show", images / "d")
    assert result.code == 0 and "\n  a  0\n  b  0\n" in result.out, result


@pytest.mark.parametrize("name", KINDS)
def test_index(copies, name):
    """Parts without their manifest: all of it is found again, but the columns' names."""
    before = read_manifest(copies / name)
    (copies / name / "dataset.json").unlink()
    assert ofrecord("check", copies / name).code == 0
    result = ofrecord("index", copies / name)
    assert result.code == 0, result
    after = read_manifest(copies / name)
    assert after["class_names"] == [str(n) for n in range(before["label_length"])]
    changed = {field for field in before if before[field] != after[field]}
    assert changed == {"class_names", "sha256"}
    assert ofrecord("check", copies / name).code == 0


def test_integers_of_another_converter(images, tmp_path):
    """int64, and other values than 0 and 1."""
    (tmp_path / "d").mkdir()
    with (tmp_path / "d/part-0").open("wb") as file:
        for label in ([5, 0], [-2, 0], [0, 2**40]):
            record = OFRecord()
            record.feature["images"].bytes_list.value.append((images / "in/3.png").read_bytes())
            record.feature["labels"].int64_list.value.extend(label)
            file.write(frame(record))
    result = ofrecord("index", tmp_path / "d")
    assert result.code == 0 and "2 int64 label columns" in result.out, result
    assert read_manifest(tmp_path / "d")["label_counts"] == {"0": 2, "1": 1}
    assert ofrecord("check", tmp_path / "d").code == 0
    assert ofrecord("export", tmp_path / "d", tmp_path / "out", "--flat").code == 0
    table = (tmp_path / "out/labels.csv").read_text().splitlines()
    assert table[0] == "image,0,1" and table[3] == f"00000002.png,0,{2**40}"


@pytest.mark.parametrize(
    "kind, values, text",
    [
        (
            "int32_list",
            [1, 0],
            "some labels are an int32 list of length 2 and some an int32 list of length 3",
        ),
        (
            "int32_list",
            [1],
            "some labels are an int32 list of length 3 and some an int32 list with one label",
        ),
        (
            "float_list",
            [1, 0, 1],
            "some labels are a float32 list of length 3 and some an int32 list of length 3",
        ),
    ],
)
def test_index_refuses_labels_of_two_kinds(copies, kind, values, text):
    change_record(copies / "hot", set_list(kind, values))
    (copies / "hot/dataset.json").unlink()
    for action in ("check", "index"):
        result = ofrecord(action, copies / "hot")
        assert_one_error(result, f"{copies / 'hot'}: {text}")
    assert not (copies / "hot/dataset.json").exists()


def test_merge(datasets, images):
    lines = {name: values[::-1] for name, values in HOT.items()}
    for name, columns in (
        ("same", lines),
        ("other", {**lines, "eel": lines["cat"]}),
        ("order", dict(reversed(lines.items()))),
    ):
        table = write_table(images / f"{name}.csv", columns)
        assert (
            convert_table(images, table, "--label_column", ",".join(columns), target=name).code == 0
        )
    result = ofrecord("merge", datasets / "hot", images / "same", images / "both", "--part_num", 3)
    assert result.code == 0, result
    assert labels_of(images / "both") == labels_of(datasets / "hot") + labels_of(images / "same")
    manifest = read_manifest(images / "both")
    assert manifest["num_records"] == 24 and manifest["class_names"] == list(HOT)
    assert manifest["label_counts"] == {"0": 12, "1": 6, "2": 22}
    assert ofrecord("check", images / "both").code == 0
    for other, text in (
        (images / "order", "their labels are from different columns"),
        (
            datasets / "float",
            "their labels are an int32 list of length 3 and a float32 list of length 2",
        ),
    ):
        result = ofrecord("merge", datasets / "hot", other, images / "new")
        assert_one_error(result, f"{datasets / 'hot'} and {other} do not fit together: {text}")
        assert not (images / "new").exists()


def test_merge_with_a_class_dataset(datasets, images):
    table = write_table(images / "labels.csv", {"label": HOT["cat"]})
    assert convert_table(images, table).code == 0
    result = ofrecord("merge", images / "d", datasets / "hot", images / "new")
    assert_one_error(
        result,
        "do not fit together: their labels are an int32 list with one label and an int32 list of length 3",
    )


def test_export_into_class_folders_is_refused(datasets, tmp_path):
    result = ofrecord("export", datasets / "hot", tmp_path / "out")
    assert_one_error(result, str(datasets / "hot"), "give --flat")
    assert not (tmp_path / "out").exists()


# -- the manifest ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, fields",
    [
        ("hot", {"label_length": 2}),
        ("hot", {"label_length": None}),
        ("hot", {"label_length": 2**20 + 1}),
        ("hot", {"label_type": "float32"}),
        ("hot", {"label_counts": {}}),
        ("hot", {"label_counts": {"0": 6, "1": 3}}),
        ("hot", {"label_counts": {"0": 6, "1": 3, "-1": 11}}),
        ("hot", {"class_names": None}),
        ("hot", {"num_classes": 4}),
        ("float", {"label_type": "int32"}),
        ("float", {"label_length": None, "label_counts": {"0": 12}}),
    ],
)
def test_manifests_that_do_not_agree_with_themselves(copies, name, fields):
    rewrite_manifest(copies / name, **fields)
    assert_one_error(ofrecord("show", copies / name), "dataset.json: ")


def test_manifests_without_a_label_length_are_read(dataset):
    """Those of earlier versions; a run that was started with one knows the dataset by its digest."""
    fields = read_manifest(dataset)
    assert fields.pop("label_length") is None and fields["label_type"] == "int32"
    assert fields.pop("mixed_split_ids") == []
    path = dataset / "dataset.json"
    new = parse_manifest(path.read_text())
    path.write_text(json.dumps(fields))
    rewrite_manifest(dataset)
    assert "label_length" not in read_manifest(dataset)
    old = load_manifest(dataset)
    assert old == new and old.label_kind == LabelKind("int32")
    assert old.digest == read_manifest(dataset)["sha256"]
    assert ofrecord("check", dataset).code == 0


# -- training ----------------------------------------------------------------------------------


def test_the_trainer_refuses_them(datasets, converted, tmp_path):
    options = ["--steps", 1, "--run_dir", tmp_path / "run"]
    result = train(datasets / "hot", *options)
    assert_one_error(
        result,
        f"{datasets / 'hot'}: a label is an int32 list of length 3, and LeNet learns classes",
    )
    result = train(converted, *options, "--eval_dataset_dir", datasets / "one")
    assert_one_error(
        result,
        f"{datasets / 'one'}: a label is a float32 list of length 1, and LeNet learns classes",
    )
    assert not (tmp_path / "run").exists()


def test_fractions_as_class_names_are_a_warning(images):
    table = write_table(
        images / "t.csv", {"label": [f"{0.05 * index:.2f}" for index in range(NUMBER)]}
    )
    result = convert_table(images, table)
    assert result.code == 0 and "numbers with fractions are names of classes here" in result.err
    assert "--label_type float" in result.err
    table = write_table(images / "u.csv", {"label": ["a", "b"] * (NUMBER // 2)})
    assert "numbers with" not in convert_table(images, table, target="e").err


def test_integers_that_float32_rounds_are_a_warning(images):
    for first, warned in ((2**24, True), (100, False)):
        numbers = {"x": [first + index for index in range(NUMBER)], "y": [0.5] * NUMBER}
        table = write_table(images / f"{first}.csv", numbers)
        result = convert_table(images, table, "--label_column", "x,y", target=f"d{first}")
        assert result.code == 0 and ("above 16,777,216 are rounded" in result.err) == warned, result


def test_two_columns_of_one_name(images):
    (images / "t.csv").write_text("image,x,x\n0.png,1,2\n")
    result = convert_table(images, images / "t.csv", "--label_column", "x")
    assert_one_error(result, "there are two columns 'x'")


def test_rows_that_are_empty_but_for_delimiters_and_names_with_spaces(images):
    (images / "in" / "0.png").rename(images / "in" / " 0.png")
    (images / "t.csv").write_text("image,label\n 0.png,1\n,,\n\n1.png,2\n")
    result = convert_table(images, images / "t.csv")
    assert_one_error(result, "line 3: 3 columns, but the header has 2")
    (images / "t.csv").write_text("image,label\n 0.png,1\n\n1.png,2\n")
    assert convert_table(images, images / "t.csv").code == 0
