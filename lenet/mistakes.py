"""mistakes.csv: which images a model is wrong about, the most confident mistakes first."""

from ofrecord.dataset.images_csv import csv_line, read_rows
from ofrecord.dataset.open_dataset import Dataset
from runtime.atomic import replace_file
from runtime.cli import InputError, os_errors

from .evaluation import Evaluation
from .spec import ModelSpec

COLUMNS = ["file", "label", "predicted", "probability"]


def write_mistakes(path: str, evaluation: Evaluation, dataset: Dataset, spec: ModelSpec) -> None:
    """Write the misclassified images of a dataset by their files' names. Raises InputError.

    ``label`` and ``predicted`` are names of classes, or numbers where they have none. An image
    without a name is ``part-0, record 3``.
    """
    wanted = {mistake.index for mistake in evaluation.mistakes}
    files = {}
    for index, row in enumerate(read_rows(dataset.folder)):
        if index in wanted:
            files[index] = row.image or f"{row.part}, record {row.record}"
    if len(files) < len(wanted):
        raise InputError(f"{dataset.folder}/images.csv has fewer rows than the dataset has records")
    with os_errors("write", path), replace_file(path, "w") as file:
        file.write(csv_line(COLUMNS) + "\n")
        for index, *classes, probability in sorted(evaluation.mistakes, key=lambda m: -m[3]):
            names = map(spec.class_name, classes)
            file.write(csv_line([files[index], *names, f"{probability:.6f}"]) + "\n")
