"""Whether datasets suit a training's configuration, and which parts of them each rank reads."""

import os
import re

from ofrecord.manifest import Manifest, Part, part_sizes
from runtime.cli import InputError, count, first_few

from .config import TrainConfig
from .ranks import WORLD_SIZE


def check_fit(config: TrainConfig, dataset: Manifest, eval_dataset: Manifest | None) -> None:
    """Check the datasets against the configuration and this machine's memory.

    Raises InputError for the first thing that does not fit.
    """
    if config.batch_size > dataset.num_records:
        images = count(dataset.num_records, "image")
        raise InputError(
            f"batch_size {config.batch_size} is larger than the dataset: "
            f"{config.dataset_dir} has {images}"
        )
    for folder, each in ((config.dataset_dir, dataset), (config.eval_dataset_dir, eval_dataset)):
        if each and each.width is None and config.image_size is None:
            raise InputError(f"the images in {folder} vary in size: give --image_size")
    width, height = (config.image_size or dataset.width), (config.image_size or dataset.height)
    if min(width, height) < 4:
        raise InputError(
            f"{width}x{height} images are too small for LeNet, which halves them twice: "
            "give --image_size 4 or larger"
        )
    check_memory(config, dataset, width, height)
    choose_decoder(config.decoder, config.dataset_dir, dataset)
    check_ranks(config, dataset, eval_dataset)
    if config.picture and not (
        re.search(r"[^/]\.png\Z", config.picture)
        and os.path.isdir(os.path.dirname(config.picture) or ".")
    ):
        raise InputError(f"picture {config.picture}: it must be a .png file in an existing folder")
    if eval_dataset:
        check_same_kind(config, dataset, eval_dataset)


def check_memory(config: TrainConfig, dataset: Manifest, width: int, height: int) -> None:
    """Raise InputError if training would need more than 80 % of this machine's memory."""
    parameters = 512 * (64 * (width // 4) * (height // 4) + dataset.num_classes)
    # The outputs of both convolutions.
    activations = config.batch_size * width * height * (32 + 64 // 4)
    # In float32: each weight with its gradient and Adam's two moments; each output
    # again after ReLU, and the gradients of both.
    needed = 16 * (parameters + activations)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > 0.8 * memory:
        classes = count(dataset.num_classes, "class")
        raise InputError(
            f"LeNet for {width}x{height} images, {classes} and batch_size {config.batch_size} "
            f"needs about {needed / 1e9:,.0f} GB of memory, and this machine has "
            f"{memory / 1e9:,.0f} GB: give a smaller --image_size or --batch_size"
        )


def check_same_kind(config: TrainConfig, dataset: Manifest, eval_dataset: Manifest) -> None:
    """Raise InputError if a model trained on one dataset cannot be evaluated on the other."""
    folders = f"{config.dataset_dir} and {config.eval_dataset_dir}"

    def differ(what, train_value, eval_value):
        raise InputError(f"{folders} do not match: {what} {train_value} and {eval_value}")

    if dataset.channels != eval_dataset.channels:
        kinds = {1: "gray", 3: "colour"}
        differ("their images are", kinds[dataset.channels], kinds[eval_dataset.channels])
    train_size = f"{dataset.width}x{dataset.height}"
    eval_size = f"{eval_dataset.width}x{eval_dataset.height}"
    if config.image_size is None and train_size != eval_size:
        differ("their images (without --image_size) are", train_size, eval_size)
    if dataset.split_id and eval_dataset.split_id and dataset.split_id != eval_dataset.split_id:
        raise InputError(
            f"{folders} come from different splits (--val_share), so that an image may be in "
            "both: convert the images again"
        )
    if dataset.class_names != eval_dataset.class_names:
        names = [first_few(each.class_names or ["unnamed"]) for each in (dataset, eval_dataset)]
        differ("their classes are", *names)
    if eval_dataset.num_classes > dataset.num_classes:
        differ("their numbers of classes are", dataset.num_classes, eval_dataset.num_classes)


def choose_decoder(setting: str, folder: str, dataset: Manifest) -> str:
    """Return ``"fused"`` or ``"bytes"``, for the config's ``auto``, ``fused`` or ``bytes``.

    Since OneFlow 0.7 the fused decoder passes every image to libjpeg, which
    ends the process at the first PNG; gray, CMYK and rotated JPEGs are decoded
    to wrong pixels. Raises InputError if it was set for such a dataset.
    """
    if setting == "fused" and not dataset.suits_fused_decoder:
        raise InputError(
            f"decoder fused: OneFlow's fused decoder reads plain 3-channel JPEG only, and not all "
            f"images in {folder} are: use --decoder bytes"
        )
    return "fused" if setting != "bytes" and dataset.suits_fused_decoder else "bytes"


def parts_per_rank(dataset: Manifest) -> list[list[Part]]:
    """Return the parts that each rank reads, as OneFlow's reader distributes them."""
    by_rank, parts = [], list(dataset.parts)
    for size in part_sizes(len(parts), WORLD_SIZE):
        by_rank.append(parts[:size])
        del parts[:size]
    return by_rank


def records_per_rank(dataset: Manifest) -> list[int]:
    """Return the number of records that each rank reads."""
    return [sum(part.num_records for part in parts) for parts in parts_per_rank(dataset)]


def check_ranks(config: TrainConfig, dataset: Manifest, eval_dataset: Manifest | None) -> None:
    """Raise InputError if parts or batches cannot be distributed evenly over the ranks."""
    if WORLD_SIZE == 1:
        return
    if config.batch_size % WORLD_SIZE:
        raise InputError(
            f"batch_size {config.batch_size} is not divisible by the world size {WORLD_SIZE}: "
            f"give a multiple of {WORLD_SIZE}"
        )
    num_parts = len(dataset.parts)
    if num_parts % WORLD_SIZE:
        divisible = -(-num_parts // WORLD_SIZE) * WORLD_SIZE
        parts = count(num_parts, "part")
        raise InputError(
            f"{config.dataset_dir} has {parts}, not divisible by the world size {WORLD_SIZE}: "
            f"convert the images with --part_num {divisible}"
        )
    if eval_dataset and len(eval_dataset.parts) < WORLD_SIZE:
        parts = count(len(eval_dataset.parts), "part")
        raise InputError(
            f"{config.eval_dataset_dir} has {parts}, fewer than the world size {WORLD_SIZE}: "
            f"convert the images with --part_num {WORLD_SIZE}"
        )
    records = records_per_rank(dataset)
    # The converter's parts differ by one record.
    if max(records) > min(records) + num_parts // WORLD_SIZE:
        numbers = " and ".join(f"{number:,}" for number in records)
        raise InputError(
            f"{config.dataset_dir}: the parts are too uneven: {WORLD_SIZE} ranks would read "
            f"{numbers} records; convert the images again with img2ofrecord.py"
        )
    if config.batch_size > WORLD_SIZE * min(records):
        raise InputError(f"batch_size {config.batch_size} is larger than the dataset")
