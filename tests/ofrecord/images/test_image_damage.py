"""Files that are cut off or damaged, and a lack of memory: never other pixels without a word."""

import itertools
import os
import re
import struct
import sys

import numpy as np
import pytest
from drawn import (
    END,
    FILES,
    NOISE,
    RGB,
    chunk,
    exif,
    opencv,
    pillow,
    png,
    tiff,
    transparent_value,
    turned,
)
from helpers import PROJECT, run_python

from ofrecord.images import BadImage, decode, decoder_messages, read_header


def outcome(data, reduced=False):
    """The pixels of a file, or why it is refused."""
    try:
        return decode(data, read_header(data), reduced=reduced)
    except BadImage as error:
        return str(error)


def changed(data, rng, kind):
    """A copy in which a bit is flipped, or up to 100 bytes are zeros or noise."""
    copy, start = bytearray(data), int(rng.integers(len(data)))
    if kind == "bit":
        copy[start] ^= 1 << int(rng.integers(8))
    else:
        size = min(100, len(data) - start)
        copy[start : start + size] = bytes(size) if kind == "zeros" else rng.bytes(size)
    return bytes(copy)


@pytest.mark.parametrize("name", [name for name in FILES if not name.startswith("turn")])
def test_a_file_that_is_cut_off_is_refused(name):
    """Or its pixels are all there: what is lost is padding, a closing mark, or later pictures."""
    data = FILES[name].data
    whole = outcome(data)
    for size in {*np.linspace(0, len(data) - 1, 25).astype(int), *range(len(data) - 5, len(data))}:
        pixels = outcome(data[:size])
        if isinstance(pixels, str):
            continue
        assert size > len(data) * 0.4, size  # several pictures
        if name[:2] in ("P2", "P3"):  # the last number may be cut off: 255 becomes 25
            whole[-1, -1], pixels[-1, -1] = 0, 0
        assert (pixels == whole).all(), size


@pytest.mark.parametrize("kind", ["bit", "zeros", "noise"])
def test_damage_anywhere_raises_nothing_else(kind):
    rng = np.random.default_rng(0)
    for name, file in FILES.items():
        for _ in range(3):
            pixels = outcome(changed(file.data, rng, kind))
            assert isinstance(pixels, str) or pixels.dtype == np.uint8, name


def signed(data):
    """A PNG with right checksums, as whoever means harm would write it."""
    parts, position = [data[:8]], 8
    while position + 12 <= len(data):
        end = position + 8 + int.from_bytes(data[position : position + 4], "big")
        parts.append(chunk(data[position + 4 : position + 8], data[position + 8 : end]))
        position = end + 4
    return b"".join(parts)


def test_a_png_of_a_stranger_raises_nothing_else_and_ends_no_process():
    rng = np.random.default_rng(0)
    assert read_header(FILES["animated.png"].data).uses_pillow  # OpenCV's reader crashes
    for name in FILES:
        for _ in range(20 if name.endswith(".png") else 0):
            outcome(signed(changed(FILES[name].data, rng, "bit")))


FOUND = {  # what is damaged, and how many of 100 (bits, runs of zeros, of noise) are found at least
    "png": (png(NOISE, 2), 100, 100, 100),
    "png with alpha": (pillow(np.dstack([NOISE, NOISE[..., 0]]), "PNG"), 100, 100, 100),
    "png with a key": (png(NOISE, 2, 8, transparent_value(1, 2, 3)), 100, 100, 100),
    "tiff lzw": (pillow(NOISE, "TIFF", compression="tiff_lzw"), 20, 98, 98),
    "tiff deflate": (tiff(NOISE, 2, deflate=True), 97, 98, 98),
    "tiff tiles": (tiff(NOISE, 2, deflate=True, tile=32), 97, 98, 98),
    "tiff packbits": (pillow(NOISE, "TIFF", compression="packbits"), 1, 70, 65),
    "tiff jpeg": (pillow(NOISE, "TIFF", compression="jpeg"), 8, 25, 90),
    "tiff fax": (pillow(NOISE[..., 0] > 99, "TIFF", compression="group4"), 90, 90, 95),
    "jpeg": (pillow(NOISE, "JPEG"), 15, 80, 92),
    "jpeg progressive": (pillow(NOISE, "JPEG", progressive=True), 20, 85, 90),
}


@pytest.mark.parametrize("name", FOUND)
def test_how_much_damage_is_found(name):
    """JPEG and TIFF have no checksums of most of their data: what is found is what can be seen."""
    data, *expected = FOUND[name]
    rng = np.random.default_rng(1)
    for kind, least in zip(("bit", "zeros", "noise"), expected, strict=True):
        found = sum(isinstance(outcome(changed(data, rng, kind)), str) for _ in range(100))
        assert found >= least, (kind, found)


# -- JPEG -------------------------------------------------------------------------------

JPEG = pillow(NOISE, "JPEG")
PROGRESSIVE = pillow(NOISE, "JPEG", progressive=True)


def test_bytes_before_the_end_marker_are_harmless_where_they_are_padding():
    whole = outcome(JPEG)
    for padding in (bytes(20), bytes(1), b"\xff" * 20, bytes(20) + b"\xff" * 9):
        assert (outcome(JPEG[:-2] + padding + END) == whole).all(), padding
        assert (outcome(JPEG[:-2] + padding + END + JPEG) == whole).all(), padding
    for padding in (b"\1" * 20, bytes(range(20)), bytes(19) + b"\1"):
        assert "extraneous bytes" in outcome(JPEG[:-2] + padding + END), padding


@pytest.mark.parametrize("name", ["plain.jpg", "progressive.jpg", "gray.jpg", "restarts.jpg"])
def test_zeros_in_place_of_the_last_data_are_no_padding(name):
    data, sizes = FILES[name].data, range(20, 300, 7)
    damaged = [data[: -2 - size] + bytes(n * size) + END for size in sizes for n in (1, 3)]
    assert sum(isinstance(outcome(each), str) for each in damaged) >= 76  # of 80


def test_an_extraneous_end_is_damage():
    """The one sign of damage in the middle may be what is left over at the end."""
    rng, found = np.random.default_rng(0), 0
    for _ in range(400):
        why = outcome(changed(JPEG, rng, "bit"))
        found += isinstance(why, str) and "extraneous bytes" in why
    assert found > 20


@pytest.mark.parametrize(
    "trailer", [b"a vendor's trailer", b"SEFT\xff\xe1\0\4with marker\xff\0" * 9]
)
def test_a_trailer_instead_of_the_end_marker(trailer):
    data = JPEG[:-2] + trailer
    assert read_header(data).reencode_reason == "no end marker"  # OneFlow would read zeros
    assert (outcome(data) == outcome(JPEG)).all()
    for cut in (JPEG[:-2], JPEG[:-2] + bytes(50), JPEG[: len(JPEG) // 2] + bytes(len(JPEG) // 2)):
        assert "truncated (no end marker)" in outcome(cut)


def test_the_end_of_a_thumbnail_is_none_of_the_image():
    thumbnail = pillow(RGB, "JPEG")
    segment = b"\xff\xe2" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    data = JPEG[:2] + segment + JPEG[2:]
    assert (outcome(data) == outcome(JPEG)).all()
    assert "truncated" in outcome(data[: len(data) // 2] + bytes(len(data) // 2))


def with_exif(*tables):
    segments = [b"\xff\xe1" + (len(table) + 2).to_bytes(2, "big") + table for table in tables]
    return JPEG[:2] + b"".join(segments) + JPEG[2:]


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("turn", range(9))
def test_the_orientation_is_that_of_opencv(turn, order):
    """Also where the number of its tag stands before it: a text at 274, of 274 characters."""
    table = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, 2)
    table += struct.pack(order + "HHIIHHIHH", 271, 2, 274, 274, 274, 3, 1, turn, 0)
    data = with_exif(b"Exif\0\0" + table.ljust(548, b"x"))
    assert read_header(data).reencode_reason == (None if turn == 1 else "EXIF rotation")
    assert (outcome(data) == turned(outcome(JPEG), turn)).all()


def test_an_orientation_that_is_none_does_not_hide_the_one_that_counts():
    """The directory may be behind what looks like one of its entries."""
    decoy, entry = (struct.pack(">HHIHH", 274, 3, 1, turn, 0) for turn in (1, 6))
    table = b"MM\0*" + struct.pack(">I", 20) + decoy + b"\0\1" + entry + bytes(4)
    assert read_header(with_exif(b"Exif\0\0" + table)).reencode_reason == "EXIF rotation"


def test_of_two_orientations_the_first_counts():
    data = with_exif(exif(6), exif(1))
    assert read_header(data).reencode_reason == "EXIF rotation"
    assert outcome(data).shape == NOISE.swapaxes(0, 1).shape


def test_a_progressive_jpeg_that_lacks_scans_is_not_stored_unchanged():
    starts = [found.start() for found in re.finditer(b"\xff\xda", PROGRESSIVE)]
    for start in starts[1:]:
        assert read_header(PROGRESSIVE[:start] + END).reencode_reason == "missing scans"
    assert read_header(PROGRESSIVE).reencode_reason is None


def test_a_harmless_warning_hides_no_damage():
    """libjpeg prints its first warning only."""
    start = JPEG.rindex(b"\xff\xda") + 2
    end = start + int.from_bytes(JPEG[start : start + 2], "big")
    odd = {
        "scan": JPEG[: end - 2] + b"\7" + JPEG[end - 1 :],  # 7 as the last coefficient
        "version": JPEG[:11] + b"\x09" + JPEG[12:],  # of JFIF
        "progressive": PROGRESSIVE[:11] + b"\x09" + PROGRESSIVE[12:],
    }
    for name, data in odd.items():
        assert (outcome(data) == outcome(PROGRESSIVE if "pro" in name else JPEG)).all(), name
        damaged = data[:-3000] + np.random.default_rng(0).bytes(1000) + data[-2000:]
        assert isinstance(outcome(damaged), str), name


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".jpg")])
def test_a_jpeg_at_an_eighth_shows_what_it_shows_in_full(name):
    rng, data = np.random.default_rng(0), FILES[name].data
    height, width = outcome(data).shape[:2]
    assert outcome(data, reduced=True).shape[:2] == (-(-height // 8), -(-width // 8))
    for _ in range(20):
        damaged = changed(data, rng, "bit" if rng.random() < 0.5 else "zeros")
        full, eighth = outcome(damaged), outcome(damaged, reduced=True)
        assert full == eighth if isinstance(full, str) else not isinstance(eighth, str)


# -- memory, and stderr -----------------------------------------------------------------

HUNGRY = """
import resource, sys
from ofrecord.images import BadImage, decode, read_header
from PIL import Image; Image.init()
data = open(sys.argv[1], "rb").read()
for free in (2**20, 2**22, 2**23, 2**24):
    used = int(open("/proc/self/statm").read().split()[0]) * 4096
    resource.setrlimit(resource.RLIMIT_AS, (used + free, resource.RLIM_INFINITY))
    try:
        decode(data, read_header(data))
    except MemoryError:
        print("MemoryError")
    except BadImage as error:
        print(error)
"""


FLAT = np.zeros((1800, 1800, 3), np.uint8)
KINDS = "PNG JPEG BMP WEBP GIF PPM JPEG2000 TIFF AVIF".split()
LARGE = {kind: (kind, None, {"speed": 10} if kind == "AVIF" else {}) for kind in KINDS}
LARGE |= {f"PNG {mode}": ("PNG", mode, {}) for mode in ("P", "RGBA", "L")}
LARGE |= {"CMYK": ("JPEG", "CMYK", {}), "progressive": ("JPEG", None, {"progressive": True})}
WAYS = "tiff_lzw jpeg tiff_adobe_deflate".split()
LARGE |= {way: ("TIFF", None, {"compression": way}) for way in WAYS} | {"16-bit": None}


@pytest.mark.parametrize("name", LARGE)
def test_a_lack_of_memory_is_no_bad_image(tmp_path, name):
    if LARGE[name]:
        kind, mode, options = LARGE[name]
        data = pillow(FLAT, kind, mode, **options)
    else:
        data = opencv(FLAT.astype(np.uint16), ".png")
    (tmp_path / "image").write_bytes(data)
    result = run_python("-c", HUNGRY, tmp_path / "image", env={"PYTHONPATH": str(PROJECT)})
    assert result.code == 0 and set(result.out.split("\n")) == {"MemoryError", ""}, result


USES_PILLOW = """
import sys
from ofrecord.images import decode, read_header
for path in sys.argv[1:]:
    data = open(path, "rb").read()
    decode(data, read_header(data))
    print("PIL" in sys.modules)
"""


def test_pillow_is_imported_only_where_it_is_needed(tmp_path):
    names = ["rgb.png", "palette8.png", "gray16.png", "plain.jpg", "gray.jpg", "rgb-0.tiff"]
    for name in names:
        (tmp_path / name).write_bytes(FILES[name].data)
    env = {"PYTHONPATH": str(PROJECT)}
    result = run_python("-c", USES_PILLOW, *names, cwd=tmp_path, env=env)
    assert result.out.split() == ["False"] * 5 + ["True"], result


def raise_at_line(number):
    """A trace function that raises KeyboardInterrupt at the line of this number, from 0."""
    lines = itertools.count()

    def trace(frame, event, argument):
        if event == "line" and next(lines) == number:
            raise KeyboardInterrupt
        return trace

    return trace


def test_an_interrupt_at_any_line_of_decoding_leaves_stderr_where_it_was():
    """Else the one line about it is lost."""
    data, stderr = FILES["gray8.png"].data, os.fstat(2)
    header = read_header(data)
    for number in itertools.count():
        try:
            with decoder_messages:
                sys.settrace(raise_at_line(number))
                try:
                    decode(data, header)
                finally:
                    sys.settrace(None)
            break  # it ended before that line
        except KeyboardInterrupt:
            assert os.path.samestat(os.fstat(2), stderr), number
    assert number > 10
