"""Other converters of labelled image files, with which convert.py compares img2ofrecord.py.

python benchmarks/writers.py WAY IMAGE_ROOT LABEL_FILE OUT
"""

import json
import os
import struct
import sys


def tutorial(samples: list[tuple[str, int]], out: str) -> None:
    """Convert as the tutorial does: decode, encode, open the part and append, image by image."""
    import cv2
    from oneflow.core.record import record_pb2

    per_part = len(samples) // 5
    for index, (path, label) in enumerate(samples):
        encoded = cv2.imencode(".png", cv2.imread(path))[1].tobytes()
        record = record_pb2.OFRecord(
            feature={
                "images": record_pb2.Feature(bytes_list=record_pb2.BytesList(value=[encoded])),
                "labels": record_pb2.Feature(int32_list=record_pb2.Int32List(value=[label])),
            }
        ).SerializeToString()
        with open(os.path.join(out, f"part-{index // per_part}"), "ab") as part:
            part.write(struct.pack("q", len(record)) + record)
        print(f"{path} feature saved")


def webdataset(samples: list[tuple[str, int]], out: str) -> None:
    """Store the files' bytes in tar files with WebDataset's ShardWriter. Nothing is decoded."""
    from webdataset import ShardWriter

    with ShardWriter(os.path.join(out, "part-%06d.tar"), maxcount=12000, verbose=0) as writer:
        for index, (path, label) in enumerate(samples):
            with open(path, "rb") as file:
                writer.write({"__key__": f"{index:08d}", "image": file.read(), "cls": label})


def streaming(samples: list[tuple[str, int]], out: str) -> None:
    """Store the files' bytes in shards with MosaicML streaming's MDSWriter, and SHA-256 of the shards."""
    from streaming import MDSWriter

    columns = {"image": "bytes", "label": "int"}
    with MDSWriter(out=out, columns=columns, hashes=["sha256"]) as writer:
        for path, label in samples:
            with open(path, "rb") as file:
                writer.write({"image": file.read(), "label": label})


if __name__ == "__main__":
    way, root, label_file, out_folder = sys.argv[1:]
    with open(label_file) as lines:
        named = [
            (os.path.join(root, name), label)
            for line in lines
            for name, label in json.loads(line).items()
        ]
    os.makedirs(out_folder, exist_ok=True)
    {"tutorial": tutorial, "webdataset": webdataset, "streaming": streaming}[way](named, out_folder)
