"""Which columns of a label table hold the images' names, the labels and the groups."""

import csv
from itertools import islice
from typing import NamedTuple, TextIO

# Usual names of a table's columns of images, labels and groups: the first of each that are there.
USUAL_COLUMNS = {
    "image": [("image", "file", "filename", "file_name", "filepath", "path"), ("name",), ("id",)],
    "label": [("label", "class", "class_name", "category", "target")],
    "group": [],
}
HEADER_LINES = 100  # at most: a quoted name of a column may have line breaks


class Columns(NamedTuple):
    """The names of a table's columns that are not to be guessed."""

    image: str | None = None
    label: str | None = None  # or several, with commas between them, as in a CSV file
    group: str | None = None  # of images that a split keeps together; None: there is none
    is_float: bool = False  # whether the labels are no classes, but floats


GUESSED = Columns()


def is_filled(row: list[str]) -> bool:
    """Whether a row of a table has any text."""
    return any(map(str.strip, row))


def read_header(file: TextIO, delimiter: str) -> list[str]:
    """Return the cells of the first row of a file, whose start is read next again."""
    rows = csv.reader(islice(file, HEADER_LINES), delimiter=delimiter)
    header = next(filter(is_filled, rows), [])
    file.seek(0)
    return list(map(str.strip, header))


def find_columns(names: list[str], columns: Columns) -> tuple[list[int | None], str | None]:
    """The indices of the image's, the labels' and the group's column, and what is wrong or None."""
    indices, missing, problem = [], [], None
    lower, labels = [name.lower() or None for name in names], [columns.label]
    if columns.label and columns.label.strip().lower() not in lower:
        labels = next(csv.reader([columns.label], skipinitialspace=True)) or [""]
    options = "image", *["label"] * len(labels), "group"
    all_given = columns.image, *labels, columns.group
    for option, given in zip(options, all_given, strict=True):
        wanted = USUAL_COLUMNS[option] if given is None else [(given.strip().lower(),)]
        matches = ([i for i, name in enumerate(lower) if name in each] for each in wanted)
        found = next(filter(None, matches), [None])
        indices.append(found[0])
        if len(found) > 1:
            two = " and ".join(repr(names[index]) for index in found[:2])
            problem = f"{option}s may be in the columns {two}: choose one with --{option}_column"
            if lower[found[0]] == lower[found[1]]:
                problem = f"there are two columns {names[found[0]]!r}: give one another name"
        elif wanted and found == [None]:
            missing.append(repr(option if given is None else given))
    if len(set(indices[1:-1])) < len(labels):
        problem = f"--label_column {columns.label} names a column twice"
    if missing:
        problem = f"the header must have the column{'s' * (len(missing) > 1)} "
        problem += f"{' and '.join(missing)}; it has {', '.join(map(repr, names)) or 'none'} "
        problem += "(--image_column and --label_column name others)"
    return indices, problem
