"""Ways to read images for training, which load.py compares.

python benchmarks/loaders.py WAY DATASET IMAGES SECONDS [SIZE [DECODER]]

Each yields normalised float32 batches of 256 images (256, channels, height,
width) with their labels, shuffled in its usual way: gray ones as they are, or with
SIZE colour ones, resized to SIZE x SIZE. It is timed after the first batches, for at
least SECONDS, and prints {"images": …, "seconds": …}.
"""

import glob
import json
import os
import sys
import time
from collections.abc import Iterator

import numpy as np

BATCH, WORKERS = 256, 2
AHEAD = 4  # batches; PyTorch's two workers prefetch two each
WARM_UP = 2 * AHEAD  # batches
MEAN, STD = 33.3, 78.6


def oneflow(dataset: str, images: str) -> Iterator:
    """Read with OneFlow's reader and decoders, on their own threads, as lenet_train.py does."""
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    from lenet_train import ImageReader, ModelSpec
    from ofrecord.dataset.open_dataset import Dataset, open_dataset

    folder, manifest = open_dataset(dataset)
    if DECODER == "bytes":
        manifest = manifest.model_copy(update={"plain_jpeg": False})
    opened = Dataset(folder, manifest)
    reader = ImageReader(opened, ModelSpec.from_dataset(opened, SIZE), BATCH, shuffle_buffer=1024)
    while True:
        # As in training, batches are requested ahead and waited for together.
        batches = [reader.next_batch() for _ in range(AHEAD)]
        batches[-1][0][0, 0, 0, 0].item()  # OneFlow works in order: the last is ready last
        yield from batches


def loaded(dataset: object, **options: object) -> Iterator:
    """Yield batches from PyTorch's DataLoader, epoch after epoch."""
    from torch.utils.data import DataLoader

    loader = DataLoader(dataset, num_workers=WORKERS, persistent_workers=True, **options)
    while True:
        yield from loader


def to_float(encoded: bytes) -> np.ndarray:
    """Decode an image to normalised float32 (channels, height, width).

    With OpenCV, which is faster than Pillow; colours are left in its order, B G R.
    """
    import cv2

    pixels = cv2.imdecode(np.frombuffer(encoded, np.uint8), 1 if SIZE else 0)
    if SIZE and pixels.shape[:2] != (SIZE, SIZE):
        pixels = cv2.resize(pixels, (SIZE, SIZE), interpolation=cv2.INTER_AREA)  # as OneFlow
    pixels = pixels.transpose(2, 0, 1) if SIZE else pixels[None]
    normalized = np.subtract(pixels, MEAN, dtype=np.float32)
    normalized /= STD
    return normalized


def use_one_thread() -> None:
    """Limit OpenCV and PyTorch to one thread, as the workers are the parallelism."""
    import cv2
    import torch

    cv2.setNumThreads(1)
    torch.set_num_threads(1)


def pytorch(dataset: str, images: str) -> Iterator:
    """Read image files with PyTorch's DataLoader."""
    import torch

    class Files(torch.utils.data.Dataset):
        def __init__(self):
            self.paths = sorted(glob.glob(os.path.join(images, "*")))

        def __len__(self):
            return len(self.paths)

        def __getitem__(self, index):
            with open(self.paths[index], "rb") as file:
                return torch.from_numpy(to_float(file.read())), index % 10

    use_one_thread()
    return loaded(Files(), batch_size=BATCH, shuffle=True, drop_last=True)


def webdataset(dataset: str, images: str) -> Iterator:
    """Read WebDataset's tar files in DataLoader workers, shuffled in a buffer of 1024 records."""
    import webdataset as wds

    use_one_thread()
    shards = sorted(glob.glob(os.path.join(dataset, "*.tar")))
    stages = wds.DataPipeline(
        wds.SimpleShardList(shards),
        wds.shuffle(100),
        wds.split_by_worker,
        wds.tarfile_to_samples(),
        wds.shuffle(1024),
        wds.map(lambda sample: (to_float(sample["image"]), int(sample["cls"]))),
        wds.batched(BATCH, partial=False),
    )
    return loaded(stages, batch_size=None)


def streaming(dataset: str, images: str) -> Iterator:
    """Read MosaicML streaming's shards in DataLoader workers."""
    import torch
    from streaming import StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    class Shards(StreamingDataset):
        def __getitem__(self, index):
            record = super().__getitem__(index)
            return torch.from_numpy(to_float(record["image"])), record["label"]

    use_one_thread()
    clean_stale_shared_memory()
    shards = Shards(local=dataset, shuffle=True, batch_size=BATCH)
    return loaded(shards, batch_size=BATCH, drop_last=True)


def main() -> None:
    global SIZE, DECODER
    way, dataset, images, seconds, size, DECODER = (*sys.argv[1:], "", "")[:6]
    SIZE = int(size) if size else None
    ways = {each.__name__: each for each in (oneflow, pytorch, webdataset, streaming)}
    batches = ways[way](dataset, images)
    for _ in range(WARM_UP):
        next(batches)
    num_images, start = 0, time.perf_counter()
    while time.perf_counter() - start < float(seconds):
        pixels, labels = next(batches)
        assert tuple(pixels.shape[:2]) == (BATCH, 3 if SIZE else 1) and len(labels) == BATCH
        num_images += BATCH
    print(json.dumps({"images": num_images, "seconds": time.perf_counter() - start}), flush=True)
    os._exit(0)  # without waiting for the workers


if __name__ == "__main__":
    main()
