"""What the tags of a TIFF tell, and damage that Pillow does not see."""

import io
import warnings
import zlib
from typing import TYPE_CHECKING

from .formats import BadImage, Header

if TYPE_CHECKING:
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

# Numbers of tags of TIFF 6.0 and its supplements.
BITS, COMPRESSION, PHOTOMETRIC, COLOR_MAP, SAMPLE_FORMAT = 258, 259, 262, 320, 339
STRIPS, TILES = (273, 279), (324, 325)  # where they start, how long they are
DEFLATE = {8, 32946}  # values of COMPRESSION
UNCHECKED = {2, 3, 4, 7, 32773}  # others: fax, JPEG and PackBits
TYPES = {2: "signed integers", 3: "floating-point numbers"}  # values of SAMPLE_FORMAT
ADVICE = "scale them to 0 to 255 and save it as an 8-bit PNG"


def tiff_header(data: bytes) -> Header:
    """Look at the type of the values, and at the checksums of deflated data, which Pillow ignores."""
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    file = io.BytesIO(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tags = ImageFileDirectory_v2(data[: 16 if data[2:3] == b"+" else 8])  # BigTIFF
            file.seek(tags.next)
            tags.load(file)  # of the first page
            return _header(data, tags)
    except (BadImage, MemoryError):
        raise
    except Exception as error:  # tags may hold anything
        raise BadImage(f"the TIFF is damaged ({error})") from None


def _header(data: bytes, tags: "ImageFileDirectory_v2") -> Header:
    types = {*tags.get(SAMPLE_FORMAT, (1,))} - {1}
    if types:
        raise BadImage(f"its values are {TYPES.get(min(types), 'of a rare type')}: {ADVICE}")
    compression = tags.get(COMPRESSION)
    if compression in DEFLATE:
        starts, lengths = STRIPS if STRIPS[0] in tags else TILES
        for start, length in zip(tags.get(starts, ()), tags.get(lengths, ()), strict=False):
            _check_deflate(data[start : start + length])
    reason = "16-bit" if max(tags.get(BITS, (1,))) > 8 else None
    several, is_unchecked = tags.next != 0, compression in UNCHECKED
    return Header("TIFF", None, reason, None, several, True, is_unchecked=is_unchecked)


def _check_deflate(strip: bytes) -> None:
    """Raise BadImage where compressed data is damaged; takes little memory whatever it holds."""
    stream = zlib.decompressobj()
    try:
        while not stream.eof:
            if not stream.decompress(strip, 2**20) and not stream.eof:
                raise BadImage("the TIFF is truncated")
            strip = stream.unconsumed_tail
    except zlib.error as error:
        raise BadImage(f"the TIFF is damaged ({error})") from None
