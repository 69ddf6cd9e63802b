"""Classes: their numbers and names, from labels as text and from class files."""

import json
import re
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress

from runtime.cli import InputError, count, first_few
from runtime.settings import LONGEST_NAME

from ..record import INT32_MAX, INT32_MIN
from .files import open_text

INTEGER = re.compile(r"([+-]?[0-9]+)(\.0*)?")  # "2.0" too, as table programs write it
QUOTED = re.compile('^"|[\r\n\ufeff]|^\\s|\\s$')  # a name that a line cannot have as it is

NO_TEXT = re.compile("[\0\ud800-\udfff]")  # which JSON can have, and CSV or UTF-8 cannot
NO_NAME = "cannot be a class's name: it is too long, or has what is no text"


def is_class_name(name: str) -> bool:
    """Whether the manifest, a table and a class file can hold this name."""
    return 0 < len(name) <= LONGEST_NAME and not NO_TEXT.search(name)


def natural_key(name: str) -> list:
    """Return a sort key that puts ``class 2`` before ``class 10``."""
    parts = enumerate(re.split("([0-9]+)", name))  # text and digits in turn
    return [(int(part[:18]) if index % 2 else 0, part) for index, part in parts]


def class_file_text(names: Iterable[str]) -> str:
    """Return the text of a class file: a name a line, as a JSON string where it needs that."""
    return "".join(f"{json.dumps(name) if QUOTED.search(name) else name}\n" for name in names)


def read_class_file(path: str) -> list[str]:
    """Return the names in a class file. Raises InputError."""
    lines: dict[str, int] = {}  # of the names
    with open_text(path, "class file", "--classes names it") as file:
        for line, name in enumerate(map(str.strip, file), start=1):
            if name[:1] == '"':
                with suppress(ValueError):  # it only begins like a JSON string
                    name = str(json.loads(name))
            if name and not is_class_name(name):
                raise InputError(f"{path}, line {line}: {name[:60]!r} {NO_NAME}")
            if name and lines.setdefault(name, line) != line:
                raise InputError(f"{path}, line {line}: {name!r} is line {lines[name]}, too")
    if not lines:
        raise InputError(f"the class file {path} names no classes")
    return list(lines)


def number_classes(found: Iterable[str], class_file: str | None) -> dict[str, int]:
    """Return the number of each class: in natural order, or in that of the class file.

    Raises InputError with the classes that the file lacks.
    """
    found = sorted(set(found), key=natural_key)
    listed = read_class_file(class_file) if class_file else found
    numbers = {name: number for number, name in enumerate(listed)}
    if missing := [repr(name[:60]) for name in found if name not in numbers]:
        lacks = f"lacks {count(len(missing), 'class')}: {first_few(missing)}"
        raise InputError(f"the class file {class_file} (--classes) {lacks}")
    return numbers


def number_labels(
    counts: Counter[str], class_file: str | None
) -> tuple[dict[str, int | str], list[str] | None]:
    """Return the number of each label, or what is wrong with it, and the classes' names.

    The labels are integers if most of them are, which the others then must be too; else
    they are class names. Integers are lines of ``class_file``, from 0, unless it has their names.
    """
    listed = read_class_file(class_file) if class_file else []
    known = set(listed)
    texts = {label: label if label in known else label.strip() for label in counts}
    names = set(filter(is_class_name, texts.values()))
    # What is longer than 20 digits does not fit in int32 either.
    matches = {label: INTEGER.fullmatch(text) for label, text in texts.items()}
    numbers = {label: int(match[1][:20]) for label, match in matches.items() if match}
    if 2 * sum(counts[label] for label in numbers) <= counts.total() or names & known:
        classes = number_classes(names, class_file)
        numbers = {
            label: classes.get(text, NO_NAME if text else "is empty")
            for label, text in texts.items()
        }
        return numbers, list(classes)
    for label in counts:
        number = numbers.get(label)
        if number is None:
            numbers[label] = "is not an integer, as most labels are"
        elif class_file and not 0 <= number < len(listed):
            numbers[label] = f"is no line of {class_file}, which has {len(listed)}, from 0"
        elif not INT32_MIN <= number <= INT32_MAX:
            numbers[label] = "does not fit in int32"
    return numbers, listed or None
