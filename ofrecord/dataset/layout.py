"""How a dataset lies on disk: the names of its files, and the image formats of its records."""

import re

MANIFEST_NAME = "dataset.json"
TABLE_NAME = "images.csv"
STAGING_NAME = ".img2ofrecord"  # where a dataset is written, inside its folder
LAYOUT = 3  # raised when a reader of the old layout would misread the new one
OLD_LAYOUT = 2  # without images.csv

PART_PREFIX = "part-"
PART_PATTERN = re.compile(re.escape(PART_PREFIX) + r"[0-9]{1,9}")

# What images can be encoded as in a record, by file extension. Each was seen to
# come out of OneFlow's decoder as it went in. OpenCV writes more (.hdr, .pfm,
# .jp2), but OneFlow aborts on those or changes them.
FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jpe": "JPEG",
    ".tiff": "TIFF",
    ".tif": "TIFF",
    ".bmp": "BMP",
    ".dib": "BMP",
    ".webp": "WebP",
    ".pnm": "PNM",
}


def part_name(index: int, digits: int = 1) -> str:
    """Return ``part-7``, or ``part-00007`` with five ``digits``."""
    return f"{PART_PREFIX}{index:0{digits}d}"
