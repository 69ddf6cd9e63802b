"""Which image files are read, how large they may be, and what is known of one before decoding."""

from typing import NamedTuple

from ..dataset.manifest import DEFAULT_BACKGROUND, FORMATS

# Extensions of image files, for folders that are searched for images. Some are of formats
# that are not read (.pam, .ras, .sr): such a file is refused by name, and not passed over.
IMAGE_EXTENSIONS = {
    *FORMATS,
    *".jfif .pgm .ppm .pbm .pam .jp2 .ras .sr .avif .gif .heic .heif".split(),
}

MAX_FILE_SIZE = 2**30  # bytes of an image file
ADVICE = "save it as PNG, if another program can read it"
MAX_PIXELS, MAX_SIDE = 2**30, 2**20  # of an image; OpenCV's own limits


class BadImage(Exception):
    """These bytes are not a whole image of a kind that is read. The message says why."""


def check_size(width: int, height: int) -> None:
    """Raise BadImage for an image of more pixels than are ever decoded."""
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        most = f"{MAX_PIXELS:,} at most, {MAX_SIDE:,} on a side"
        raise BadImage(f"its {width}x{height} pixels are too many: {most}")


class Header(NamedTuple):
    """What is known of an image file before it is decoded."""

    kind: str  # "PNG", "JPEG", or another format's name
    gray: bool | None = None  # None: only decoding tells
    reencode_reason: str | None = None  # why OneFlow may read it differently, or None
    size: tuple[int, int] | None = None  # stored width and height in pixels, of PNG and JPEG
    several: bool = False  # an animation, or pages: it holds more pictures than the first
    uses_pillow: bool = False  # read by Pillow instead of OpenCV
    is_turned: bool = False  # by EXIF data, of a JPEG
    is_ended: bool = True  # False for a JPEG without an end marker


class ImageOptions(NamedTuple):
    """How images are stored."""

    color: str = "auto"  # "gray", "color", or "auto": what the image is
    size: tuple[int, int] | None = None  # (width, height) in pixels to resize to
    quality: int = 95  # of JPEG, 0 to 100; OpenCV's own
    background: str = DEFAULT_BACKGROUND  # of a transparent image, as Pillow names colors
    fit: str = "crop"  # how an image of another aspect ratio gets the size: see resize()
