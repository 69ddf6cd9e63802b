"""Datasets as OneFlow's reader and decoders deliver them, and not this project's own code.

``decode_with_oneflow`` starts this module as a process, as OneFlow aborts on what it dislikes.
"""

import os
import pickle
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple


class Dataset(NamedTuple):
    folder: Path
    shapes: list  # the (height, width) that each record's image must have, in order
    channels: int  # 1 gray, 3 RGB
    part_num: int
    suffix_length: int = -1  # digits in the part names; -1 for as many as it takes
    decoder: str = "bytes"  # reads every format, or "fused", which reads 3-channel JPEG only


def decode_with_oneflow(datasets):
    """What OneFlow delivers of {key: Dataset}: {key: (images, labels)}, uint8 (h, w, channels)."""
    from helpers import run_python

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "datasets"
        path.write_bytes(pickle.dumps([tuple(dataset) for dataset in datasets.values()]))
        result = run_python(__file__, path)
        assert result.code == 0, result
        return dict(zip(datasets, pickle.loads(path.read_bytes()), strict=True))


def read(flow, dataset):
    """The images and labels of a Dataset."""
    names = {"data_part_num": dataset.part_num, "part_name_suffix_length": dataset.suffix_length}
    reader = flow.nn.OFRecordReader(str(dataset.folder), batch_size=1, **names)
    read_label = flow.nn.OFRecordRawDecoder("labels", shape=(1,), dtype=flow.int32)
    color = "GRAY" if dataset.channels == 1 else "RGB"
    decode = flow.nn.OFRecordImageDecoder("images", color_space=color)
    if dataset.decoder == "bytes":
        decoders = flow.nn.OFRecordBytesDecoder("images"), flow.nn.image.decode(color_space=color)
        decode = flow.nn.Sequential(*decoders)
    images, labels = [], []
    for index, (height, width) in enumerate(dataset.shapes):
        # Before an abort, this is the last line.
        print(f"{dataset.folder}, {dataset.decoder} decoder: record {index}", file=sys.stderr)
        record = reader()
        # A batch is a tensor after resizing only; that changes nothing where the size is right.
        resize = flow.nn.image.Resize(target_size=(width, height), channels=dataset.channels)
        image, scale = resize(decode(record))[:2]
        assert (scale.numpy() == 1).all(), f"its size is not {width}x{height}"
        images.append(image.numpy()[0])
        labels.append(int(read_label(record).numpy().item()))
    return images, labels


if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    from lenet.engine import flow

    path = Path(sys.argv[1])
    found = [read(flow, Dataset(*fields)) for fields in pickle.loads(path.read_bytes())]
    path.write_bytes(pickle.dumps(found))
