"""One OFRecord: its features and how it is framed in a part file.

A part file is a sequence of records, each an 8-byte little-endian length
followed by that many bytes of a serialized ``OFRecord`` protobuf::

    message OFRecord { map<string, Feature> feature = 1; }

Here a record holds two features: ``images``, a bytes list with one encoded
image, and ``labels``, an int32 list with one class number.
"""

import importlib.util
import os
import struct
from collections import Counter
from collections.abc import Iterator
from mmap import mmap

from runtime.cli import count
from runtime.environment import oneflow_folder

IMAGE_FEATURE = "images"
LABEL_FEATURE = "labels"

LENGTH = struct.Struct("<q")
INT32_MIN, INT32_MAX = -(2**31), 2**31 - 1


def _load_record_pb2():
    """Return OneFlow's generated protobuf module without importing OneFlow itself.

    ``import oneflow.core.record.record_pb2`` would start the whole engine
    (0.8 s and 300 MB) for one file that needs only protobuf.
    """
    path = os.path.join(oneflow_folder(), "core", "record", "record_pb2.py")
    spec = importlib.util.spec_from_file_location("oneflow_record_pb2", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


record_pb2 = _load_record_pb2()
OFRecord = record_pb2.OFRecord


class BadRecord(Exception):
    """Raised when a part file's bytes are not valid records.

    The message states the reason; ``index`` is the record's index, from 0.
    """

    def __init__(self, index: int, reason: str) -> None:
        super().__init__(f"record {index}: {reason}")
        self.index = index


class MissingFeature(BadRecord):
    """Raised when a record lacks a requested feature."""


def split_records(buffer: bytes | mmap) -> Iterator[bytes]:
    """Yield each record's serialized bytes from the bytes of a whole part file.

    Raises BadRecord at the first invalid length, after which the rest of the
    file cannot be read.
    """
    position, index, end = 0, 0, len(buffer)
    while position < end:
        if end - position < LENGTH.size:
            raise BadRecord(index, "the file ends inside its length field")
        (length,) = LENGTH.unpack_from(buffer, position)
        position += LENGTH.size
        if length <= 0:
            raise BadRecord(index, f"invalid length {length}")
        if length > end - position:
            size = count(length, "byte")
            raise BadRecord(
                index, f"its length is {size}, but the file ends after {end - position:,}"
            )
        yield buffer[position : position + length]
        position += length
        index += 1


def read_record(
    serialized: bytes,
    index: int = 0,
    image_feature: str = IMAGE_FEATURE,
    label_feature: str = LABEL_FEATURE,
    label_kinds: Counter[str] | None = None,
) -> tuple[bytes, int]:
    """Return the encoded image and the label of one serialized record.

    The label is an int32 list with one value; an int64 list, which other
    converters write, is accepted too, and ``label_kinds`` counts which of the
    two it was. Raises BadRecord where the bytes are not an OFRecord or do not
    hold exactly one of each, and MissingFeature where a feature is missing.
    """
    try:
        feature = OFRecord.FromString(serialized).feature
        for name in (image_feature, label_feature):
            if name not in feature:
                raise MissingFeature(index, f"no feature {name!r}, only {sorted(feature)}")
    except MissingFeature:
        raise
    except Exception as error:  # protobuf's DecodeError, or a UnicodeDecodeError of a name
        raise BadRecord(index, f"not an OFRecord ({error})") from error
    images = feature[image_feature].bytes_list.value
    label_kind = feature[label_feature].WhichOneof("kind")
    labels = (
        getattr(feature[label_feature], label_kind).value
        if label_kind in ("int32_list", "int64_list")
        else ()
    )
    if len(images) != 1 or not images[0]:
        raise BadRecord(index, f"feature {image_feature!r} is not a bytes list with one image")
    if len(labels) != 1:
        raise BadRecord(index, f"feature {label_feature!r} is not an int32 list with one label")
    if label_kinds is not None:
        label_kinds[label_kind[: -len("_list")]] += 1
    return images[0], labels[0]
