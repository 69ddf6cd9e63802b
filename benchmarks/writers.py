"""Other ways to put labelled image files into a dataset, as convert.py runs them.

python benchmarks/writers.py WAY IMAGE_ROOT LABEL_FILE OUT
"""

import json
import os
import struct
import sys


def tutorial(samples, out):
    """The tutorial's way: decode, encode again, open the part and append, image by image."""
    import cv2
    from oneflow.core.record import record_pb2

    per_part = len(samples) // 5
    for index, (path, label) in enumerate(samples):
        encoded = cv2.imencode(".png", cv2.imread(path))[1].tobytes()
        record = record_pb2.OFRecord(feature={
            "images": record_pb2.Feature(bytes_list=record_pb2.BytesList(value=[encoded])),
            "labels": record_pb2.Feature(int32_list=record_pb2.Int32List(value=[label]))}).SerializeToString()
        with open(os.path.join(out, "part-{}".format(index // per_part)), "ab") as part:
            part.write(struct.pack("q", len(record)) + record)
        print("{} feature saved".format(path))


def webdataset(samples, out):
    """WebDataset's ShardWriter: tar files of the image files' own bytes. Nothing is decoded."""
    from webdataset import ShardWriter

    with ShardWriter(os.path.join(out, "part-%06d.tar"), maxcount=12000, verbose=0) as writer:
        for index, (path, label) in enumerate(samples):
            with open(path, "rb") as file:
                writer.write({"__key__": "{:08d}".format(index), "png": file.read(), "cls": label})


def streaming(samples, out):
    """MosaicML streaming's MDSWriter: shards of the image files' own bytes. Nothing is decoded."""
    from streaming import MDSWriter

    with MDSWriter(out=out, columns={"image": "bytes", "label": "int"}) as writer:
        for path, label in samples:
            with open(path, "rb") as file:
                writer.write({"image": file.read(), "label": label})


if __name__ == "__main__":
    way, root, label_file, out_folder = sys.argv[1:]
    with open(label_file) as lines:
        named = [(os.path.join(root, name), label) for line in lines for name, label in json.loads(line).items()]
    os.makedirs(out_folder, exist_ok=True)
    {"tutorial": tutorial, "webdataset": webdataset, "streaming": streaming}[way](named, out_folder)
