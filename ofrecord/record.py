"""Records: the bytes of a part file, and what they hold.

A part file is records one after the other. A record is a length in bytes
(int64, little-endian), then that many bytes of a serialized protobuf message::

    message OFRecord { map<string, Feature> feature = 1; }

It holds two features: ``images``, a bytes list with one encoded image (a whole
PNG or JPEG file), and ``labels``, an int32 list with one label, or an int32 or
float list with several::

    from ofrecord.record import read_part

    for index, image, label in read_part("dataset/part-0"):
        print(index, len(image), label)

The message and the length are OneFlow's: ``oneflow/core/record/record.proto``,
and what its OFRecordReader reads. There are no checksums; the manifest has them.
"""

import importlib.util
import os
import struct
from collections.abc import Iterator, Sequence
from functools import cache
from typing import BinaryIO, NamedTuple

from runtime.atomic import open_regular_file
from runtime.environment import oneflow_folder

IMAGE_FEATURE = "images"
LABEL_FEATURE = "labels"

LENGTH = struct.Struct("<q")
INT32_MIN, INT32_MAX = -(2**31), 2**31 - 1

LABEL_TYPES = {"int32_list": "int32", "int64_list": "int64", "float_list": "float32"}
Label = int | Sequence[float]  # a class, or several numbers


class LabelKind(NamedTuple):
    """What kind of label a record has."""

    type: str  # one of LABEL_TYPES
    length: int | None = None  # None: an integer, the class; else a list of so many numbers

    def __str__(self) -> str:
        what = "with one label" if self.length is None else f"of length {self.length}"
        return f"{'a' if self.type == 'float32' else 'an'} {self.type} list {what}"


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


@cache
def reused_record(
    dataname: str, labelname: str, kind: str, num_labels: int
) -> tuple[OFRecord, list, list]:
    """Return an OFRecord with two features, and the lists of their values, to be filled.

    ``kind`` is a list's name in LABEL_TYPES. It is the same record at each call: making a new
    one takes half of the time of packing a small image.
    """
    record = OFRecord()
    images = record.feature[dataname].bytes_list.value
    labels = getattr(record.feature[labelname], kind).value
    images.append(b"")
    labels.extend([0] * num_labels)
    return record, images, labels


class BadRecord(Exception):
    """The bytes of a part file are not the records that they should be.

    The message says what is wrong with which record, numbered from 0.
    """

    def __init__(self, index: int, reason: str):
        super().__init__(f"record {index}: {reason}")


def split_part(path: str) -> Iterator[tuple[int, bytes]]:
    """Yield (index, serialized record) of each record of a part file, without parsing it.

    ``index`` counts from 0. Raises BadRecord at the first length that is not
    positive or reaches beyond the end of the file, for an empty file and for
    a TFRecord file; OSError if the file cannot be read.
    """
    with open_regular_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size == 0:
            raise BadRecord(0, "the part file is empty")
        if is_tfrecord(file, size):
            raise BadRecord(0, "TFRecord, which OneFlow does not read")
        file.seek(0)
        position = index = 0
        while position < size:
            position += LENGTH.size
            if position > size:
                raise BadRecord(index, "the file ends inside its length field")
            (length,) = LENGTH.unpack(file.read(LENGTH.size))
            left = size - position
            if length <= 0:
                raise BadRecord(index, f"invalid length {length}")
            if length > left:
                what = f"it should have {length:,} bytes and the file ends after {left:,}"
                raise BadRecord(index, what)
            yield index, file.read(length)
            position += length
            index += 1


def is_tfrecord(file: BinaryIO, size: int) -> bool:
    """Whether a file's first record ends where it would in TensorFlow's framing.

    There, a record is its length (8 bytes), the length's checksum (4), the data and the
    data's checksum (4): https://www.tensorflow.org/tutorials/load_data/tfrecord.
    """
    position = 0
    for _ in range(2):
        if position + LENGTH.size > size:
            return False
        file.seek(position)
        (length,) = LENGTH.unpack(file.read(LENGTH.size))
        position += LENGTH.size + 4 + length + 4
        if not 0 < length < size or position >= size:
            return position == size
    return True


def read_part(
    path: str,
    image_feature: str = IMAGE_FEATURE,
    label_feature: str = LABEL_FEATURE,
    kind: LabelKind | None = None,
) -> Iterator[tuple[int, bytes, Label]]:
    """Yield (index, encoded image, label) of each record of a part file.

    ``index`` counts from 0, the image is the bytes of an image file, the label an
    int, or a tuple of numbers. Raises BadRecord for a record that is not as read_record
    expects it, and OSError if the file cannot be read.
    """
    for index, serialized in split_part(path):
        yield index, *read_record(serialized, index, image_feature, label_feature, kind)[:2]


def read_record(
    serialized: bytes,
    index: int = 0,
    image_feature: str = IMAGE_FEATURE,
    label_feature: str = LABEL_FEATURE,
    kind: LabelKind | None = None,
) -> tuple[bytes, Label, LabelKind]:
    """Return the encoded image, the label, and the label's kind, of one serialized record.

    The label is an int, or a tuple where it is several numbers, or floats. ``index`` is
    for messages only. Raises BadRecord if the bytes are not an OFRecord, or if it does
    not hold exactly one image, and a label of this ``kind`` (None: of any), under the given names.
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
    images = feature[image_feature].bytes_list.value
    name = feature[label_feature].WhichOneof("kind")
    labels = tuple(getattr(feature[label_feature], name).value) if name in LABEL_TYPES else ()
    if len(images) != 1 or not images[0]:
        raise BadRecord(index, f"feature {image_feature!r} is not a bytes list with one image")
    is_class = len(labels) == 1 and name != "float_list"
    found = LabelKind(LABEL_TYPES.get(name, ""), None if is_class else len(labels))
    if not labels or found != (kind or found):
        raise BadRecord(index, f"feature {label_feature!r} is not {kind or LabelKind('int32')}")
    return images[0], labels[0] if is_class else labels, found
