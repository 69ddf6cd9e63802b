"""Reads OFRecord datasets with Python's standard library alone; may be copied anywhere.

Python 3.8 and newer, on any system::

    from portable import read_dataset

    for name, image, label, class_name in read_dataset("dataset"):
        ...  # "00000030_3.png", the bytes of an image file, 3, "three" or None

    $ python portable.py DIR        # lists names and labels
    $ python portable.py DIR OUT    # writes the table and the images to a new folder

A part is records one after the other: a length (int64, little-endian), then a protobuf message
``OFRecord { map<string, Feature> feature = 1; }``. A Feature is a list: of bytes, float, double,
int32 or int64, in a field 1 to 5, which holds ``repeated T value = 1``, packed.
"""

import csv
import hashlib
import json
import os
import re
import struct
import sys

HALF = {4: 2**31, 5: 2**63}  # of the numbers of an int32_list, of an int64_list
ENDINGS = {b"\x89P": ".png", b"\xff\xd8": ".jpg", b"II": ".tif", b"BM": ".bmp", b"RI": ".webp"}


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
    return name.decode(), [value for _, item in items for value in _values(kind, item)]


def _values(kind, packed):
    if kind == 1:
        return [packed]
    if kind in (2, 3):
        return [number for (number,) in struct.iter_unpack("<f" if kind == 2 else "<d", packed)]
    values, position, half = [], 0, HALF[kind]
    while position < len(packed):
        number, position = _varint(packed, position)
        values.append((number + half) % (2 * half) - half)
    return values


def _fields(message):
    """Yield (number, content) of each field of a message."""
    position = 0
    while position < len(message):
        size, start = _varint(message, position + 1)
        number, wire_type = divmod(message[position], 8)
        position = start + size
        if wire_type != 2 or position > len(message):
            raise ValueError("an unknown field, or one that is cut off")
        yield number, message[start:position]


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
        digits, num_parts = len(manifest["parts"][0]["file"]) - 5, len(manifest["parts"])
        classes = dict(enumerate(manifest["class_names"] or []))
        features = manifest.get("image_feature", "images"), manifest.get("label_feature", "labels")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise BadDataset(f"{folder}: dataset.json is damaged: {error}") from None
    path, part, index = os.path.join(folder, "images.csv"), "part-0", 0
    with open(path, encoding="utf-8", errors="backslashreplace", newline="") as file:
        try:
            rows = csv.reader(file)
            next(rows, None)  # the names of the columns
            for number in range(num_parts):
                part = "part-" + str(number).zfill(digits)
                for index, record in enumerate(read_part(os.path.join(folder, part))):
                    values = [value for name in features for value in record.get(name, ())]
                    if list(map(type, values)) != [bytes, int]:
                        raise ValueError(f"it has not one {features[0]} and one {features[1]}")
                    image, label = values
                    row, digest = next(rows, []), hashlib.sha256(image).hexdigest()[:16]
                    if row[:2] + row[3:] != [part, str(index), str(label), digest]:
                        raise ValueError("images.csv has another image")
                    yield row[2], image, label, classes.get(label)
            if next(rows, None):
                raise BadDataset(f"{folder}: images.csv has more records than the parts")
        except (ValueError, TypeError, csv.Error) as error:
            raise BadDataset(f"{folder}, {part}, record {index}: {error}") from None


def write_files(folder, out=None):
    """Print a table of names and labels; or write it and the images to a new folder."""
    if out:
        os.mkdir(out)
    target = os.path.join(out, "images.csv") if out else 1  # stdout
    with open(target, "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
        table.writerow(["image", "label"])
        for number, (name, image, label, class_name) in enumerate(read_dataset(folder)):
            if out:
                name = safe_name(name or str(number), ENDINGS.get(image[:2], ".bin"))
                try:
                    _write(os.path.join(out, name), image)
                except (FileExistsError, NotADirectoryError):  # another image has that name
                    name = f"record-{number}/{name}"
                    _write(os.path.join(out, name), image)
            table.writerow([name, label if class_name is None else class_name])


def _write(path, data):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "xb") as file:
        file.write(data)


def safe_name(name, ending):
    """Return a name, with slashes, that is inside of a folder on any system and has an ending."""
    name = re.sub(r'[<>:"|?*\x00-\x1f]', "_", name.replace("\\", "/"))
    words = (word[:60].rstrip(". ") for word in name.split("/"))  # as Windows does; no ".." stays
    name = "/".join(filter(None, words)) or "_"
    name = re.sub(r"(?i)(^|/)(con|prn|aux|nul|com\d|lpt\d)(?=[./]|$)", r"\1_\2", name)  # devices
    has_ending = os.path.splitext(name)[1].lower()[:3] == ending[:3]  # .jpeg for .jpg
    return name if has_ending else name + ending


def main():
    if len(sys.argv) not in (2, 3):
        sys.exit("usage: python portable.py DIR [OUT]")
    try:
        write_files(*sys.argv[1:])
    except BrokenPipeError:  # as of `head`, which has seen enough
        pass
    except (BadDataset, OSError) as error:
        print(f"portable.py: error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
