"""A training's datasets, and checks that it can use them, on this machine and on so many ranks."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import zip_longest

from ofrecord.dataset.images_csv import read_rows
from ofrecord.dataset.open_dataset import Dataset, dataset_in_use, open_dataset
from runtime.cli import InputError, count, log, module_command

from .config import TrainConfig
from .ranks import RANK, WORLD_SIZE


@contextmanager
def open_datasets(config: TrainConfig) -> Iterator[tuple[Dataset, Dataset | None]]:
    """Open the datasets to train and to evaluate on, and keep converters from replacing them.

    Each rank compares the hashes of its own parts. Raises InputError for the first reason why
    this training cannot be.
    """
    folders = config.dataset_dir, config.eval_dataset_dir
    with dataset_in_use(folders[0]), dataset_in_use(folders[1]):
        train_set, eval_set = (
            open_dataset(folder, config.check_hashes, RANK, WORLD_SIZE) if folder else None
            for folder in folders
        )
        check_batches(config, train_set, eval_set)
        log(f"dataset: {train_set.manifest.summary}")
        if eval_set:
            check_same_kind(config, train_set, eval_set)
            log(f"evaluation dataset: {eval_set.manifest.summary}")
            if RANK == 0:
                warn_of_leaks(train_set, eval_set)
        yield train_set, eval_set


def warn_of_leaks(train_set: Dataset, eval_set: Dataset) -> None:
    """Log how many images of the evaluation dataset are trained on: their stored bytes agree."""
    trained = {row.sha256 for row in read_rows(train_set.folder)}
    leaks = [row for row in read_rows(eval_set.folder) if row.sha256 in trained]
    if leaks:
        check = module_command("ofrecord", "check", train_set.folder, eval_set.folder)
        log(
            f"{train_set.folder} has {count(len(leaks), 'image')} of {eval_set.folder}, too "
            f"(such as {leaks[0].image or leaks[0].part}): the accuracy looks better than it is; "
            f"`{check}` names all",
            "warning",
        )


def check_batches(config: TrainConfig, train_set: Dataset, eval_set: Dataset | None) -> None:
    """Raise InputError where a rank would get too little, or less than another."""
    if config.batch_size % WORLD_SIZE:
        raise InputError(
            f"batch_size {config.batch_size} is not divisible by the world size {WORLD_SIZE}: "
            f"give a multiple of {WORLD_SIZE}"
        )
    num_parts = len(train_set.manifest.parts)
    records = train_set.records_per_rank(WORLD_SIZE)
    # Parts that the converter wrote differ by one record at most.
    if num_parts % WORLD_SIZE or max(records) > min(records) + num_parts // WORLD_SIZE:
        raise InputError(
            f"{train_set.folder}: {WORLD_SIZE} ranks would read {' and '.join(map(str, records))} "
            f"records each; they need equal parts: {reshard(train_set)}"
        )
    if eval_set and len(eval_set.manifest.parts) < WORLD_SIZE:
        parts = count(len(eval_set.manifest.parts), "part")
        raise InputError(
            f"{eval_set.folder} has {parts}, fewer than the world size {WORLD_SIZE}: "
            f"{reshard(eval_set)}"
        )
    if config.batch_size > WORLD_SIZE * min(records):
        images = f"{count(WORLD_SIZE * min(records), 'image')} of {train_set.folder}"
        ranks = f", for {count(WORLD_SIZE, 'rank')}" if WORLD_SIZE > 1 else ""
        raise InputError(f"batch_size {config.batch_size} is larger than the {images}{ranks}")


def reshard(dataset: Dataset) -> str:
    """Return how to copy a dataset into parts of equal sizes for the ranks."""
    parts, records = len(dataset.manifest.parts), dataset.manifest.num_records
    num_parts = min(-(-parts // WORLD_SIZE), records // WORLD_SIZE) * WORLD_SIZE
    if not num_parts:
        return "it has too few images: start fewer ranks"
    command = module_command("ofrecord", "merge", dataset.folder, "NEW_DIR")
    return f"`{command} --part_num {num_parts}` makes them"


def check_same_kind(config: TrainConfig, train_set: Dataset, eval_set: Dataset) -> None:
    """Raise InputError where a model for one dataset cannot be evaluated on the other."""
    train, held_out = train_set.manifest, eval_set.manifest
    folders = f"{train_set.folder} and {eval_set.folder}"
    if train.digest == held_out.digest:
        raise InputError(f"{folders} are the same dataset: evaluate on other images")
    if held_out.split_id and train.split_id and held_out.split_id != train.split_id:
        raise InputError(
            f"{folders} come from different splits (--val_fraction), so that an image may be in "
            "both: convert again"
        )

    def differ(what: str, one: object, other: object, hint: str = "") -> None:
        if one != other:
            raise InputError(f"{folders} do not match: {what} {one} and {other}{hint}")

    differ("their images are", train.color_name, held_out.color_name)
    if config.image_size is None:
        sizes = (f"{each.width}x{each.height}" for each in (train, held_out))
        differ("their images (without --image_size) are", *sizes)
    names = train.class_names or [], held_out.class_names or []
    for label, (one, other) in enumerate(zip_longest(*names, fillvalue="unnamed")):
        differ(f"class {label} is", one, other, ": convert both with one --classes file")
    if held_out.num_classes > train.num_classes:
        differ("their numbers of classes are", train.num_classes, held_out.num_classes)
