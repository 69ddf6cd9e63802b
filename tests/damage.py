"""Functions that damage a dataset: a byte of a file, a record, a field of the manifest; and the command that finds it."""

import hashlib
import json
import operator
import os
import struct

from helpers import call, part_files

from ofrecord.record import OFRecord

MANIFEST = "dataset.json"


def flip(path, position):
    """Flip one bit of the byte at ``position``."""
    content = bytearray(path.read_bytes())
    content[position] ^= 0x40
    path.write_bytes(content)


def cut(path, size):
    """Keep the first ``size`` bytes of a file; all but so many of the last where it is negative."""
    path.write_bytes(path.read_bytes()[:size])


def rewrite_manifest(dataset, **fields):
    """Replace top-level fields of dataset.json and sign it anew, as if the converter had written it."""
    path = dataset / MANIFEST
    manifest = {**json.loads(path.read_text(encoding="utf-8")), **fields}
    manifest.pop("sha256")
    text = json.dumps(manifest, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    manifest["sha256"] = hashlib.sha256(text.encode("ascii")).hexdigest()
    path.write_text(json.dumps(manifest), encoding="utf-8")


def change_record(dataset, change):
    """Let ``change(feature)`` alter the first record, and make the manifest agree with the new bytes."""
    path = part_files(dataset)[0]
    content = path.read_bytes()
    (length,) = struct.unpack("<q", content[:8])
    record = OFRecord.FromString(content[8 : 8 + length])
    change(record.feature)
    content = frame(record) + content[8 + length :]
    path.write_bytes(content)
    if (dataset / MANIFEST).exists():
        parts = json.loads((dataset / MANIFEST).read_text(encoding="utf-8"))["parts"]
        parts[0].update(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
        rewrite_manifest(dataset, parts=parts)


def frame(record):
    """A record as it stands in a part file: its length, then its bytes."""
    serialized = record.SerializeToString()
    return struct.pack("<q", len(serialized)) + serialized


def set_label(value):
    """For change_record: another label."""
    return lambda feature: operator.setitem(feature["labels"].int32_list.value, 0, value)


def set_image(data):
    """For change_record: other bytes in place of the image."""
    return lambda feature: operator.setitem(feature["images"].bytes_list.value, 0, data)


def ofrecord(*arguments):
    """``python -m ofrecord`` in this process, which is not forked: there is a worker for each CPU that it may use."""
    cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cpus)})
    try:
        return call("ofrecord.__main__", *arguments)
    finally:
        os.sched_setaffinity(0, cpus)
