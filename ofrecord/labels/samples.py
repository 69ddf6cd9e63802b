"""Images with their labels."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

SET_NAMES = {"train": "training set", "val": "validation set", "test": "test set"}
SPLITS = {  # what people call them
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}


@dataclass
class Samples:
    """Images with their labels, in order."""

    names: list[str]  # relative to the image root
    labels: array  # int32, one for each image
    class_names: list[str] | None = None  # that labels index; None: classes have no names
    splits: list[str] | None = None  # "train", "val" or "test" for each image; None: not given

    def __len__(self) -> int:
        return len(self.names)

    def class_name(self, label: int) -> str:
        return self.class_names[label] if self.class_names else str(label)

    def take(self, indices: Sequence[int]) -> "Samples":
        """Return the Samples at these indices, in their order."""
        labels = array("i", [self.labels[i] for i in indices])
        splits = self.splits and [self.splits[i] for i in indices]
        return Samples([self.names[i] for i in indices], labels, self.class_names, splits)
