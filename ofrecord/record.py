"""One OFRecord: its features and how it is framed in a part file.

A part file is records one after the other, each an 8-byte little-endian
length and then that many bytes of a serialized ``OFRecord`` protobuf::

    message OFRecord { map<string, Feature> feature = 1; }

Here a record holds two features: ``images``, a bytes list with one encoded
image, and ``labels``, an int32 list with one class number.
"""

import importlib.util
import os
import struct

from .environment import oneflow_folder

IMAGE_FEATURE = "images"
LABEL_FEATURE = "labels"

LENGTH = struct.Struct("<q")
INT32_MIN, INT32_MAX = -2**31, 2**31 - 1


def _load_record_pb2():
    """OneFlow's generated protobuf classes, without importing OneFlow itself.

    ``import oneflow.core.record.record_pb2`` would start the whole engine
    (0.8 s and 300 MB) for one file that needs nothing but protobuf.
    """
    path = os.path.join(oneflow_folder(), "core", "record", "record_pb2.py")
    spec = importlib.util.spec_from_file_location("oneflow_record_pb2", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


record_pb2 = _load_record_pb2()
OFRecord = record_pb2.OFRecord


class BadRecord(Exception):
    """A part file's bytes are not the records that they should be.

    The message says what is wrong; ``index`` is the record's, from 0.
    """

    def __init__(self, index, reason):
        super().__init__("record {}: {}".format(index, reason))
        self.index = index


class MissingFeature(BadRecord):
    """A record that has other features than were asked for."""


def split_records(buffer):
    """Yield each record's serialized bytes from a whole part file's bytes.

    ``buffer`` is bytes or anything that slices like them (an mmap, say).
    Raises BadRecord at the first length that cannot be.
    """
    position, index, end = 0, 0, len(buffer)
    while position < end:
        if end - position < LENGTH.size:
            raise BadRecord(index, "the file ends inside its length")
        (length,) = LENGTH.unpack_from(buffer, position)
        position += LENGTH.size
        if length <= 0:
            raise BadRecord(index, "its length is {}".format(length))
        if length > end - position:
            raise BadRecord(index, "it should have {:,} bytes and the file ends after {:,}"
                            .format(length, end - position))
        yield buffer[position:position + length]
        position += length
        index += 1


def read_record(serialized, index=0, image_feature=IMAGE_FEATURE, label_feature=LABEL_FEATURE, label_kinds=None):
    """The encoded image (bytes) and the label (int) of one serialized record.

    The label is an int32 list with one value; an int64 list, which other
    converters write, is read too; which it was is counted in ``label_kinds``,
    a Counter. Raises BadRecord where it is no OFRecord or has not exactly one
    of each (MissingFeature where one is not there at all).
    """
    try:
        feature = OFRecord.FromString(serialized).feature
        for name in (image_feature, label_feature):
            if name not in feature:
                raise MissingFeature(index, "it has no feature {!r}, only {}".format(name, sorted(feature)))
    except MissingFeature:
        raise
    except Exception as error:  # protobuf's DecodeError, or a UnicodeDecodeError of a name
        raise BadRecord(index, "it is not an OFRecord ({})".format(error))
    images = feature[image_feature].bytes_list.value
    label_kind = feature[label_feature].WhichOneof("kind")
    labels = getattr(feature[label_feature], label_kind).value if label_kind in ("int32_list", "int64_list") else ()
    if len(images) != 1 or not images[0]:
        raise BadRecord(index, "its feature {!r} is not a bytes list with one image".format(image_feature))
    if len(labels) != 1:
        raise BadRecord(index, "its feature {!r} is not an int32 list with one label".format(label_feature))
    if label_kinds is not None:
        label_kinds[label_kind[:-len("_list")]] += 1
    return images[0], labels[0]
