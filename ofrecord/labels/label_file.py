"""Label files: the images that they list, with their labels."""

import csv
import sys
from array import array
from collections import Counter

from runtime.cli import InputError, InputErrors, count

from .files import ImageFiles, is_image, open_text
from .forms import find_form
from .names import number_labels
from .options import SourceOptions
from .samples import Samples

LABEL_FIRST = "stands where the label should be: the image's name comes first, then the label"


def read_label_file(options: SourceOptions) -> tuple[Samples, list[str]]:
    """Return the Samples of the label file, and the names of all images without a label.

    Raises InputErrors with every line that has a syntax error, a duplicate name, one outside of
    the image root, or a label that is no int32 or class of the class file.
    """
    path, files = options.label_dir, ImageFiles(options.image_root)
    lines: dict[str, int] = {}  # of the images
    labels, splits, problems, line = [], [], [], 0
    try:
        with open_text(path, "label file", "specify it with --label_dir") as file:
            contents, rows_of = find_form(file, options)
            for line, content in contents:
                try:
                    for image, label, split in rows_of(content) if content else ():
                        if not lines and is_image(label) and not is_image(image):
                            raise InputError(f"{path}, line {line}: {label!r} {LABEL_FIRST}")
                        name = files.resolve(image)
                        if first := lines.get(name):
                            raise ValueError(f"duplicate image {name!r}, first in line {first}")
                        lines[name] = line
                        labels.append(sys.intern(label))  # a class's images share one text
                        splits.append(split)
                except ValueError as error:
                    problems.append((line, str(error)))
    except csv.Error as error:
        raise InputError(f"{path}, line {line + 1}: invalid CSV: {error}") from None
    numbers, class_names = number_labels(Counter(labels), options.classes)
    for (name, line), label in zip(lines.items(), labels, strict=True):
        if isinstance(numbers[label], str):
            problems.append((line, f"the label {label[:60]!r} of {name!r} {numbers[label]}"))
    if problems:
        problems = [f"{path}, line {line}: {problem}" for line, problem in sorted(problems)]
        raise InputErrors(problems, f"{count(len(problems), 'problem')} in {path}")
    if not lines:
        raise InputError(f"the label file {path} lists no images")
    labels = array("i", [numbers[label] for label in labels])
    samples = Samples(list(lines), labels, class_names, splits if splits[0] else None)
    return samples, [name for name in files.names if name not in lines and is_image(name)]
