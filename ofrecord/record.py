"""Records: the bytes of a part file, and what they hold.

A part file is records one after the other. A record is a length in bytes
(int64, little-endian), then that many bytes of a serialized protobuf message::

    message OFRecord { map<string, Feature> feature = 1; }

It holds two features: ``images``, a bytes list with one encoded image (a whole
PNG or JPEG file), and ``labels``, an int32 list with one class::

    from ofrecord.record import read_part

    for index, image, label in read_part("dataset/part-0"):
        print(index, len(image), label)

The message and the length are OneFlow's: ``oneflow/core/record/record.proto``,
and what its OFRecordReader reads. There are no checksums; the manifest has them.
"""

import importlib.util
import os
import struct
from collections.abc import Iterator

from runtime.atomic import open_regular_file
from runtime.environment import oneflow_folder

IMAGE_FEATURE = "images"
LABEL_FEATURE = "labels"

LENGTH = struct.Struct("<q")
INT32_MIN, INT32_MAX = -(2**31), 2**31 - 1

LABEL_TYPES = {"int32_list": "int32", "int64_list": "int64"}


def _load_record_pb2():
    """Return OneFlow's module of generated protobuf classes, without importing OneFlow itself.

    ``import oneflow.core.record.record_pb2`` would start the whole engine
    (0.8 s and 300 MB) for one file that needs nothing but protobuf.
    """
    path = os.path.join(oneflow_folder(), "core", "record", "record_pb2.py")
    spec = importlib.util.spec_from_file_location("oneflow_record_pb2", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


OFRecord = _load_record_pb2().OFRecord


class BadRecord(Exception):
    """The bytes of a part file are not the records that they should be.

    The message says what is wrong with which record, numbered from 0.
    """

    def __init__(self, index: int, reason: str):
        super().__init__(f"record {index}: {reason}")
        self.index, self.reason = index, reason


def split_part(path: str) -> Iterator[tuple[int, bytes]]:
    """Yield (index, serialized record) of each record of a part file, without parsing it.

    ``index`` counts from 0. Raises BadRecord for an empty file, and at the first length that is
    not positive or reaches beyond the end of the file; OSError if the file cannot be read.
    """
    with open_regular_file(path) as file:
        left, index = os.fstat(file.fileno()).st_size, 0
        if left == 0:
            raise BadRecord(0, "the part file is empty")
        while head := file.read(LENGTH.size):
            left -= LENGTH.size
            if len(head) < LENGTH.size:
                raise BadRecord(index, "the file ends inside its length field")
            (length,) = LENGTH.unpack(head)
            if not 0 < length <= left:
                what = f"its length is {length:,} bytes, and the file ends after {left:,}"
                raise BadRecord(index, what)
            yield index, file.read(length)
            left -= length
            index += 1


def read_part(
    path: str, image_feature: str = IMAGE_FEATURE, label_feature: str = LABEL_FEATURE
) -> Iterator[tuple[int, bytes, int]]:
    """Yield (index, encoded image, label) of each record of a part file.

    ``index`` counts from 0, the image is the bytes of an image file. Raises BadRecord for a
    record that is not as read_record expects it, and OSError if the file cannot be read.
    """
    for index, serialized in split_part(path):
        image, label, _ = read_record(serialized, index, image_feature, label_feature)
        yield index, image, label


def read_record(
    serialized: bytes,
    index: int = 0,
    image_feature: str = IMAGE_FEATURE,
    label_feature: str = LABEL_FEATURE,
) -> tuple[bytes, int, str]:
    """Return the encoded image, the label and the label's type of one serialized record.

    The type is ``"int32"``, or ``"int64"`` in datasets of other converters. ``index`` is for
    messages only. Raises BadRecord if the bytes are not an OFRecord, or if it does not hold
    exactly one image and one integer under the given names.
    """
    try:
        feature = OFRecord.FromString(serialized).feature
        names = sorted(feature)
    except Exception as error:  # protobuf's DecodeError, or a UnicodeDecodeError of a name
        raise BadRecord(index, f"not an OFRecord ({error})") from None
    for name in (image_feature, label_feature):
        if name not in names:
            hint = "name the features with --image_feature and --label_feature"
            raise BadRecord(index, f"no feature {name!r}, only {names}: {hint}")
    images, label = feature[image_feature].bytes_list.value, feature[label_feature]
    kind = label.WhichOneof("kind")
    labels = getattr(label, kind).value if kind in LABEL_TYPES else ()
    if len(images) != 1 or not images[0]:
        raise BadRecord(index, f"feature {image_feature!r} is not a bytes list with one image")
    if len(labels) != 1:
        raise BadRecord(
            index, f"feature {label_feature!r} is not an int32 or int64 list with one label"
        )
    return images[0], labels[0], LABEL_TYPES[kind]
