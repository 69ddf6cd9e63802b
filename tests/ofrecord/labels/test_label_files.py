"""Label files in every form, as programs and people write them: right, or one line that says what to do."""

import json

import pytest
from reading import assert_error, assert_one, make_files, read


@pytest.fixture
def images(tmp_path):
    """Twelve files, 0.png to 11.png, in ``in/``."""
    make_files(tmp_path / "in", [f"{index}.png" for index in range(12)])
    return tmp_path


def read_text(capsys, folder, text, name="labels.csv", **options):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
    return read(capsys, folder / "in", label_dir=path, **options)


def read_column(capsys, folder, labels, **options):
    rows = "".join(f"{index}.png,{label}\n" for index, label in enumerate(labels))
    return read_text(capsys, folder, f"image,label\n{rows}", **options)


# -- forms --------------------------------------------------------------------------------

ROWS = [("0.png", "b"), ("1.png", "a c"), ("2.png", "b")]
TUTORIAL = '{"0.png": 1}\n\n{"1.png": 0, "2.png": 1.0}\n'
HUGGING_FACE = [json.dumps({"file_name": name, "label": label}) for name, label in ROWS]


def table(header, delimiter, row="{0}{d}{1}", end="\n"):
    lines = [row.format(*each, d=delimiter) for each in ROWS]
    return end.join([header.replace(",", delimiter), *lines, ""])


FORMS = {  # file name: text, what is said of its form
    "a.csv": (table("image,label", ","), "images in 'image', labels in 'label'"),
    "b.csv": (table("Filename ,Class_Name", ";"), "images in 'Filename', labels in 'Class_Name'"),
    "c.tsv": (table("path,category", "\t", end="\r\n"), "images in 'path'"),
    "d.txt": (table("target,x,id", ";", "{1}{d}9,9{d}{0}"), "images in 'id', labels in 'target'"),
    "e.csv": (table("id,name,filepath,label", ",", "7{d}x{d}{0}{d}{1}"), "images in 'filepath'"),
    "f.csv": ("sep=;\r\n" + table("image,label", ";", end="\r\n"), "images in 'image'"),
    "g.txt": ('"sep=|"\n' + table("image,label", "|"), "images in 'image'"),
    "h.csv": ("\ufeff \n" + table("image,label,,", ",", "{0}{d}{1}{d}{d}") + ",,,\n,,\n\n ,,,\n", "images in 'image'"),
    "i.csv": ('"image","what it\nis, in\n\nshort",label\n' + '0.png,"x\ny",b\n1.png,z,a c\n2.png,,b\n', "images in 'image', labels in 'label'"),
    "ii.csv": ('"image", "x, y", "label"\n"0.png", 5, "b"\n 1.png ,, a c \n"2.png\u00a0",,b\n', "images in 'image', labels in 'label'"),
    "r.csv": (table("image,label", ",", end="\r"), "images in 'image'"),
    "j.txt": ("\ufeff\n0.png\tb\r\n1.png\ta c\r\n\r\n2.png\tb", None),
    "k.txt": ("0.png   b\n1.png a_c\n2.png b\n", None),
    "l.txt": ("0.png 1\n1.png 0\n2.png 1", None),
    "m.txt": (TUTORIAL, None),
    "l.jsonl": ('{"0.png": "1", "1.png": 0}\n{"2.png": 1}', None),
    "n.csv.txt": ("\ufeff" + TUTORIAL, None),
    "metadata.jsonl": ("\n".join(HUGGING_FACE), None),
    "p.jsonl": ("\n".join(HUGGING_FACE).replace("file_name", "Path"), None),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_forms_of_a_label_file(images, capsys, name):
    text, form = FORMS[name]
    result = read_text(capsys, images, text, name)
    assert result.samples and result.labels == [1, 0, 1], result
    assert result.samples.names == ["0.png", "1.png", "2.png"] and result.samples.splits is None
    assert [line for line in result.log if line.startswith(f"{images / name}: ")] == [
        line for line in result.log if form and form in line
    ], result
    names = ["a c", "b"] if name[0] not in "lmn" or name == "metadata.jsonl" else None
    names = ["a_c", "b"] if name == "k.txt" else names
    assert result.samples.class_names == names


def test_columns_that_are_named(images, capsys):
    text = "image;image2;label;animal\n9.png;0.png;7;b\n8.png;1.png;7;a\n"
    named = {"image_column": "Image2", "label_column": "animal"}
    result = read_text(capsys, images, text, "labels.txt", **named)
    assert result.pairs == {"0.png": "b", "1.png": "a"}
    named["label_column"] = "plant"
    result = read_text(capsys, images, text, "labels.txt", **named)
    assert_error(result, "labels.txt, line 1: ", "lacks 'plant'; it has 'image'")
    lines = '{"id": "0.png", "file_name": "9.png", "fine": 3}\n'
    named = {"image_column": "id", "label_column": "fine"}
    assert read_text(capsys, images, lines, "a.jsonl", **named).pairs == {"0.png": "3"}
    lines += (
        '{"id": "1.png", "fine": 3.0}\n{"id": "2.png", "fine": "x"}\n{"id": "3.png", "fine": "y"}'
    )
    result = read_text(capsys, images, lines, "a.jsonl", **named)
    assert result.samples.class_names == ["3", "x", "y"]


@pytest.mark.parametrize(
    "names, form",
    [
        (["train", "Valid", "test"], "csv"),
        (["training", "validation", " TEST "], "csv"),
        (["train", "val", "testing"], "jsonl"),
    ],
)
def test_a_column_names_the_datasets(images, capsys, names, form):
    rows = [(f"{i}.png", i % 2, names[i % 3]) for i in range(6)]
    if form == "csv":
        text = "image,Split,label\n" + "".join(f"{name},{split},{n}\n" for name, n, split in rows)
    else:
        keys = "file_name", "label", "split"
        text = "\n".join(json.dumps(dict(zip(keys, row, strict=True))) for row in rows)
    result = read_text(capsys, images, text, f"labels.{form}")
    assert result.samples.splits == ["train", "val", "test"] * 2, result
    assert result.samples.take([5, 0]).splits == ["test", "train"]
    refused = read_text(capsys, images, text, f"labels.{form}", val_fraction=0.5)
    assert_error(refused, "'split'", "leave out --val_fraction")
    wrong = read_text(capsys, images, text.replace(names[1], "dev"), f"labels.{form}")
    assert (
        len(wrong.errors) == 3 and "'dev' of '1.png' is not train, val or test" in wrong.errors[0]
    )


# -- files that are not clear ---------------------------------------------------------------

WRONG = {  # file name, text, what the one error says
    "two columns of labels": ("a.csv", "image,class,label\n0.png,a,0\n", ["line 1: ", "'class' and 'label'", "--label_column"]),
    "two columns of images": ("a.txt", "image,path,label\n0.png,a,0\n", ["line 1: ", "'image' and 'path'", "--image_column"]),
    "in line 3": ("a.txt", "\n\npath,name,label,target\n", ["line 3: labels may be in the columns 'label' and 'target'"]),
    "a column twice": ("a.csv", "image,label,Label\n0.png,1,1\n", ["'label' and 'Label'", "rename one"]),
    "two splits": ("a.csv", "image,label,split,split\n", ["'split' and 'split'", "rename one"]),
    "keys": ("a.jsonl", '{"file_name": "0.png", "label": 1, "class": 1}', ["line 1: ", "'label' and 'class'"]),
    "no key": ("a.jsonl", '{"file_name": "0.png", "text": "a"}', ["line 1: ", "'label'; it has 'file_name', 'text'"]),
    "a long row": ("a.csv", "image,label\n0.png,1\n0.png,1,2\n", ["line 3: more columns than the header has"]),
    "no split": ("a.csv", "image,label,split\n0.png,1,\n", ["line 2: the split '' of '0.png' is not train, val or test"]),
    "a row without a label": ("a.jsonl", '{"file_name": "0.png", "label": 1}\n{"file_name": "1.png"}\n', ["line 2: must have 'file_name' and 'label', each a text or an integer"]),
    "no header": ("a.csv", "0.png,1\n1.png,2\n", ["line 1: the header lacks 'image'; it has", "--label_column"]),
    "empty": ("a.csv", "", ["line 1: the header lacks 'image'"]),
    "nothing but lines": ("a.txt", "\n \n", ["lists no images"]),
    "no images": ("a.csv", "image,label\n", ["lists no images"]),
    "a short row": ("a.csv", "image,label\n0.png\n", ["line 2: must have 'image' and 'label'"]),
    "empty label": ("a.csv", "image,label\n0.png,\n", ["line 2", "is empty"]),
    "empty name": ("a.csv", "image,label\n,3\n", ["line 2: '' is not a valid file name"]),
    "too large": ("a.csv", "image,label\n0.png,3000000000\n", ["line 2", "does not fit in int32"]),
    "twice": ("a.csv", "image,label\n0.png,1\n./0.png,1\n", ["line 3: duplicate image '0.png', first in line 2"]),
    "outside": ("a.csv", "image,label\n../7.gif,1\n", ["line 2", "outside of the image root"]),
    "open quote": ("a.csv", 'image,label\n"0.png,1\n', ["line 2: invalid CSV"]),
    "Latin-1": ("a.csv", "image,label\n\xff.png,1\n".encode("latin-1"), ["not UTF-8 text: save it as UTF-8"]),
    "UTF-16": ("a.csv", "image,label\n".encode("utf-16"), ["not UTF-8 text"]),
    "NUL": ("a.txt", "0.png\0x 1\n", ["line 1", "NUL"]),
    "three words": ("a.txt", "0.png 1\n\n1.png\n", ["line 3: not an image name and a label"]),
    "commas without a header": ("a.txt", "0.png,1\n", ["line 1: not an image name and a label"]),
    "commas and spaces": ("a.txt", "0.png, 1\n", ["line 1: not an image name and a label"]),
    "the label first": ("a.txt", "0 a.jpg\n1 b.jpg\n", ["line 1: 'a.jpg' stands where the label should be"]),
    "columns changed places": ("a.csv", "label,image\n0.png,1\n", ["line 2: '0.png' stands where the label"]),
    "indented": ("a.txt", json.dumps({"0.png": 1, "1.png": 2}, indent=2), ["line 1: the JSON goes over several lines", "one object a line"]),
    "an indented list": ("a.json", json.dumps([{"0.png": 1}], indent=1), ["line 1: the JSON goes over several lines"]),
    "indented after {": ("a.json", '\n{"0.png": 1,\n "1.png": 2}', ["line 2: the JSON goes over several lines"]),
    "a list": ("a.json", '[{"file_name": "0.png", "label": 1}]', ["line 1: not a JSON object", "in one line: {"]),
    "labels in a list": ("a.jsonl", '{"file_name": "0.png", "label": [1]}', ["line 1: must have 'file_name' and 'label', each a text or an integer"]),
    "no JSON": ("a.txt", '{"0.png": 1}\n{"1.png": }\n', ["line 2: not a JSON object"]),
    "two objects": ("a.txt", '{"0.png": 1}\n{"1.png": 1}, {"2.png": 1}\n', ["line 2: not a JSON object"]),
    "deep": ("a.txt", '{"0.png": 1}\n' + "[" * 100_000, ["line 2: not a JSON object"]),
    "a fraction": ("a.txt", '{"0.png": 3.5}', ["line 1: the label of '0.png' is not an integer or a class's name"]),
    "a boolean": ("a.txt", '{"0.png": true}', ["line 1: the label of '0.png' is not an integer or a class's name"]),
    "twice in an object": ("a.txt", '{"0.png": 1, "0.png": 2}', ["line 1: duplicate image '0.png'"]),
    "half a character": ("a.txt", '{"\\ud800.png": 1}', ["line 1: ", "surrogates not allowed"]),
    "NUL in JSON": ("a.txt", '{"0\\u0000.png": 1}', ["line 1: ", "not a valid file name"]),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_label_files_that_are_not_clear(images, capsys, case):
    name, text, texts = WRONG[case]
    assert_error(read_text(capsys, images, text, name), str(images / name), *texts)


def test_no_label_file(images, capsys):
    gone = images / "nowhere.txt"
    assert_error(read(capsys, images / "in", label_dir=gone), str(gone), "--label_dir")
    assert_error(read(capsys, images / "in", label_dir=images / "in"), "cannot read the label file")


# -- labels -------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["{}.0", "{}.", "+{}", "{:02}", "{}.000", " {} "])
def test_integers_as_table_programs_write_them(images, capsys, text):
    result = read_column(capsys, images, [text.format(index) for index in range(12)])
    assert result.labels == list(range(12)) and result.samples.class_names is None
    assert result.warnings == []


@pytest.mark.parametrize(
    "word", ["NaN", "O", "nan", "--5", "+-3", "-", "²", "1.5", "1e3", "٣", "0x1", "1_0", "None"]
)
def test_a_word_among_numbers_is_named(images, capsys, word):
    result = read_column(capsys, images, [0, 1, 2, word, *range(4, 12)])
    assert_error(result, "labels.csv, line 5: ", word, "is not an integer, as most labels are")


def test_a_number_of_many_digits_does_not_fit(images, capsys):
    result = read_column(capsys, images, [0, 1, "9" * 5000])
    assert_error(result, "line 4: ", "does not fit in int32")
    assert len(result.errors[0]) < 300


def test_names_sort_naturally(images, capsys):
    result = read_column(capsys, images, [f"class {index}" for index in (10, 2, 0, 11, 1)])
    assert result.samples.class_names == [f"class {n}" for n in (0, 1, 2, 10, 11)]
    assert result.labels == [3, 2, 0, 4, 1]
    result = read_column(capsys, images, "ABC7DE")  # letters and digits, written by hand
    assert result.samples.class_names == sorted("ABC7DE")


DOUBTS = {  # labels, and what one warning says
    "case": (["cat", "Cat", "dog"], "'Cat' and 'cat' differ in case or spaces only"),
    "spaces": (["ice cream", "icecream", "dog"], "'ice cream' and 'icecream'"),
    "Unicode": (["cafe\u0301", "café", "dog"], "differ in case or spaces only"),
    "one name": (["one", "one", "one"], "a single class"),
    "one number": ([7, 7, 7], "a single class"),
    "NA": (["cat", "NA", "dog"], "'NA' is a class here"),
    "nan": (["cat", "nan", "dog"], "'nan' is a class here"),
    "N/A": (["cat", "N/A", "dog"], "'N/A' is a class here"),
    "gaps": ([17, 9017, 27017], "labels go from 17 to 27017, which makes 27,018 classes, 27,015 of them without images"),
    "one gap": ([*range(10), 999], "labels go from 0 to 999, which makes 1,000 classes"),
    "from 1": ([1, 2, 3, 4], "labels go from 1 to 4, which makes 5 classes, 1 of them without images"),
    "negative": ([-1, 0, 1], "there are negative labels"),
}  # fmt: skip


@pytest.mark.parametrize("case", DOUBTS)
def test_classes_that_look_wrong_are_warned_of(images, capsys, case):
    labels, text = DOUBTS[case]
    assert_one(read_column(capsys, images, labels).warnings, text)


def test_classes_that_look_right(images, capsys):
    for labels in (range(10), [0, 2, 1, 0], ["cat", "dog", "nandu"], [0, 1, 2, 5]):
        result = read_column(capsys, images, labels)
        assert [line for line in result.warnings if "skipped" not in line] == []


def test_the_advice_for_gaps_in_labels_works(images, capsys):
    (images / "classes.txt").write_text("17\n9017\n27017\n")
    result = read_column(capsys, images, [17, 27017, 9017], classes=images / "classes.txt")
    assert result.labels == [0, 2, 1] and result.samples.class_names == ["17", "9017", "27017"]


# -- names of images ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "listed",
    ["{root}/sub/x.y.png", "./sub/../sub/x.y.png", "sub\\x.y.png", "sub/x.y", ".\\sub\\x.y"],
)
def test_a_name_in_other_words(images, capsys, listed):
    make_files(images / "in", ["sub/x.y.png", "sub/x"])
    (images / "link").symlink_to("in")
    for root, written in (("in", "in"), ("link", "link"), ("link", "in")):
        (images / "labels.csv").write_text(
            f"image,label\n{listed.format(root=images / written)},1\n"
        )
        result = read(capsys, images / root, label_dir=images / "labels.csv")
        assert result.pairs == {"sub/x.y.png": "1"}, result
        assert_one(result.warnings, "skipped 12 files without a label")


def test_a_name_that_two_files_fit(images, capsys):
    make_files(images / "in", ["1.jpg", "7/x.png"])
    result = read_text(capsys, images, "image,label\n1,1\n7,0\n")
    assert_error(result, "line 2: '1' may be 1.jpg, 1.png: give the ending")
    make_files(images / "in", ["1"])  # a file of just that name
    assert read_text(capsys, images, "image,label\n1,1\n7,0\n").pairs == {"1": "1", "7.png": "0"}


NEAR = {  # what is listed: the file that it may be
    "Cat.PNG": "cat.png",
    "my cat.png": "mycat.png",
    "cafe\u0301.png": "café.png",
    "sub\\Cat.png": "sub/cat.png",
    "cat.jpg": "cat.png",
    "Cat": "cat.png",
    "cat.png": "sub/cat.png",
    "in/cat.png": "cat.png",
    "SUB/cat.png": "sub/cat.png",
    "Train/Cat.jpeg": "sub/cat.png",
    "7": "007.png",
    "7.png": "sub/007.png",
    "IMG_12.JPG": "img_0012.jpg",
    "scan.dcm": "scan.png",
    "train/a/1.png": "x/a/1.png",
}  # fmt: skip


@pytest.mark.parametrize("listed", NEAR)
def test_a_name_that_is_nearly_a_files(tmp_path, listed):
    from ofrecord.labels.files import ImageFiles

    make_files(tmp_path, [NEAR[listed], "other.png", "b/1.png"])
    assert ImageFiles(str(tmp_path)).did_you_mean(listed) == f"; did you mean {NEAR[listed]}?"
    make_files(tmp_path, [f"more/{NEAR[listed]}"])  # two have so much of the path
    hint = ImageFiles(str(tmp_path)).did_you_mean(listed)
    assert hint in ("", f"; did you mean {NEAR[listed]}?")


def test_paths_of_another_machine(images, capsys):
    make_files(images / "in", ["cat/1.png", "dog/1.png"])
    result = read_text(capsys, images, "image,label\n/home/me/data/cat/1.png,0\n/home/me/2.png,1\n")
    assert [line.rpartition("; ")[2] for line in result.errors[:2]] == [
        "did you mean cat/1.png?",
        "did you mean 2.png?",
    ]
    assert "outside of the image root" in result.errors[0]
    result = read_text(capsys, images, "image,label\nC:\\data\\cat\\1.png,0\n")
    assert result.pairs == {"C:/data/cat/1.png": "0"}  # missing, which the converter finds


def test_images_without_a_label(images, capsys):
    make_files(images / "in", ["sub/c.JPG", ".hidden/x.png", "__MACOSX/._0.png", "@eaDir/0.png"])
    result = read_column(capsys, images, range(11))
    assert_one(result.warnings, "skipped 2 files without a label")
    assert "1 .jpg, 1 .png (such as 11.png, sub/c.JPG)" in result.warnings[0]


# -- a class file ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "labels, text, wanted",
    [
        ("bab", "\ufeffc\r\nb\r\n\r\na\r\n", ([1, 2, 1], ["c", "b", "a"])),
        ("bab", "b\ra\r", ([0, 1, 0], ["b", "a"])),
        ("201", "zero\none\ntwo\nthree", ([2, 0, 1], ["zero", "one", "two", "three"])),
        ("201", "2\n1\n0", ([0, 2, 1], ["2", "1", "0"])),
        (['"""a ""b"""', "b"], '"a "b"\nb\n"\n', ([0, 1], ['"a "b"', "b", '"'])),
    ],
)
def test_classes_of_a_table(images, capsys, labels, text, wanted):
    (images / "classes.txt").write_text(text, encoding="utf-8", newline="")
    result = read_column(capsys, images, labels, classes=images / "classes.txt")
    assert (result.labels, result.samples.class_names) == wanted, result
    unused = len(wanted[1]) > len(set(wanted[0]))
    assert any("classes without images" in line for line in result.warnings) == unused


NAMES = ["a", "two\nlines", "cr\rlf\r\n", " b ", '"quoted"', '"', "\ufeffx", "1,5", "\u2028y", "7", "\\n", "é猫"]  # fmt: skip


def test_class_names_are_data(images, capsys):
    """What class_file_text writes is read as the same names, whatever they are."""
    import csv

    from ofrecord.labels.names import class_file_text

    (images / "classes.txt").write_text(class_file_text(NAMES), encoding="utf-8", newline="")
    with (images / "labels.csv").open("w", encoding="utf-8", newline="") as file:
        rows = [(f"{index}.png", name) for index, name in enumerate(NAMES)]
        csv.writer(file, lineterminator="\n").writerows([("image", "label"), *rows])
    result = read(
        capsys, images / "in", label_dir=images / "labels.csv", classes=images / "classes.txt"
    )
    assert result.samples.class_names == NAMES and result.labels == list(range(12))


BAD_CLASSES = [  # the class file, the labels of a table, what the error says
    ("a\nb", "abc", ["lacks 1 class: 'c'", "classes.txt", "--classes"]),
    ("a\nb\nc\n\na", "abc", ["classes.txt, line 5: 'a' is line 1, too"]),
    ("\n", "abc", ["names no classes"]),
    (b"\xff", "abc", ["not UTF-8 text"]),
    (None, "abc", ["cannot read the class file"]),
    ("a\nb", "012", ["line 4: the label '2' of '2.png' is no line of", "which has 2, from 0"]),
]


@pytest.mark.parametrize("text, labels, texts", BAD_CLASSES)
def test_bad_classes(images, capsys, text, labels, texts):
    if text:
        content = text if isinstance(text, bytes) else text.encode()
        (images / "classes.txt").write_bytes(content)
    assert_error(read_column(capsys, images, labels, classes=images / "classes.txt"), *texts)


# -- which images, in which order -----------------------------------------------------------


def test_a_few_of_all_classes(images, capsys):
    labels = [index % 3 for index in range(12)]
    for limit, number in ((2, 2), (3, 3), (7, 7), (500, 12)):
        result = read_column(capsys, images, labels, limit=limit, seed=1)
        assert len(result.samples) == number and len(set(result.labels)) == min(3, limit)
        order = [int(name[:-4]) for name in result.samples.names]
        assert order == sorted(order) and result.labels == [n % 3 for n in order]
    text = "image,label,split\n" + "".join(
        f"{n}.png,{n % 2},{'train' if n % 3 else 'test'}\n" for n in range(12)
    )
    result = read_text(capsys, images, text, limit=4)
    found = zip(result.samples.splits, result.labels, strict=True)
    assert set(found) == {("train", 0), ("train", 1), ("test", 0), ("test", 1)}


def test_shuffle_is_seeded_and_keeps_labels_with_images(images, capsys):
    orders = []
    for options in ({}, {"seed": 0}, {"seed": 1}):
        result = read_column(capsys, images, range(12), shuffle=True, **options)
        orders.append(result.samples.names)
        assert result.samples.names == [f"{label}.png" for label in result.labels]
    assert orders[0] == orders[1] != orders[2] and sorted(orders[0]) == sorted(orders[2])
