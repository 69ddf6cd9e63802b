"""Labels that table programs, links and other people's folders make: right, or an error, or a warning."""

import os

import cv2
import numpy as np
import pytest
from helpers import assert_one_error, convert, read_manifest, records


@pytest.fixture
def images(tmp_path):
    """Twelve images of different gray, 0.png to 11.png, in ``in/``."""
    (tmp_path / "in").mkdir()
    for index in range(12):
        cv2.imwrite(str(tmp_path / "in" / f"{index}.png"), np.full((8, 8), 20 * index, np.uint8))
    return tmp_path


def convert_csv(folder, labels):
    lines = [f"{index}.png,{label}\n" for index, label in enumerate(labels)]
    (folder / "labels.csv").write_text("image,label\n" + "".join(lines), encoding="utf-8")
    return convert_in(folder, "--label_dir", folder / "labels.csv")


def convert_in(folder, *options):
    options = ["--image_root", folder / "in", "--save_dir", folder / "d", *options]
    return convert(*options, "--part_num", 1)


def labels_of(folder):
    return [label for _, label in records(folder / "d")]


@pytest.mark.parametrize("text", ["{}.0", "{}.", "+{}", "{:02}", "{}.000"])
def test_integers_as_table_programs_write_them(images, text):
    result = convert_csv(images, [text.format(index) for index in range(12)])
    assert result.code == 0 and result.err.count("\n") == 2, result
    assert labels_of(images) == list(range(12))
    assert read_manifest(images / "d")["class_names"] is None


@pytest.mark.parametrize(
    "word", ["NaN", "O", "nan", "--5", "+-3", "-", "²", "1.5", "1e3", "٣", "0x1", "1_0", "None"]
)
def test_a_word_among_numbers_is_named(images, word):
    result = convert_csv(images, [0, 1, 2, word, *range(4, 12)])
    assert_one_error(result, "labels.csv, line 5: ", word, "is not an integer", started=True)


@pytest.mark.parametrize("digits", [11, 5000])
def test_a_number_of_many_digits_does_not_fit(images, digits):
    result = convert_csv(images, [0, 1, "9" * digits])
    assert_one_error(result, "line 4: ", "does not fit in int32", started=True)
    assert len(result.err) < 300


def test_names_sort_naturally(images):
    names = [f"class {index}" for index in (10, 2, 0, 11, 1)]
    assert convert_csv(images, names).code == 0
    assert read_manifest(images / "d")["class_names"] == [f"class {n}" for n in (0, 1, 2, 10, 11)]
    assert labels_of(images) == [3, 2, 0, 4, 1]


def test_names_that_are_mostly_words_may_have_digits_among_them(images):
    """As letters and digits written by hand."""
    assert convert_csv(images, list("ABC7DE")).code == 0
    assert read_manifest(images / "d")["class_names"] == sorted("ABC7DE")


@pytest.mark.parametrize(
    "names, text",
    [
        (["cat", "Cat", "dog"], "'Cat', 'cat'"),
        (["ice cream", "icecream", "dog"], "'ice cream', 'icecream'"),
        (["cafe\u0301", "café", "dog"], "differ in case or spaces only"),
        (["one", "one", "one"], "a single class"),
        ([7, 7, 7], "a single class"),
        (["train", "val", "test"], "one folder too high"),
    ],
)
def test_classes_that_look_wrong_are_warned_of(images, names, text):
    result = convert_csv(images, names)
    assert result.code == 0, result
    (warning,) = (
        line for line in result.err.splitlines() if ": warning: " in line and text in line
    )


@pytest.mark.parametrize(
    "listed, there",
    [
        ("Cat.PNG", "cat.png"),
        ("my cat.png", "mycat.png"),
        ("cafe\u0301.png", "café.png"),
        ("sub\\Cat.png", "sub/cat.png"),
        ("cat.jpg", "cat.png"),
        ("Cat", "cat.png"),
        ("cat.png", "sub/cat.png"),
        ("in/cat.png", "cat.png"),
        ("SUB/cat.png", "sub/cat.png"),
        ("Train/Cat.jpeg", "sub/cat.png"),
    ],
)
def test_a_name_that_is_nearly_a_files(images, listed, there):
    (images / "in" / there).parent.mkdir(exist_ok=True)
    (images / "in" / "0.png").rename(images / "in" / there)
    (images / "labels.csv").write_text(f"image,label\n{listed},0\n1.png,1\n", encoding="utf-8")
    result = convert_in(images, "--label_dir", images / "labels.csv")
    assert_one_error(result, "missing", f"did you mean {there}?", started=True)


def test_of_several_names_that_are_near_none_is_proposed(images):
    for folder in ("a", "b"):
        (images / "in" / folder).mkdir()
        (images / "in" / folder / "cat.png").write_bytes((images / "in/0.png").read_bytes())
    (images / "labels.csv").write_text("image,label\ncat.png,0\n1.png,1\n")
    result = convert_in(images, "--label_dir", images / "labels.csv")
    assert_one_error(result, "in/cat.png: missing", started=True)
    assert "did you mean" not in result.err


def test_images_that_are_all_alike_are_warned_of(images):
    for path in (images / "in").iterdir():
        cv2.imwrite(str(path), np.zeros((8, 8), np.uint8))
    result = convert_csv(images, [0, 1, 0])
    assert result.code == 0 and "all pixels of all images have the same value" in result.err


@pytest.mark.parametrize("more", [[], ["--val_fraction", 0.3]])
def test_classes_that_skip_bad_left_nothing_of_are_named(classes, more):
    for folder in ("a", "c"):
        for path in (classes / "in" / folder).glob("*.png"):
            path.write_bytes(b"no image")
    result = convert_in(classes, "--class_folders", "--skip_bad", *more)
    assert result.code == 0, result
    lines = [line for line in result.err.splitlines() if "left no image" in line]
    assert [line.split(": ")[-1] for line in lines] == [
        f"--skip_bad left no image of class {name}" for name in "ac"
    ]
    assert read_manifest(classes / "d")["class_names"] == ["a", "b", "c"]


def test_copies_of_one_image_are_warned_of(images):
    text = "all images are the same"
    assert text not in convert_csv(images, [0, 1, 0]).err
    noise = np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)
    for path in (images / "in").iterdir():
        cv2.imwrite(str(path), noise)
    for workers in (1, 2):
        result = convert_in(images, "--label_dir", images / "labels.csv", "--workers", workers)
        assert result.code == 0 and text in result.err, result


def test_a_class_folder_of_another_kind_of_files(classes):
    for path in (classes / "in/a").iterdir():
        path.rename(path.with_suffix(".MOV"))
    result = convert_in(classes, "--class_folders")
    assert_one_error(result, "the class folder", "in/a has no images, but 3 .mov")


def test_more_parts_than_a_split_leaves(classes):
    options = ["--class_folders", "--val_fraction", 0.999, "--part_num", 4]
    result = convert("--image_root", classes / "in", "--save_dir", classes / "d", *options)
    text = "--part_num 4 is more than the 3 images of a dataset to write"
    assert_one_error(result, text, started=True)
    assert not (classes / "d").exists() and not (classes / "d_val").exists()


def test_skipped_files_are_counted_by_kind(classes):
    for index in range(5):
        (classes / "in/a" / f"{index}.mov").touch()
    (classes / "in/b/notes.txt").touch()
    (classes / "in/b/@eaDir").mkdir()
    (classes / "in/b/@eaDir/3.png").write_bytes((classes / "in/b/3.png").read_bytes())
    result = convert_in(classes, "--class_folders")
    assert result.code == 0 and len(labels_of(classes)) == 12, result
    assert "skipped 6 files without" in result.err and ": 5 .mov, 1 .txt (such as" in result.err, (
        result
    )


def test_names_are_printed_on_one_line(classes):
    (classes / "in/a/0.png").rename(classes / "in/a/two\nlines\x1b[31m.png")
    result = convert_in(classes, "--class_folders")
    assert result.code == 0 and "two\\nlines\\x1b[31m.png feature saved\n" in result.out, result


# -- forms of a label file ----------------------------------------------------------------

ROWS = [("0.png", "b"), ("1.png", "a c"), ("2.png", "b")]
JSON_LINES = '{"0.png": 1}\n{"1.png": 0}\n{"2.png": 1}\n'


def table(header, delimiter, row="{0}{d}{1}"):
    lines = [row.format(*each, d=delimiter) for each in ROWS]
    return "\n".join([header.replace(",", delimiter), *lines, ""])


FORMS = {  # file name: text, what is said of its form
    "a.csv": (table("image,label", ","), "a table with a comma"),
    "b.csv": (table("Filename ,Class_Name", ";"), "a semicolon between its columns; images in 'Filename', labels in 'Class_Name'"),
    "c.tsv": (table("path,category", "\t"), "a table with a tab"),
    "d.txt": (table("target,x,id", ";", "{1}{d}9,9{d}{0}"), "images in 'id', labels in 'target'"),
    "e.csv": (table("id,name,filepath,label", ",", "7{d}x{d}{0}{d}{1}"), "images in 'filepath'"),
    "f.txt": ("\ufeff\n0.png\tb\r\n1.png\ta c\r\n\r\n2.png\tb", "lines of an image name and a label"),
    "g.txt": ("0.png   b\n1.png a_c\n2.png b\n", "lines of an image name"),
    "h.lst": ("7\t1.000000\t0.png\n8\t0.0\t1.png\n9\t1\t2.png\n", "im2rec's list"),
    "i.txt": ("7\t1.000000\t0.png\n8\t0.0\t1.png\n9\t1\t2.png\n", "im2rec's list"),
    "j.txt": (JSON_LINES, None),
    "k.txt": ("0.png 1\n1.png 0\n2.png 1", "lines of an image name"),
}  # fmt: skip


@pytest.mark.parametrize("name, text, form", [(name, *each) for name, each in FORMS.items()])
def test_forms_of_a_label_file(images, name, text, form):
    (images / name).write_text(text, encoding="utf-8", newline="")
    result = convert_in(images, "--label_dir", images / name)
    assert result.code == 0 and labels_of(images) == [1, 0, 1], result
    assert (f"{images / name}: " in result.err) == bool(form) and (form or "") in result.err, result
    names = read_manifest(images / "d")["class_names"]
    assert names == (None if name[0] in "hijk" else ["a_c" if name == "g.txt" else "a c", "b"])


def test_columns_that_are_named(images):
    text = "image;image2;label;animal\n9.png;0.png;7;b\n8.png;1.png;7;a\n"
    (images / "labels.txt").write_text(text)
    options = ["--label_dir", images / "labels.txt", "--image_column", "Image2"]
    result = convert_in(images, *options, "--label_column", "animal")
    assert result.code == 0 and labels_of(images) == [1, 0], result
    result = convert_in(images, *options, "--label_column", "plant")
    assert_one_error(result, "labels.txt, line 1: ", "must have the column 'plant'; it has 'image'", started=True)  # fmt: skip


@pytest.mark.parametrize(
    "text, texts",
    [
        ("image,class,label\n0.png,a,0\n", ["'class' and 'label'", "--label_column"]),
        ("image,path,label\n0.png,a,0\n", ["'image' and 'path'", "--image_column"]),
        ("0.png 1\n\n1.png\n", ["line 3: not an image name and a label"]),
        ("0\t1\t0.png\n1\t1\t2\t1.png\n", ["line 2: not index, label and path"]),
        (
            "\n\npath,name,label,target\n",
            ["line 3: labels may be in the columns 'label' and 'target'"],
        ),
        ("0.png,1\n", ["line 1: not an image name and a label"]),
        ("0.png 1\n0 1\n", ["line 2: duplicate image '0.png', first in line 1"]),
        ("0.png\0x 1\n", ["line 1", "NUL"]),
    ],
)
def test_label_files_that_are_not_clear(images, text, texts):
    (images / "labels.txt").write_text(text)
    result = convert_in(images, "--label_dir", images / "labels.txt")
    assert_one_error(result, "labels.txt, line ", *texts, started=True)
    assert not (images / "d").exists()


@pytest.mark.parametrize(
    "listed",
    ["{root}/sub/x.y.png", "./sub/../sub/x.y.png", "sub\\x.y.png", "sub/x.y", ".\\sub\\x.y"],
)
def test_a_name_in_other_words(images, listed):
    (images / "in/sub").mkdir()
    (images / "in/0.png").rename(images / "in/sub/x.y.png")
    (images / "link").symlink_to("in")
    for root, written in (("in", "in"), ("link", "link"), ("link", "in")):
        name = listed.format(root=images / written)
        (images / "labels.csv").write_text(f"image,label\n{name},1\n1.png,0\n")
        options = ["--label_dir", images / "labels.csv", "--image_root", images / root]
        result = convert_in(images, *options)
        assert result.code == 0 and labels_of(images) == [1, 0], result
        assert "skipped 10 images without a label" in result.err, result


def test_a_name_that_two_files_fit(images):
    (images / "in/1.jpg").write_bytes(b"")
    (images / "labels.csv").write_text("image,label\n1,1\n2,0\n")
    result = convert_in(images, "--label_dir", images / "labels.csv")
    assert_one_error(result, "line 2: '1' may be 1.jpg, 1.png: give the ending", started=True)
    (images / "in/1").write_bytes((images / "in/0.png").read_bytes())  # a file of just that name
    result = convert_in(images, "--label_dir", images / "labels.csv")
    assert result.code == 0 and f"{images / 'in'}/1 feature saved" in result.out, result


# -- the classes' file --------------------------------------------------------------------


def convert_with_classes(folder, text, *options):
    (folder / "classes.txt").write_text(text, encoding="utf-8")
    return convert_in(folder, "--classes", folder / "classes.txt", *options)


@pytest.mark.parametrize(
    "labels, names, wanted",
    [
        ("bab", "\ufeffc\r\nb\r\n\r\na\r\n", ([1, 2, 1], ["c", "b", "a"])),
        ("201", "zero\none\ntwo\nthree", ([2, 0, 1], ["zero", "one", "two", "three"])),
        ("201", "2\n1\n0", ([0, 2, 1], ["2", "1", "0"])),
    ],
)
def test_classes_of_a_table(images, labels, names, wanted):
    convert_csv(images, labels)
    result = convert_with_classes(images, names, "--label_dir", images / "labels.csv")
    assert result.code == 0, result
    assert (labels_of(images), read_manifest(images / "d")["class_names"]) == wanted
    unused = {"zero": "classes without images: three", "\ufeffc\r": "classes without images: c"}
    assert unused.get(names.split("\n")[0], "") in result.err, result
    assert ("classes without images" in result.err) == (names[0] != "2"), result


def test_classes_of_the_tutorials_labels(images):
    (images / "labels.txt").write_text(JSON_LINES)
    result = convert_with_classes(images, "no\nyes\n", "--label_dir", images / "labels.txt")
    assert result.code == 0 and labels_of(images) == [1, 0, 1], result
    assert read_manifest(images / "d")["class_names"] == ["no", "yes"]


def test_classes_of_folders(classes):
    (classes / "in/empty").mkdir()
    result = convert_with_classes(classes, "c\nd\na\nb\nempty", "--class_folders")
    assert result.code == 0 and labels_of(classes) == [0] * 3 + [2] * 3 + [3] * 6, result
    assert read_manifest(classes / "d")["class_names"] == ["c", "d", "a", "b", "empty"]
    assert "classes without images: d, empty" in result.err, result


@pytest.mark.parametrize(
    "names, texts",
    [
        ("a\nb", ["the class 'c' is not in the class file", "classes.txt"]),
        ("a\nb\nc\n\na", ["classes.txt, line 5: 'a' again, first in line 1"]),
        ("\n", ["names no classes"]),
        (None, ["cannot read the class file"]),
    ],
)
def test_bad_classes(classes, names, texts):
    if names:
        result = convert_with_classes(classes, names, "--class_folders")
    else:
        result = convert_in(classes, "--class_folders", "--classes", classes / "nowhere.txt")
    assert_one_error(result, *texts, started=True)
    (classes / "labels.csv").write_text("image,label\na/0.png,a\nb/3.png,b\nc/9.png,c\n")
    if names == "a\nb":
        result = convert_with_classes(classes, names, "--label_dir", classes / "labels.csv")
        assert_one_error(result, *texts, started=True)
        (classes / "labels.csv").write_text("image,label\na/0.png,0\nb/3.png,2\n")
        result = convert_with_classes(classes, names, "--label_dir", classes / "labels.csv")
        assert_one_error(result, "line 3: the label '2' of 'b/3.png' is no line of", started=True)
    assert not (classes / "d").exists()


# -- class folders and links ------------------------------------------------------------


@pytest.fixture
def classes(images):
    """The images in class folders a, b, b/sub and c, by threes."""
    for name, start in (("a", 0), ("b", 3), ("b/sub", 6), ("c", 9)):
        (images / "in" / name).mkdir()
        for index in range(start, start + 3):
            (images / "in" / f"{index}.png").rename(images / "in" / name / f"{index}.png")
    return images


def test_folders_sort_naturally(images):
    for index in (0, 1, 2, 10, 11):
        (images / "in" / str(index)).mkdir()
        (images / "in" / f"{index}.png").rename(images / "in" / str(index) / "x.png")
    for stray in (images / "in").glob("*.png"):
        stray.unlink()
    assert convert_in(images, "--class_folders").code == 0
    assert read_manifest(images / "d")["class_names"] == ["0", "1", "2", "10", "11"]


def test_a_link_within_a_class_counts_once(classes):
    (classes / "in/b/again").symlink_to("sub")
    (classes / "in/b/loop").symlink_to(".")
    (classes / "in/b/self").symlink_to("self")
    (classes / "in/c/twice.png").symlink_to("9.png")
    result = convert_in(classes, "--class_folders")
    assert result.code == 0, result
    assert labels_of(classes) == [0] * 3 + [1] * 6 + [2] * 3


@pytest.mark.parametrize(
    "link, target", [("a/link", "../b/sub"), ("a/x.png", "../b/3.png"), ("d", "b"), ("0", "b")]
)
def test_a_file_in_two_classes_is_refused(classes, link, target):
    (classes / "in" / link).symlink_to(target)
    result = convert_in(classes, "--class_folders")
    assert result.code == 2 and "are the same file in two classes" in result.err, result
    assert not (classes / "d").exists()


def test_hard_links_are_files_of_their_own(classes):
    os.link(classes / "in/a/0.png", classes / "in/c/0.png")
    assert convert_in(classes, "--class_folders").code == 0
    assert labels_of(classes).count(2) == 4
