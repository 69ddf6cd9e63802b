"""Functions that damage a dataset or a checkpoint, and the command that finds it in a dataset."""

import hashlib
import io
import json
import operator
import os
import struct
import warnings
import zipfile

import numpy as np
from helpers import call, part_files
from runs import about, entries

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


def make_old(dataset):
    """Make a dataset one of layout 2, which had no images.csv."""
    (dataset / "images.csv").unlink()
    fields = {"max_value": None, "label_length": None, "split_ids": [], "mixed_split_ids": []}
    rewrite_manifest(dataset, layout=2, **fields)


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


# -- checkpoints --------------------------------------------------------------------------


def edit(path, change):
    """Let ``change`` alter the arrays of a checkpoint, and write it as NumPy does."""
    found = entries(path)
    change(found)
    np.savez(path, **found)


def edit_about(path, change):
    """Let ``change`` alter what a checkpoint says of itself."""
    fields = about(path)
    change(fields)
    text = np.frombuffer(json.dumps(fields).encode(), np.uint8)
    edit(path, lambda found: found.update(checkpoint=text))


def flip_in(entry):
    """Flips a bit in the data of an entry of a checkpoint."""

    def flip(path):
        content, data = bytearray(path.read_bytes()), entries(path)[entry].tobytes()
        content[content.index(data) + len(data) // 2] ^= 1
        path.write_bytes(content)

    return flip


def add_npy(name, array, replaced=(b"", b""), **options):
    """Appends an entry to a checkpoint."""

    def add(path):
        file = io.BytesIO()
        np.save(file, array)
        with warnings.catch_warnings(), zipfile.ZipFile(path, "a") as archive:
            warnings.simplefilter("ignore")  # that it is there already
            archive.writestr(f"{name}.npy", file.getvalue().replace(*replaced), **options)

    return add


def without(name):
    return lambda path: edit(path, lambda found: found.pop(name))


def changed(name, change):
    return lambda path: edit(path, lambda found: found.update({name: change(found[name])}))


def about_with(**fields):
    return lambda path: edit_about(path, lambda found: found.update(fields))


def spec_with(**fields):
    return lambda path: edit_about(path, lambda found: found["spec"].update(fields))
