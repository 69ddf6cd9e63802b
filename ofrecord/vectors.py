"""Labels that are lists of numbers, one of each of a table's columns: multi-hot, or float."""

from array import array
from collections import Counter
from typing import Any

import numpy as np

from .record import Label, LabelKind


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
