"""Reads OFRecord datasets with Python's standard library alone; may be copied anywhere.

Python 3.8 and newer, on any system::

    from portable import read_dataset

    for name, image, label, class_name in read_dataset("dataset"):
        ...  # "00000030_3.png", the bytes of an image file, 3, "three" or None

    $ python portable.py DIR        # lists the images
    $ python portable.py DIR OUT    # writes them to a new folder, under their names

A part is records one after the other: a length (int64, little-endian), then a protobuf message
``OFRecord { map<string, Feature> feature = 1; }``, where a Feature holds one list: bytes_list = 1,
float_list = 2, double_list = 3, int32_list = 4 or int64_list = 5, of packed ``repeated T value = 1``.
"""

import csv
import hashlib
import json
import os
import re
import struct
import sys

HALF = {4: 2**31, 5: 2**63}  # of the numbers of an int32_list, of an int64_list
STARTS = re.compile(b"(\x89PNG)|(\xff\xd8)|(II|MM)|(BM)|(RIFF)|(P[1-6])")  # of image files
ENDINGS = ".bin .png .jpg .tif .bmp .webp .pnm".split()  # for others, and for each of these


class BadDataset(Exception):
    """A dataset is damaged. The message says which part and record, and what is wrong."""


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
            except (ValueError, LookupError, struct.error) as error:
                raise BadDataset(f"{path}, record {index}: not an OFRecord ({error})") from None
            yield features
            index += 1


def _feature(field):
    """Return the name and the values of a feature, given as a field of a record."""
    number, entry = field
    (name_number, name), (feature_number, feature) = _fields(entry)
    ((kind, items),) = _fields(feature)
    items = list(_fields(items))
    if {number, name_number, feature_number - 1, *(number for number, _ in items)} != {1}:
        raise ValueError("an unknown field")
    lists = ([item] if kind == 1 else _numbers(kind, item) for _, item in items)
    return name.decode(), [value for values in lists for value in values]


def _numbers(kind, packed):
    if kind in (2, 3):
        return [number for (number,) in struct.iter_unpack("<f" if kind == 2 else "<d", packed)]
    numbers, position, half = [], 0, HALF[kind]
    while position < len(packed):
        number, position = _varint(packed, position)
        numbers.append((number + half) % (2 * half) - half)
    return numbers


def _fields(message):
    """Yield (number, content) of each field of a message."""
    position = 0
    while position < len(message):
        key, start = _varint(message, position)
        size, start = _varint(message, start)
        position = start + size
        if key & 7 != 2 or position > len(message):
            raise ValueError("an unknown field, or one that is cut off")
        yield key >> 3, message[start:position]


def _varint(message, position):
    number = 0
    for shift in range(0, 70, 7):
        byte = message[position]
        position += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number % 2**64, position
    raise ValueError("a number has more than 64 bits")


def read_dataset(folder):
    """Yield (image name, encoded image, label, class name) of each record, in order.

    The name is "" where it is not known, the class name None. Raises BadDataset, and OSError.
    """
    try:
        with open(os.path.join(folder, "dataset.json"), encoding="utf-8") as file:
            manifest = json.load(file)
        num_parts, num_records = len(manifest["parts"]), manifest["num_records"]
        digits = len(manifest["parts"][0]["file"]) - len("part-")
        classes = dict(enumerate(manifest["class_names"] or []))
        features = manifest.get("image_feature", "images"), manifest.get("label_feature", "labels")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise BadDataset(f"{folder}: dataset.json is damaged: {error}") from None
    rows, total = _read_rows(os.path.join(folder, "images.csv")), 0
    for number in range(num_parts):
        part = "part-" + str(number).zfill(digits)
        for index, record in enumerate(read_part(os.path.join(folder, part))):
            try:
                values = [value for name in features for value in record.get(name, ())]
                if list(map(type, values)) != [bytes, int]:
                    raise ValueError(f"it has not one {features[0]} and one {features[1]}")
                image, label = values
                row = next(rows, [])  # None: there is no table
                name = row[2] if row else ""
                digest = hashlib.sha256(image).hexdigest()[:16]
                if row is not None and row != [part, str(index), name, str(label), digest]:
                    raise ValueError("images.csv has another image")
                if classes and label not in classes:
                    raise ValueError(f"there is no class {label}")
            except (ValueError, LookupError, TypeError) as error:
                raise BadDataset(f"{folder}, {part}, record {index}: {error}") from None
            yield name, image, label, classes.get(label)
            total += 1
    if total != num_records or next(rows, None):
        raise BadDataset(f"{folder}: it should have {num_records} records, as in its images.csv")


def _read_rows(path):
    """Yield the rows of images.csv, and None for ever where there is none."""
    while not os.path.exists(path):
        yield None
    with open(path, encoding="utf-8", errors="backslashreplace", newline="") as file:
        rows = csv.reader(file)
        next(rows, None)
        try:
            yield from rows
        except csv.Error as error:
            raise BadDataset(f"{path}: {error}") from None


def write_files(folder, out):
    """Write a dataset's images to a new folder, and their names and labels to images.csv there."""
    os.mkdir(out)
    with open(os.path.join(out, "images.csv"), "x", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
        table.writerow(["image", "label"])
        for number, (name, image, label, class_name) in enumerate(read_dataset(folder)):
            match = STARTS.match(image)
            name = safe_name(name or str(number), ENDINGS[match.lastindex if match else 0])
            try:
                new = _create(out, name)
            except (FileExistsError, NotADirectoryError):  # another image has that name
                name = f"record-{number}/{name}"
                new = _create(out, name)
            with new:
                new.write(image)
            table.writerow([name, label if class_name is None else class_name])


def _create(out, name):
    path = os.path.join(out, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    return open(path, "xb")


def safe_name(name, ending):
    """Return a name, with slashes, that is inside of a folder on any system and has an ending."""
    words = re.sub(r'[<>:"|?*\x00-\x1f]', "_", name.replace("\\", "/")).split("/")
    # Windows drops dots and spaces at the end, and has devices such as NUL and com1.txt.
    words = [re.sub(r"[. ]+$", "_", word[:60]) for word in words if word not in ("", ".")] or ["_"]
    words = [re.sub(r"(?i)^(con|prn|aux|nul|com\d|lpt\d)(?![^.])", r"\1_", word) for word in words]
    has_ending = os.path.splitext(words[-1])[1].lower()[:3] == ending[:3]  # .jpeg for .jpg
    return "/".join(words) + ("" if has_ending else ending)


def main():
    if not 2 <= len(sys.argv) <= 3:
        sys.exit("usage: python portable.py DIR [OUT]")
    try:
        if len(sys.argv) == 3:
            return write_files(*sys.argv[1:])
        sys.stdout.reconfigure(errors="backslashreplace")
        table = csv.writer(sys.stdout, lineterminator="\n")
        table.writerow(["image", "bytes", "label", "class"])
        for name, image, label, class_name in read_dataset(sys.argv[1]):
            table.writerow([name, len(image), label, class_name])
    except (BadDataset, OSError) as error:
        print(f"portable.py: error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
