"""Reads OFRecord datasets with the standard library of Python 3.8 and newer, wherever it is copied::

    from portable import read_dataset

    for name, image, label, class_name in read_dataset("dataset"):
        ...  # "00000030_3.png", the bytes of an image file, 3, "three" or None

    $ python portable.py DIR        # lists names and labels
    $ python portable.py DIR OUT    # writes the table and the images to a new folder

A part is records one after the other: a length (int64, little-endian), then a protobuf message
``OFRecord { map<string, Feature> feature = 1; }``. A Feature is a list: of bytes, float, double,
int32 or int64, in a field 1 to 5, which holds ``repeated T value = 1``, packed.
"""

import argparse
import csv
import hashlib
import io
import json
import os
import re
import struct
import sys

VARINT = re.compile(rb"[\x80-\xff]{0,9}[\x00-\x7f]")  # seven bits a byte, the lowest first
ENDINGS = {b"\x89P": ".png", b"\xff\xd8": ".jpg", b"BM": ".bmp", b"RI": ".webp"}
ENDINGS.update({b"II": ".tif", b"MM": ".tif", b"P5": ".pnm", b"P6": ".pnm"})


class BadDataset(Exception):
    """A dataset is damaged or lacks a file. The message says which part and record, and what is wrong."""


def read_part(path):
    """Yield the features of each record of a part: {name: list of bytes, floats or ints}."""
    with open(path, "rb") as file:
        left, index = os.fstat(file.fileno()).st_size, 0
        while left:
            try:
                (length,) = struct.unpack("<q", file.read(8))
                left -= 8 + length
                if length <= 0 or left < 0:
                    raise ValueError(f"the length {length} does not fit the file")
                features = dict(map(_feature, _fields(file.read(length))))
            except (ValueError, struct.error) as error:
                raise BadDataset(f"{path}, record {index}: not an OFRecord ({error})") from None
            yield features
            index += 1


def _fields(message):
    """Yield (number, content) of each field of a message."""
    position = 0
    while position < len(message):
        number, wire_type = divmod(message[position], 8)
        size = VARINT.match(message, position + 1)
        if not size or wire_type != 2:
            raise ValueError("an unknown field")
        start, position = size.end(), size.end() + _integer(size[0], 64)
        if not start <= position <= len(message):
            raise ValueError("a field is cut off")
        yield number, message[start:position]


def _feature(field):
    """Return the name and the values of a feature, given as a field of a record."""
    number, entry = field
    (name_number, name), (feature_number, feature) = _fields(entry)
    ((kind, items),) = _fields(feature)
    items = list(_fields(items))
    numbers = [number, name_number, feature_number - 1, *(number for number, _ in items)]
    if set(numbers) != {1} or not 1 <= kind <= 5:
        raise ValueError("an unknown field")
    return name.decode(), [value for _, packed in items for value in _values(kind, packed)]


def _values(kind, packed):
    if kind == 1:
        return [packed]
    if kind in (2, 3):
        return [number for (number,) in struct.iter_unpack("<f" if kind == 2 else "<d", packed)]
    digits = VARINT.findall(packed)
    if b"".join(digits) != packed:
        raise ValueError("an integer is cut off")
    return [_integer(each, 32 if kind == 4 else 64) for each in digits]


def _integer(digits, bits):
    number = sum((byte & 127) << 7 * place for place, byte in enumerate(digits))
    return (number + 2 ** (bits - 1)) % 2**bits - 2 ** (bits - 1)


def read_dataset(folder):
    """Yield (image name, encoded image, label, class name) of each record, in order.

    The name is "" where it is not known, the class name None. Raises BadDataset, and OSError.
    """
    place = "dataset.json"
    try:
        with open(os.path.join(folder, place), encoding="utf-8") as file:
            manifest = json.load(file)
        sums = [manifest.pop("sha256"), manifest["images_csv"]]
        text = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
        digits, num_parts = len(manifest["parts"][0]["file"]) - 5, len(manifest["parts"])
        classes = dict(enumerate(manifest["class_names"] or []))
        features = manifest["image_feature"], manifest["label_feature"]
        place = "images.csv"
        with open(os.path.join(folder, place), "rb") as file:
            table = file.read()
        if sums != [hashlib.sha256(data).hexdigest() for data in (text.encode(), table)]:
            raise ValueError("it, or dataset.json, was changed or damaged after it was written")
        rows = csv.reader(io.StringIO(table.decode("utf-8", "backslashreplace"), newline=""))
        next(rows, None)  # the names of the columns
        for number in range(num_parts):
            part = "part-" + str(number).zfill(digits)
            for index, record in enumerate(read_part(os.path.join(folder, part))):
                place = f"{part}, record {index}"
                values = [value for name in features for value in record.get(name, ())]
                if list(map(type, values)) != [bytes, int]:
                    raise ValueError(f"it has not one {features[0]} and one {features[1]}")
                image, label = values
                row, digest = next(rows, []), hashlib.sha256(image).hexdigest()[:16]
                if row[:2] + row[3:] != [part, str(index), str(label), digest]:
                    raise ValueError(f"images.csv has in its place: {', '.join(row) or 'nothing'}")
                yield row[2], image, label, classes.get(label)
        if next(rows, None):
            raise BadDataset(f"{folder}: images.csv has more records than the parts")
    except FileNotFoundError as error:
        hint = " (read_part needs only parts)" if error.filename.endswith(".json") else ""
        raise BadDataset(f"{error.filename} is missing{hint}") from None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, csv.Error) as error:
        raise BadDataset(f"{folder}, {place}: {error}") from None


def write_files(folder, out=None):
    """Print a table of names and labels; or write it and the images to a new folder.

    The folder is called OUT.unfinished until everything is in it.
    """
    next(read_dataset(folder), None)  # raises before anything is written
    if out:
        new = os.path.realpath(out)
        unfinished = f"{new}.unfinished"
        for path in filter(os.path.lexists, (new, unfinished)):
            raise BadDataset(f"{path} exists: remove it, or name a new folder")
        os.mkdir(unfinished)
    number, target = -1, os.path.join(unfinished, "images.csv") if out else 1  # stdout
    with open(target, "w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        table = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
        table.writerow(["image", "label"])
        for number, (name, image, label, class_name) in enumerate(read_dataset(folder)):
            if out:
                name = safe_name(name or f"{number:08d}", ENDINGS.get(image[:2], ".bin"))
                while not _is_written(os.path.join(unfinished, name), image):
                    name = f"record-{number}/{name}"
            table.writerow([name, label if class_name is None else class_name])
    if out:
        os.rename(unfinished, new)
        print(f"{out}: {number + 1} images")


def _is_written(path, data):
    """Write a new file; return False where there is one of that name, or of a folder's in it."""
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "xb") as file:
            file.write(data)
    except (FileExistsError, NotADirectoryError):
        return False
    return True


def safe_name(name, ending):
    """Return a name, with slashes, that is inside of a folder on any system and has an ending."""
    name = re.sub(r'[<>:"|?*\x00-\x1f]', "_", name.replace("\\", "/"))
    words = (word[:60].rstrip(". ") for word in name.split("/"))  # as Windows does; no ".." stays
    name = "/".join(filter(None, words)) or "_"
    name = re.sub(r"(?i)(^|/)(con|prn|aux|nul|com\d|lpt\d)(?=[./]|$)", r"\1_\2", name)  # devices
    there = os.path.splitext(name)[1].lower().replace("jpeg", "jpg").replace("tiff", "tif")
    return name if there == ending else name + ending


def main():
    parser = argparse.ArgumentParser(description="List a dataset's images, or write them to OUT.")
    parser.add_argument("folder", metavar="DIR", help="the dataset's folder")
    parser.add_argument("out", metavar="OUT", nargs="?", help="a new folder, for images.csv too")
    try:
        write_files(**vars(parser.parse_args()))
    except BrokenPipeError:  # as of `head`, which has seen enough
        pass
    except (BadDataset, OSError, KeyboardInterrupt) as error:
        stopped = isinstance(error, KeyboardInterrupt)
        print(f"portable.py: error: {'interrupted' if stopped else error}", file=sys.stderr)
        sys.exit(130 if stopped else 2)


if __name__ == "__main__":
    main()
