"""Class folders and label files as people and programs make them: right, or one line that says what to do."""

import json
from array import array
from pathlib import Path
from types import SimpleNamespace

import pytest

from ofrecord.labels.files import list_files
from ofrecord.labels.options import SourceOptions
from ofrecord.labels.samples import Samples
from ofrecord.labels.sources import read_samples
from runtime.cli import InputError


def read(capsys, root, **options):
    """Read the labels of a folder's images as the converter does, from a file or its class folders."""
    options["class_folders"] = "label_dir" not in options
    texts = {name: str(path) for name, path in options.items() if isinstance(path, Path)}
    samples, errors = Samples([], array("i")), []
    try:
        samples = read_samples(SourceOptions(image_root=str(root), **{**options, **texts}))
    except InputError as error:
        errors = error.lines()
    log = [line.partition(": ")[2] for line in capsys.readouterr().err.splitlines()]
    warnings = [line[9:] for line in log if line.startswith("warning: ")]
    return SimpleNamespace(
        errors=errors,
        said=[line for line in log if not line.startswith("warning: ")],  # of a table's columns
        warnings=[line for line in warnings if not line.startswith("skipped")],
        unused=[line for line in warnings if line.startswith("skipped")],  # files
        names=samples.names,
        labels=list(samples.labels),
        classes=samples.class_names,
        splits=samples.splits,
        pairs=dict(zip(samples.names, map(samples.class_name, samples.labels), strict=True)),
    )


def make_files(root, *names):
    """Files below a folder that are images by their names only: nobody opens them here."""
    for name in names:
        path = Path(root) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"image " + name.encode("utf-8", "surrogateescape"))


def write(path, text):
    """Write bytes, or a text as it is, to a file; return its path."""
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def assert_error(result, *texts):
    """One line that has each of the texts."""
    assert len(result.errors) == 1 and not result.names, result
    assert [text for text in texts if text not in result.errors[0]] == [], result


# -- class folders ------------------------------------------------------------------------

ORDERED = (
    "the images are in the order of their classes: --shuffle mixes them, which a training needs"
)


@pytest.fixture
def classes(tmp_path):
    """Twelve files in class folders a, b, b/sub and c, by threes, in ``in/``."""
    folders = ["a"] * 3 + ["b"] * 3 + ["b/sub"] * 3 + ["c"] * 3
    make_files(tmp_path / "in", *(f"{folder}/{index}.png" for index, folder in enumerate(folders)))
    return tmp_path


NAMES = ["\\xfe/1.png", "\udcfe/1.png", "\udcfe/\udcff.png", "cat/deep/er/9 9.png", "class 2/x.JPG", "class 10/x.png", "dog/1.png", "dog/2.png", "train/1.png", "猫 x/图.png"]  # fmt: skip
SYSTEMS = ["__MACOSX/a/._0.png", "lost+found/#12.png", "$RECYCLE.BIN/x.png", ".git/x.png", "@eaDir/0.png", ".ipynb_checkpoints/0.png", "dog/@eaDir/3.png", "dog/.DS_Store"]  # fmt: skip


def test_folders_are_classes_but_not_what_systems_put_there(tmp_path, capsys):
    make_files(tmp_path / "in", *reversed(NAMES), *SYSTEMS)
    result = read(capsys, tmp_path / "in")
    assert result.classes == ["\\xfe", "cat", "class 2", "class 10", "dog", "train", "猫 x"]
    assert result.labels == [0, 0, 0, 1, 2, 3, 4, 4, 5, 6] and result.names == NAMES
    assert result.warnings == [ORDERED] and result.unused == []
    make_files(tmp_path / "in", "dog/notes.txt", *(f"cat/{index}.mov" for index in range(5)))
    [warning] = read(capsys, tmp_path / "in").unused
    assert warning.startswith("skipped 6 files without an image's extension")
    assert ": 5 .mov, 1 .txt (such as cat/0.mov" in warning


BAD_FOLDERS = {  # what the one error says, and the files
    "no class folders in ": [".x/1.png"],
    "stray.png is not in a class folder": ["cat/1.png", "stray.png"],
    "/in/a has no images": ["cat/1.png", "a/1.MOV"],
}


@pytest.mark.parametrize("text", BAD_FOLDERS)
def test_bad_class_folders(tmp_path, capsys, text):
    make_files(tmp_path / "in", *BAD_FOLDERS[text])
    assert_error(read(capsys, tmp_path / "in"), str(tmp_path / "in"), text)


SETS = {"train": "train", "train val": "train val", "test Training valid": "Training valid test", "unlabeled train test": "train test"}  # fmt: skip


@pytest.mark.parametrize("folders", SETS)
def test_folders_of_sets_are_no_classes(tmp_path, capsys, folders):
    make_files(tmp_path / "in", *(f"{name}/{c}/1.png" for name in folders.split() for c in "ab"))
    result, sets = read(capsys, tmp_path / "in"), SETS[folders].split()
    names = [f"--image_root {tmp_path / 'in' / name} --save_dir" for name in sets]
    assert_error(result, f"`ls -dv {tmp_path / 'in' / sets[0]}/*/ | ", *names)
    names = write(tmp_path / "my classes", "mine")
    result = read(capsys, tmp_path / "in", classes=names)
    assert_error(result, "not classes", f"--class_folders --classes '{names}' --image_root")
    assert "`ls " not in result.errors[0]  # which would write over it


def test_an_image_root_one_folder_too_high(classes, capsys):
    single = "all images are of a single class, in: there is nothing to learn"
    too_high = read(capsys, classes).warnings
    assert too_high == [f"{single} (is --image_root one folder too high?)"]


def test_a_class_file_gives_the_order(classes, capsys):
    (classes / "in/empty").mkdir()
    names = write(classes / "classes.txt", "c\nd\na\nb\nempty")
    result = read(capsys, classes / "in", classes=names)
    assert result.labels == [0] * 3 + [2] * 3 + [3] * 6
    assert result.classes == ["c", "d", "a", "b", "empty"]
    assert result.warnings == ["classes without images: d, empty", ORDERED]
    result = read(capsys, classes / "in", classes=write(names, "c\na"))
    assert_error(result, "classes.txt (--classes) lacks 2 classes: 'b', 'empty'")
    result = read(capsys, classes / "in", classes=write(names, "c\na\nb\nempty\n@eaDir"))
    assert_error(result, "classes.txt (--classes) names what is no class: @eaDir")


LINKS = {"b/again": "sub", "b/loop": ".", "b/self": "self", "c/x.png": "9.png", "d": "../elsewhere", "self": "self"}  # fmt: skip


def test_links(classes, capsys):
    """Within a class a file counts once, in two classes it is wrong; a hard link is its own file."""
    make_files(classes, "elsewhere/2.png")
    for link, target in LINKS.items():
        (classes / "in" / link).symlink_to(target)
    (classes / "in/c/0.png").hardlink_to(classes / "in/a/0.png")
    result = read(capsys, classes / "in")
    assert result.labels == [0] * 3 + [1] * 6 + [2] * 4 + [3]
    left_out = "left out 1 name of images that their class has by another (such as c/x.png)"
    assert result.warnings == [left_out, ORDERED]
    for link, target in {"a/link": "../b/sub", "a/x.png": "../b/3.png", "0": "c"}.items():
        (classes / "in" / link).symlink_to(target)
    problems = " ".join(read(capsys, classes / "in").errors)
    for pair in "b/3.png and a/x.png", "b/sub/6.png and a/link/6.png", "c/9.png and 0/9.png":
        assert f"{pair} in {classes}/in are the same file in two classes" in problems


# -- label files --------------------------------------------------------------------------

FILES = [*(f"{index}.png" for index in range(12)), "sub/x.y.png", "sub/x", "7/x.png", "two.jpg", "two.png"]  # fmt: skip


@pytest.fixture
def reads(tmp_path, capsys):
    """A function that reads a label file: the end of its name, a space, its text. There are FILES."""
    make_files(tmp_path / "in", *FILES)
    (tmp_path / "link").symlink_to("in")

    def reads(file, root="in", **options):
        data = file if isinstance(file, bytes) else file.replace("{top}", str(tmp_path)).encode()
        end, _, text = data.partition(b" ")
        path = write(tmp_path / f"labels{end.decode()}", text)
        if isinstance(options.get("classes"), str | bytes):
            options["classes"] = write(tmp_path / "classes.txt", options["classes"])
        return read(capsys, tmp_path / root, **{"label_dir": path, **options})

    return reads


def column(labels, name="{}.png"):
    """A table of images, from 0.png, with these labels."""
    rows = [f"{name.replace('{}', str(n))},{label}\n" for n, label in enumerate(labels)]
    return ".csv image,label\n" + "".join(rows)


ROWS = [("0.png", "b"), ("1.png", "a c"), ("2.png", "b")]
JSON = "\n".join(json.dumps({"file_name": name, "label": label}) for name, label in ROWS)
ODD = ".txt image;image2;label;animal\n9.png;0.png;7;b\n8.png;1.png;7;a\n"
ADVICE = "--classes with a file of the labels that there are, one a line, makes only those"


def table(header, delimiter=",", row="{0}{d}{1}", end="\n"):
    lines = [row.format(*each, d=delimiter) for each in ROWS]
    return end.join([header.replace(",", delimiter), *lines, ""])


def names(image="image", label="label"):
    """What comes of ROWS as class names, and what is said of the columns."""
    said = f"images in {image!r}, labels in {label!r}"
    return {"labels": [1, 0, 1], "classes": ["a c", "b"], "said": [said] * bool(image)}


READ = {  # a file, options, what came of it
    "commas": (".csv " + table("image,label"), {}, names()),
    "tabs": (".tsv " + table("path,category", "\t", end="\r\n"), {}, names("path", "category")),
    "other columns": (".txt " + table("Class_Name ,x,ID", ";", "{1}{d}9,9{d}{0}"), {}, names("ID", "Class_Name")),
    "the best columns": (".csv " + table("id,name,filepath,label", ",", "7{d}x{d}{0}{d}{1}"), {}, names("filepath")),
    "Excel's sep=": (".txt sep=|\r\n" + table("image,label", "|", end="\r\n"), {}, names()),
    "empty rows and columns": (".csv \ufeff \n" + table("image,label,,", ",", "{0}{d}{1}{d}{d}") + ",,,\n,,\n\n ,,,\n", {}, names()),
    "line breaks in quotes": ('.csv "image","what it\nis, in\n\nshort",label\n0.png,"x\ny",b\n1.png,z,a c\n2.png,,b\n', {}, names()),
    "spaces": ('.csv "image", "x, y", "label"\n"0.png", 5, "b"\n 1.png ,, a c \n"2.png\u00a0",,b\n', {}, names()),
    "a semicolon in quotes": (".csv " + table('"a;b, c\td",image,label', row="1{d}{0}{d}{1}"), {}, names()),
    "CR": (".csv " + table("image,label", end="\r"), {}, names()),
    "metadata.jsonl": (".jsonl " + JSON, {}, names(None)),
    "lines with tabs": (".txt \ufeff\n0.png\tb\r\n1.png\ta c\r\n\r\n2.png\tb", {}, names(None)),
    "lines with spaces": (".txt 0.png   b\n1.png a\n2.png b\n", {}, {**names(None), "classes": ["a", "b"]}),
    "the tutorial's": ('.txt {"0.png": 1}\n\n{"1.png": 0, "2.png": 1.0}\n', {}, {"labels": [1, 0, 1], "classes": None, "said": [], "splits": None}),
    "named columns": (ODD, {"image_column": "Image2", "label_column": "animal"}, {"pairs": {"0.png": "b", "1.png": "a"}}),
    **{f"as {name}": (column([1], name), {}, {"pairs": {"sub/x.y.png": "1"}}) for name in ("./sub/../sub/x.y.png", "sub\\x.y.png", "sub/x.y", ".\\sub\\x.y", " sub/x.y.png ", "{top}/in/sub/x.y.png")},
    **{f"a root that is a link, as {root}": (column([1], f"{{top}}/{root}/sub/x.y.png"), {"root": "link"}, {"pairs": {"sub/x.y.png": "1"}}) for root in ("in", "link")},
    "a file of just that name": (column([1], "sub/x"), {}, {"pairs": {"sub/x": "1"}}),
    "splits": (".csv image, Split ,label\n0.png,training,0\n1.png,Valid,1\n2.png, test ,0\n", {}, {"labels": [0, 1, 0], "splits": ["train", "val", "test"]}),
    **{f"{text} of a table program": (column([text.format(n) for n in range(12)]), {}, {"labels": list(range(12)), "classes": None, "warnings": []}) for text in ("{}", "{}.0", "{}.", "+{}", "{:02}", "{}.000", " {} ")},
    "case, spaces, Unicode": (column(["ice cafe\u0301", "IceCafé", "dog"]), {}, {"warnings": ["the classes 'IceCafé' and 'ice cafe\u0301' differ in case or spaces only"]}),
    "one number": (column([0, 0, 0]), {}, {"warnings": ["all images are of a single class, 0: there is nothing to learn"]}),
    **{name: (column(["cat", name, "dog"]), {}, {"warnings": [f"{name!r} is a class here: if it stands for no label, remove those lines"]}) for name in ("NA", "nan", "N/A")},
    "as advised": (column([17, 27017, 9017]), {"classes": "17\n9017\n27017\n"}, {"labels": [0, 2, 1], "warnings": []}),
    "one gap": (column([*range(10), 999]), {}, {"warnings": [f"labels go from 0 to 999, which makes 1,000 classes, 989 of them without images: {ADVICE}"]}),
    "from 1": (column([1, 2, 3, 4]), {}, {"warnings": [f"labels go from 1 to 4, which makes 5 classes, 1 of them without images: {ADVICE}"]}),
    "negative": (column([-1, 0, 1]), {}, {"warnings": ["there are negative labels: lenet_train.py only accepts labels from 0"]}),
    "a small gap": (column([0, 1, 2, 5]), {}, {"warnings": []}),
    "natural order": (column(["class 10", "class 2", "7", "B", "class 1"]), {}, {"classes": ["7", "B", "class 1", "class 2", "class 10"], "labels": [4, 3, 0, 1, 2]}),
    "a class file": (column("bab"), {"classes": "\ufeffc\r\nb\r\n\r\na\r\n"}, {"labels": [1, 2, 1], "classes": ["c", "b", "a"], "warnings": ["classes without images: c"]}),
    "numbers of lines": (column("201"), {"classes": "zero\none\ntwo"}, {"labels": [2, 0, 1], "classes": ["zero", "one", "two"]}),
    "quotes": (column(['"""a ""b"""', "b"]), {"classes": '"a "b"\nb\n"\n'}, {"labels": [0, 1], "classes": ['"a "b"', "b", '"']}),
}  # fmt: skip


@pytest.mark.parametrize("case", READ)
def test_what_is_read(reads, case):
    file, options, wanted = READ[case]
    result = reads(file, **options)
    assert {what: getattr(result, what) for what in wanted} == wanted, result


WRONG = {  # what the one error says: the files, each after the end of its name
    "line 3: images may be in the columns 'image' and 'path'|--image_column": [".txt \n\nimage,path,label\n0.png,a,0\n"],
    "labels may be in the columns 'class' and 'label'|--label_column": [".csv image,class,label\n0.png,a,0\n", '.jsonl {"file_name": "0.png", "class": 1, "label": 1}'],
    "line 1: labels may be in the columns 'label' and |abel': rename one": [".csv image,label,Label\n0.png,1,1\n", *(f'.jsonl {{"file_name": "0.png", "label": 1, "{key}": 1}}' for key in ("label", "Label"))],
    "line 1: the header lacks 'image'; it has|--label_column": [".CSV 0.png,1\n1.png,2\n", ".csv "],
    "line 1: the header lacks 'label'; it has 'file_name', 'text'": ['.jsonl {"file_name": "0.png", "text": "a"}'],
    "line 3: more columns than the header has": [".csv image,label\n0.png,1\n0.png,1,2\n"],
    "line 2: must have 'file_name' and 'label', each a text or an integer": ['.jsonl {"file_name": "0.png", "label": 1}\n' + each for each in ('{"file_name": "1.png"}', '{"label": 1}', '{"file_name": "1.png", "label": [1]}', "[1]")],
    "lists no images": [".txt \n \n", ".csv image,label\n"],
    "in has none of the 2 images of |--class_folders": [".csv image,label\nother.png,1\nanother.png,0\n"],
    "line 2: the label '' of '0.png' is empty": [".csv image,label\n0.png,\n"],
    "line 2: '' is not a valid file name": [".csv image,label\n,3\n"],
    "line 2: the label '3000000000' of '0.png' does not fit in int32": [".csv image,label\n0.png,3000000000\n"],
    "line 2: 'two' may be two.jpg, two.png: give the ending": [column([1], "two")],
    "line 2: the split 'dev' of '1.png' is not train, val or test": [".csv image,label,split\n1.png,1,Dev\n"],
    "line 3: duplicate image '0.png', first in line 2": [".csv image,label\n0.png,1\n./0.png,1\n"],
    "line 3: a space before the quotes in ' \"cat\"': remove it": ['.csv image,label\n0.png,dog\n1.png, "cat"\n'],
    "line 2: invalid CSV": ['.csv image,label\n"0.png,1\n'],
    "is not UTF-8 text: save it as UTF-8 (Excel: CSV UTF-8)": [".csv image,label\n\xff.png,1\n".encode("latin-1"), b".csv " + "image,label\n".encode("utf-16")],
    "not an image name and a label": [".txt 0.png 1\n\n1.png\n", ".txt 0.png,1\n", ".txt 0.png, 1\n"],
    "line 1: '7.png' stands where the label should be": [".txt 0 7.png\n1 8.png\n"],
    "line 1: the JSON goes over several lines: write one object a line": [".txt " + json.dumps({"0.png": 1, "1.png": 2}, indent=2), ".json " + json.dumps([{"0.png": 1}], indent=1)],
    "line 2: not a JSON object of image names and labels in one line: {": ['.txt {"0.png": 1}\n' + each for each in ('[{"file_name": "1.png", "label": 1}]', '{"1.png": }', '{"1.png": 1}, {"2.png": 1}', "[" * 100_000)],
    "line 1: the label of '0.png' is not an integer or a class's name": ['.txt {"0.png": 3.5}', '.txt {"0.png": true}'],
    "line 1: the header lacks 'plant'; it has 'image'": [(ODD, {"image_column": "image", "label_column": "plant"})],
    "/classes.txt, line 5: 'a' is line 1, too": [(column("abc"), {"classes": "a\nb\nc\n\na"})],
    "line 1: the label 'a|b' of '0.png' cannot be a class's name": [f'.jsonl {{"0.png": "a\\u{code}b"}}\n{{"1.png": "b"}}' for code in ("0000", "d800", "dfff")],
    "/classes.txt, line 2: '|' cannot be a class's name": [(column("abc"), {"classes": f"a\n{name}"}) for name in ("b" * 4097, '"\\ud800"', '"a\\u0000b"')],
    "/classes.txt names no classes": [(column("abc"), {"classes": "\n"})],
    "line 3: the label '|' of '1.png' is no line of |/classes.txt, which has 2, from 0": [(column(labels), {"classes": "a\nb"}) for labels in ([0, 2, 1], [0, -1, 1])],
    "cannot read the class file nowhere: No such file or directory; --classes names it": [(column("abc"), {"classes": Path("nowhere")})],
    **{f"labels.csv, line 5: the label '{word}' of '3.png' is not an integer, as most labels are": [column([0, 1, 2, word, *range(4, 12)])] for word in "NaN O nan --5 +-3 - ² 1.5 1e3 ٣ 0x1 1_0 None".split()},
    "'split' of |leave out --val_fraction": [(".csv image,label,split\n0.png,1,val\n", {"val_fraction": 0.5})],
}  # fmt: skip


@pytest.mark.parametrize("message", WRONG)
def test_label_files_that_are_not_clear(reads, monkeypatch, tmp_path, message):
    monkeypatch.chdir(tmp_path)
    for case in WRONG[message]:
        file, options = case if isinstance(case, tuple) else (case, {})
        result = reads(file, **options)
        assert_error(result, *message.split("|"))
        assert options or f"{tmp_path}/labels." in result.errors[0]
        assert len(result.errors[0]) < 300 + len(str(tmp_path))


NEAR = {  # what is listed: the file that it may be
    "cat.jpg": "cat.png", "my Cat": "MyCat.png", "cafe\u0301.png": "café.png", "sub\\Cat.png": "sub/cat.png",
    "Train/Cat.jpeg": "sub/cat.png", "IMG_12.JPG": "img_0012.jpg", "7": "sub/007.png", "scan.dcm": "scan.png",
}  # fmt: skip


@pytest.mark.parametrize("listed", NEAR)
def test_a_name_that_is_nearly_a_files(tmp_path, capsys, listed):
    """With the folders of another machine before it."""
    make_files(tmp_path / "in", NEAR[listed], "other.png", "b/1.png")
    labels = write(tmp_path / "labels.csv", f"image,label\n/home/me/{listed},0\n")
    result = read(capsys, tmp_path / "in", label_dir=labels)
    assert_error(result, f"is outside of the image root; did you mean {NEAR[listed]}?")
    make_files(tmp_path / "in", f"more/{NEAR[listed]}")  # two have so much of the path
    [error] = read(capsys, tmp_path / "in", label_dir=labels).errors
    assert error.rpartition("image root")[2] in ("", f"; did you mean {NEAR[listed]}?")


@pytest.mark.parametrize("link, folder", [("a", "b"), ("b", "a")])
def test_a_label_files_names_may_go_through_links(tmp_path, capsys, link, folder):
    """In whatever order the system lists the folders."""
    make_files(tmp_path / "in", f"{folder}/1.png", f"{folder}/2.png")
    (tmp_path / "in" / link).symlink_to(folder)
    for name in (link, folder):
        labels = write(tmp_path / "l.csv", f"image,label\n{name}/1.png,0\n{name}/2.png,1\n")
        result = read(capsys, tmp_path / "in", label_dir=labels)
        assert result.names == [f"{name}/1.png", f"{name}/2.png"] and result.unused == [], result
    assert {name[0] for name, _ in list_files(tmp_path / "in")} == {folder}
    (tmp_path / "in" / link).rename(tmp_path / "in" / "alias")
    labels = write(tmp_path / "l.csv", "image,label\nalias/3.png,0\nalias/1.png,1\n")
    assert read(capsys, tmp_path / "in", label_dir=labels).names[1] == "alias/1.png"


def test_images_without_a_label(reads, tmp_path):
    make_files(tmp_path / "in", "sub/c.JPG", ".hidden/x.png", "__MACOSX/._0.png", "@eaDir/0.png")
    [warning] = reads(column(range(11))).unused
    assert warning.startswith("skipped 6 files without a label")
    assert warning.endswith(": 4 .png, 2 .jpg (such as 11.png, 7/x.png, sub/c.JPG, …)")


def test_a_few_of_all_classes(reads):
    for limit, number in ((2, 2), (3, 3), (7, 7), (500, 12)):
        result = reads(column([index % 3 for index in range(12)]), limit=limit, seed=1)
        assert len(result.names) == number and len(set(result.labels)) == min(3, limit)
        lost = [line for line in result.warnings if line.startswith("--limit 2 is fewer than")]
        assert len(lost) == (limit == 2)
        order = [int(name[:-4]) for name in result.names]
        assert order == sorted(order) and result.labels == [n % 3 for n in order]
    rows = "".join(f"{n}.png,{n % 2},{'train' if n % 3 else 'test'}\n" for n in range(12))
    result = reads(f".csv image,label,split\n{rows}", limit=4)
    found = zip(result.splits, result.labels, strict=True)
    assert set(found) == {("train", 0), ("train", 1), ("test", 0), ("test", 1)}
    rows = "".join(f"{n}.png,{n // 3},{('train', 'val', 'test')[n % 3]}\n" for n in range(12))
    for seed in range(5):
        result = reads(f".csv image,label,split\n{rows}", limit=4, seed=seed)
        assert set(result.labels) == {0, 1, 2, 3}  # classes come before datasets


def test_shuffle_is_seeded_and_keeps_labels_with_images(reads):
    orders = []
    for options in ({}, {"seed": 0}, {"seed": 1}):
        result = reads(column(range(12)), shuffle=True, **options)
        orders.append(result.names)
        assert result.names == [f"{label}.png" for label in result.labels]
    assert orders[0] == orders[1] != orders[2] and sorted(orders[0]) == sorted(orders[2])
