"""A training's datasets, and checks that it can use them, on this machine and on so many ranks."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import zip_longest

from ofrecord.dataset import Dataset, dataset_in_use, open_dataset
from runtime.cli import InputError, count

from .config import TrainConfig
from .device import memory_of
from .ranks import WORLD_SIZE

RESHARD = "`python -m ofrecord merge {} NEW_DIR --part_num {}` copies it into equal parts"


@contextmanager
def open_datasets(config: TrainConfig) -> Iterator[tuple[Dataset, Dataset | None]]:
    """Open the datasets to train and to evaluate on, and keep converters from replacing them.

    Raises InputError for the first reason why this training cannot be.
    """
    folders = config.dataset_dir, config.eval_dataset_dir
    with dataset_in_use(folders[0]), dataset_in_use(folders[1]):
        train_set, eval_set = (
            open_dataset(folder, config.check_hashes) if folder else None for folder in folders
        )
        for folder, manifest in filter(None, (train_set, eval_set)):
            if manifest.label_length:
                kind = manifest.label_kind
                raise InputError(f"{folder}: a label is {kind}, and LeNet learns classes")
            if manifest.width is None and config.image_size is None:
                raise InputError(f"the images in {folder} vary in size: give --image_size")
        if WORLD_SIZE > 1:
            check_ranks(config, train_set, eval_set)
        if config.batch_size > WORLD_SIZE * min(train_set.records_per_rank(WORLD_SIZE)):
            images = count(train_set.manifest.num_records, "image")
            larger = f"batch_size {config.batch_size} is larger than the dataset"
            raise InputError(f"{larger}: {train_set.folder} has {images}")
        width, height = size_of_images(config, train_set)
        if min(width, height) < 4:
            raise InputError(
                f"{width}x{height} images are too small for LeNet, which halves them twice: "
                "give --image_size 4 or larger"
            )
        if eval_set:
            check_same_kind(config, train_set, eval_set)
        yield train_set, eval_set


def size_of_images(config: TrainConfig, dataset: Dataset) -> tuple[int, int]:
    """Return width and height of the images that the network gets."""
    manifest, side = dataset.manifest, config.image_size
    return side or manifest.width, side or manifest.height


def check_memory(config: TrainConfig, train_set: Dataset, device: str) -> None:
    """Raise InputError where a training would need more memory than a device has."""
    num_classes, (width, height) = train_set.manifest.num_classes, size_of_images(config, train_set)
    batch, share, owner = config.batch_size, 0.8, "this machine"
    if on_gpu := device != "cpu":  # each rank has one
        batch, share, owner = batch // WORLD_SIZE, 0.9, "the GPU"
    what = f"LeNet for images of {width}x{height}, {num_classes:,} classes and batches of {batch}"
    if on_gpu and 32 * batch * width * height >= 2**31:
        raise InputError(
            f"{what}: the first layer would return 2**31 numbers or more, which cuDNN cannot do: "
            "reduce --batch_size or --image_size"
        )
    parameters = 512 * (64 * (width // 4) * (height // 4) + num_classes)
    activations = batch * width * height * (32 + 64 // 4)  # of both convolutions
    # In float32: each weight with its gradient and Adam's two moments; each output once more
    # after ReLU, and both's gradients. An H100 was seen to need 0.9 to 1.03 times that.
    needed, memory = 16 * (parameters + activations), memory_of(device)
    if needed > share * memory or max(width, height) > 2**16:
        raise InputError(
            f"{what} needs about {needed / 1e9:,.0f} GB, and {owner} has {memory / 1e9:,.0f}: "
            "reduce --image_size, --batch_size or the number of classes"
        )


def check_ranks(config: TrainConfig, train_set: Dataset, eval_set: Dataset | None) -> None:
    """Raise InputError where a rank would get less than another, so that they run out of step."""
    if config.batch_size % WORLD_SIZE:
        raise InputError(
            f"batch_size {config.batch_size} is not divisible by the world size {WORLD_SIZE}: "
            f"give a multiple of {WORLD_SIZE}"
        )
    num_parts = len(train_set.manifest.parts)
    if num_parts % WORLD_SIZE:
        wanted = -(-num_parts // WORLD_SIZE) * WORLD_SIZE
        raise InputError(
            f"{train_set.folder} has {count(num_parts, 'part')}, not divisible by the world "
            f"size {WORLD_SIZE}: {RESHARD.format(train_set.folder, wanted)}"
        )
    if eval_set and len(eval_set.manifest.parts) < WORLD_SIZE:
        raise InputError(
            f"{eval_set.folder} has {count(len(eval_set.manifest.parts), 'part')}, fewer than the "
            f"world size {WORLD_SIZE}: {RESHARD.format(eval_set.folder, WORLD_SIZE)}"
        )
    records = train_set.records_per_rank(WORLD_SIZE)
    if max(records) > min(records) + num_parts // WORLD_SIZE:  # more than the converter's rounding
        raise InputError(
            f"{train_set.folder}: {WORLD_SIZE} ranks would read {' and '.join(map(str, records))} "
            f"records each: its parts are too uneven: {RESHARD.format(train_set.folder, num_parts)}"
        )


def check_same_kind(config: TrainConfig, train_set: Dataset, eval_set: Dataset) -> None:
    """Raise InputError where a model of the one dataset cannot be evaluated on the other."""
    train, held_out = train_set.manifest, eval_set.manifest
    folders = f"{train_set.folder} and {eval_set.folder}"
    if train.digest == held_out.digest:
        raise InputError(f"{folders} are the same dataset: evaluate on other images")
    if held_out.split_id and held_out.split_id not in train.splits:
        raise InputError(
            f"{folders} come from different splits (--val_fraction), so that an image may be in "
            "both: convert again"
        )

    def differ(what: str, one: object, other: object) -> None:
        if one != other:
            raise InputError(f"{folders} do not match: {what} {one} and {other}")

    differ("their images are", train.color_name, held_out.color_name)
    if config.image_size is None:
        sizes = (f"{each.width}x{each.height}" for each in (train, held_out))
        differ("their images (without --image_size) are", *sizes)
    names = train.class_names or [], held_out.class_names or []
    for label, (one, other) in enumerate(zip_longest(*names, fillvalue="unnamed")):
        differ(f"class {label} is", one, other)
    if held_out.num_classes > train.num_classes:
        differ("their numbers of classes are", train.num_classes, held_out.num_classes)
