"""Ways to read images for training, as load.py times them: each prints a JSON line, {"images": …, "seconds": …}.

python benchmarks/loaders.py WAY DATASET IMAGES SECONDS [OPTION]

Each delivers float32 batches of 256 (n, channels, height, width), normalised,
with their labels, shuffled as it is usual for it. Timed after the first 20
batches, for at least SECONDS.
"""

import glob
import json
import os
import sys
import time

BATCH, WORKERS, WARM_UP = 256, 2, 20
AHEAD = 10  # batches; PyTorch's workers prefetch two each
MEAN, STD = 33.3, 78.6


def oneflow(dataset, images, decoder):
    """OneFlow's reader and decoders, as lenet_train.py uses them. They have threads of their own."""
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    from lenet_train import ImagePipeline, Spec
    from ofrecord.scan import open_dataset

    manifest = open_dataset(dataset)
    pipeline = ImagePipeline(dataset, manifest, Spec.of(manifest, None), BATCH, shuffle_buffer=1024, decoder=decoder or "auto")
    while True:
        # As in training, batches are asked for ahead and waited for in bunches; they stay OneFlow's tensors.
        batches = [pipeline() for _ in range(AHEAD)]
        batches[-1][0][0, 0, 0, 0].item()  # OneFlow works in order: with the last all are there
        yield from batches


def batches_of(loader):
    while True:
        yield from loader


def to_float(encoded, flag):
    """float32 (channels, height, width) of an encoded image's bytes, with OpenCV, which is faster than Pillow."""
    import cv2
    import numpy as np

    pixels = cv2.imdecode(np.frombuffer(encoded, np.uint8), flag)
    pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return (pixels.astype(np.float32) - MEAN) / STD


def one_thread():
    import cv2
    import torch

    cv2.setNumThreads(1)  # the workers are the parallelism
    torch.set_num_threads(1)


def pytorch(dataset, images, option):
    """PyTorch's DataLoader over the image files."""
    import torch

    class Files(torch.utils.data.Dataset):
        def __init__(self):
            self.paths = sorted(glob.glob(os.path.join(images, "*")))

        def __len__(self):
            return len(self.paths)

        def __getitem__(self, index):
            with open(self.paths[index], "rb") as file:
                return torch.from_numpy(to_float(file.read(), FLAG)), index % 10

    one_thread()
    return batches_of(torch.utils.data.DataLoader(Files(), BATCH, shuffle=True, num_workers=WORKERS, drop_last=True,
                                                  persistent_workers=True))


def webdataset(dataset, images, option):
    """WebDataset: shards in tar files, read by DataLoader workers, shuffled in a buffer of 1024."""
    import torch
    import webdataset as wds

    one_thread()
    shards = sorted(glob.glob(os.path.join(dataset, "*.tar")))
    stages = wds.DataPipeline(
        wds.SimpleShardList(shards), wds.shuffle(100), wds.split_by_worker, wds.tarfile_to_samples(), wds.shuffle(1024),
        wds.map(lambda sample: (to_float(sample["png"], FLAG), int(sample["cls"]))), wds.batched(BATCH, partial=False))
    return batches_of(torch.utils.data.DataLoader(stages, batch_size=None, num_workers=WORKERS, persistent_workers=True))


def streaming(dataset, images, option):
    """MosaicML streaming: shards of its own, read by DataLoader workers."""
    import torch
    from streaming import StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    class Shards(StreamingDataset):
        def __getitem__(self, index):
            record = super().__getitem__(index)
            return torch.from_numpy(to_float(record["image"], FLAG)), record["label"]

    one_thread()
    clean_stale_shared_memory()
    return batches_of(torch.utils.data.DataLoader(Shards(local=dataset, shuffle=True, batch_size=BATCH), BATCH,
                                                  num_workers=WORKERS, drop_last=True, persistent_workers=True))


def main():
    global FLAG
    way, dataset, images, seconds = sys.argv[1:5]
    FLAG = 1 if os.environ.get("COLOR") else 0  # OpenCV's flags
    batches = iter({"oneflow": oneflow, "pytorch": pytorch, "webdataset": webdataset, "streaming": streaming}[way](
        dataset, images, sys.argv[5] if len(sys.argv) > 5 else None))
    for _ in range(WARM_UP):
        next(batches)
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < float(seconds):
        pixels, labels = next(batches)
        assert tuple(pixels.shape[:2]) == (BATCH, 3 if FLAG else 1) and len(labels) == BATCH
        count += BATCH
    print(json.dumps({"images": count, "seconds": time.perf_counter() - start}), flush=True)
    os._exit(0)  # without waiting for the workers


if __name__ == "__main__":
    main()
