"""The converter's options about images, labels and splits."""

from typing import Annotated

from pydantic import Field, model_validator

from runtime.atomic import why_no_folder
from runtime.settings import Name, StrictModel, setting

Fraction = Annotated[float, Field(gt=0, lt=1)]


class SourceOptions(StrictModel):
    """Which images to convert, with which labels, for which datasets."""

    image_root: Name = setting("./data/images/train_set/", "the folder of the image files", "DIR")
    label_dir: Name = setting(
        "./data/images/train_label/label.txt",
        'the label file: a JSON object {"image name": label} a line; a table with a header, whose '
        "column `split` (train, val, test) makes datasets; metadata.jsonl; or name and label a line",
        "FILE",
    )
    class_folders: bool = setting(False, "no label file: each folder in the image root is a class")
    image_column: Name | None = setting(None, "of image names, in a table; null: guessed", "NAME")
    label_column: Name | None = setting(None, "of labels, in a table; null: guessed", "NAME")
    classes: Name | None = setting(
        None, "a file with a class name a line: the classes, in this order; null: sorted", "FILE"
    )
    limit: int | None = setting(None, "take N images at random, of all classes", "N", ge=1)
    shuffle: bool = setting(False, "random order, which sorted labels need to be trained on")
    val_fraction: Fraction | None = setting(
        None, "hold out this fraction of each class, at random, as a second dataset", "FRACTION"
    )
    test_fraction: Fraction | None = setting(None, "the same, as a dataset for testing", "FRACTION")
    seed: int = setting(0, "of what is chosen at random, and of --shuffle", "N", ge=0, lt=2**63)

    @model_validator(mode="after")
    def _go_together(self):
        if problems := self.problems():
            raise ValueError("\n".join(problems))
        return self

    def problems(self) -> list[str]:
        """Return what is wrong with the options together, a line each."""
        problems, given = [], self.model_fields_set
        if "seed" in given and not (self.shuffle or self.fractions or self.limit):
            problems.append("--seed is for --shuffle, --limit, --val_fraction and --test_fraction")
        if sum(self.fractions.values()) >= 1:
            problems.append("--val_fraction and --test_fraction leave nothing to train on")
        if self.class_folders and given & {"label_dir", "image_column", "label_column"}:
            problems.append(
                "--label_dir, --image_column and --label_column are not for --class_folders"
            )
        if reason := why_no_folder(self.image_root):
            problems.append(f"--image_root {self.image_root} {reason}")
        return problems

    @property
    def fractions(self) -> dict[str, float]:
        """The fractions to hold out, by split."""
        given = {"val": self.val_fraction, "test": self.test_fraction}
        return {split: fraction for split, fraction in given.items() if fraction is not None}
