"""Labels that are lists of numbers, one of each of a table's columns: multi-hot, or float."""

import math
import re
from array import array
from collections import Counter
from typing import Any

import numpy as np

from .record import Label, LabelKind

NUMBER = re.compile(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")  # no NaN, no infinity


class LabelColumns:
    """The columns of a table that together are the label, and their numbers."""

    def __init__(self, is_float: bool):
        self.is_float = is_float  # also where all numbers are 0 or 1
        self.names: list[str] = []  # none where a label is a class
        self._values = array("f")

    def add(self, cells: list[str]) -> list[str]:
        """Add a row of the columns' cells, and return what is wrong with each that is not a number."""
        values = array("f", [float(c) if NUMBER.fullmatch(c) else math.nan for c in cells])
        self._values += values
        return [
            f"the label {cell[:60]!r} in column {name!r} is not a number that fits in float32"
            for name, cell, value in zip(self.names, cells, values, strict=True)
            if not math.isfinite(value)
        ]

    def vectors(self) -> np.ndarray:
        """Return a row of numbers for each image: int32 if all are 0 or 1, else float32."""
        values = np.array(self._values, np.float32).reshape(-1, len(self.names))
        is_multi_hot = not self.is_float and ((values == 0) | (values == 1)).all()
        return values.astype(np.int32) if is_multi_hot else values


def counted(label: Label, kind: LabelKind) -> list[int]:
    """Return what ``label_counts`` counts of a label: the class, or the columns that are not 0."""
    if kind.length is None:
        return [label]
    return [] if kind.type == "float32" else [n for n, value in enumerate(label) if value]


def label_fields(kind: LabelKind, counts: Counter[int], names: list[str] | None) -> dict[str, Any]:
    """Return the fields of a Manifest about labels, of which ``counted`` counted these."""
    listed = sorted(counts) if kind.length is None else range(kind.length)
    return {
        "num_classes": kind.length or len(names or ()) or max(max(counts) + 1, 0),
        "class_names": [str(n) for n in range(kind.length)] if kind.length and not names else names,
        "label_counts": {str(n): counts[n] for n in listed if kind.type != "float32"},
        "label_type": kind.type,
        "label_length": kind.length,
    }


def describe_columns(values: array, names: list[str]) -> list[str]:
    """Return a line for each column of float labels: name, mean, minimum and maximum."""
    columns = np.array(values).reshape(-1, len(names)).T
    width = min(max(map(len, names)), 30)
    return [
        f"  {name[:30]:>{width}}  mean {each.mean():.4g}, min {each.min():.4g}, max {each.max():.4g}"
        for name, each in zip(names, columns, strict=True)
    ]
