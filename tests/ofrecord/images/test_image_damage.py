"""Files that are cut off or damaged, and a lack of memory: never other pixels without a word."""

import re
import resource
from functools import partial

import numpy as np
import pytest
from drawn import END, FILES, NOISE, RGB, SCAN, jpeg, pillow, png, segment, tiff
from helpers import PROJECT, assert_one_error, run_python, run_script

from ofrecord.images import BadImage, decode, read_header


def outcome(data, reduced=False):
    """The pixels of a file, or why it is refused."""
    try:
        return decode(data, read_header(data), reduced=reduced)
    except BadImage as error:
        return str(error)


def changed(data, rng, kind):
    """A copy in which a bit is flipped, or up to 100 bytes are zeros or noise."""
    copy, start = bytearray(data), int(rng.integers(len(data)))
    size = min(100, len(data) - start)
    if kind == "bit":
        copy[start] ^= 1 << int(rng.integers(8))
    else:
        copy[start : start + size] = bytes(size) if kind == "zeros" else rng.bytes(size)
    return bytes(copy)


@pytest.mark.parametrize("name", [n for n in FILES if "turn" not in n or "6-x.heic" in n])
def test_a_file_that_is_cut_off_is_refused(name):
    """Or its pixels are all there: what is lost is padding, a closing mark, or later pictures."""
    data = FILES[name].data
    whole = outcome(data)
    for size in {*np.linspace(0, len(data) - 1, 25).astype(int), *range(len(data) - 5, len(data))}:
        pixels = outcome(data[:size])
        if not isinstance(pixels, str):
            assert size > len(data) * 0.4, size  # several pictures
            if name.startswith("P2"):  # the last number may be cut off: 255 becomes 25
                whole[-1, -1], pixels[-1, -1] = 0, 0
            assert (pixels == whole).all(), size


@pytest.mark.parametrize("kind", ["bit", "zeros", "noise"])
def test_damage_anywhere_raises_nothing_else_and_ends_no_process(kind):
    rng = np.random.default_rng(0)
    assert read_header(FILES["animated.png"].data).uses_pillow  # OpenCV's reader ends the process
    for name, file in FILES.items():
        for pixels in (outcome(changed(file.data, rng, kind)) for _ in range(3)):
            assert isinstance(pixels, str) or pixels.dtype == np.uint8, name


JPEG, PROGRESSIVE = jpeg(NOISE, quality=75), jpeg(NOISE, quality=75, progressive=True)
FOUND = {  # what is damaged, and how many of 100 (bits, runs of zeros, of noise) are found at least
    "png": (png(NOISE, 2), 100, 100, 100),
    "png with alpha": (png(np.dstack([NOISE, NOISE[..., 0]]), 6), 100, 100, 100),
    "tiff lzw": (pillow(NOISE, "TIFF", compression="tiff_lzw"), 20, 98, 98),
    "tiff deflate": (tiff(NOISE, 2, deflate=True), 97, 98, 98),
    "tiff tiles": (tiff(NOISE, 2, deflate=True, tile=32), 97, 98, 98),
    "tiff packbits": (pillow(NOISE, "TIFF", compression="packbits"), 1, 70, 65),
    "tiff jpeg": (pillow(NOISE, "TIFF", compression="jpeg"), 8, 25, 90),
    "tiff fax": (pillow(NOISE[..., 0] > 99, "TIFF", compression="group4"), 90, 90, 95),
    "jpeg": (JPEG, 15, 80, 92),
    "jpeg progressive": (PROGRESSIVE, 20, 85, 90),
}


@pytest.mark.parametrize("name", FOUND)
def test_how_much_damage_is_found(name):
    """JPEG and TIFF have no checksums of most of their data: what is found is what can be seen."""
    data, *expected = FOUND[name]
    rng = np.random.default_rng(1)
    for kind, least in zip(("bit", "zeros", "noise"), expected, strict=True):
        outcomes = [outcome(changed(data, rng, kind)) for _ in range(100)]
        assert sum(isinstance(each, str) for each in outcomes) >= least, kind


BODY, SCAN_END = JPEG[:-2], JPEG.index(SCAN) + 14
PADDINGS = [bytes(1), bytes(20), b"\xff" * 20, bytes(20) + b"\xff" * 9]
NO_PADDINGS = [b"\1" * 20, bytes(range(20)), bytes(19) + b"\1"]
THUMBNAIL = JPEG[:2] + segment(0xE2, jpeg(RGB))
MARKERS = b"SEFT\xff\xe1\0\4with marker\xff\0" * 9
NO_END, HARM = "truncated (no end marker)", np.random.default_rng(0).bytes(1000)
WHOLE = {  # the same image, with what changes no pixel: libjpeg's first message is the one sign
    **{f"padding {n}": BODY + padding + END for n, padding in enumerate(PADDINGS)},
    **{f"padding {n}, another": BODY + p + END + JPEG for n, p in enumerate(PADDINGS)},
    "trailer": BODY + b"a vendor's trailer",
    "trailer with markers": BODY + MARKERS,
    "thumbnail": THUMBNAIL + JPEG[2:],
    "odd scan": JPEG[: SCAN_END - 2] + b"\7" + JPEG[SCAN_END - 1 :],  # 7 as the last coefficient
    "odd version": JPEG[:11] + b"\x09" + JPEG[12:],  # of JFIF
    "no directory": JPEG[:2] + segment(0xE1, b"Exif\0\0MM\0*\0\0\0") + JPEG[2:],
}
NOT_WHOLE = {  # and what is said of it
    **{f"no padding {n}": (BODY + p + END, "extraneous") for n, p in enumerate(NO_PADDINGS)},
    "no end": (BODY, NO_END),
    "half, no end": (JPEG[:5000] + bytes(5000), NO_END),
    "half, markers": (JPEG[:5000] + MARKERS, NO_END),
    "the thumbnail's end": (THUMBNAIL + JPEG[2:5000] + bytes(5000), NO_END),
    "the thumbnail alone": (THUMBNAIL, "no frame header"),
    "odd scan, harm": (WHOLE["odd scan"][:-3000] + HARM + JPEG[-2000:], "Corrupt JPEG data"),
    "odd version, harm": (WHOLE["odd version"][:-3000] + HARM + JPEG[-2000:], "Corrupt JPEG data"),
}


@pytest.mark.parametrize("name", [*WHOLE, *NOT_WHOLE])
def test_what_a_jpeg_lacks(name):
    if name in WHOLE:
        assert (outcome(WHOLE[name]) == outcome(JPEG)).all()
    else:
        data, text = NOT_WHOLE[name]
        assert text in outcome(data)


@pytest.mark.parametrize("name", ["plain", "progressive", "gray", "restarts"])
def test_zeros_in_place_of_the_last_data_are_no_padding(name):
    data, sizes = FILES[f"{name}.jpg"].data, range(20, 300, 7)
    damaged = [data[: -2 - size] + bytes(n * size) + END for size in sizes for n in (1, 3)]
    assert sum(isinstance(pixels, str) for pixels in map(outcome, damaged)) >= 76  # of 80


def test_a_jpeg_that_lacks_scans_or_its_end_is_not_stored_unchanged():
    scans = [found.start() for found in re.finditer(b"\xff\xda", PROGRESSIVE)]
    first = JPEG[: SCAN_END - 14] + b"\xff\xda\0\x08\1\1\0\0\x3f\0" + JPEG[SCAN_END:]  # of three
    for data in first, *(PROGRESSIVE[:start] + END for start in scans[1:]):
        assert read_header(data).reencode_reason == "missing scans"
    for name in "trailer", "trailer with markers":  # OneFlow would read zeros
        assert read_header(WHOLE[name]).reencode_reason == "no end marker"


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".jpg")])
def test_a_jpeg_at_an_eighth_shows_what_it_shows_in_full(name):
    rng, data = np.random.default_rng(0), FILES[name].data
    height, width = outcome(data).shape[:2]
    assert outcome(data, reduced=True).shape[:2] == (-(-height // 8), -(-width // 8))
    for _ in range(20):
        damaged = changed(data, rng, "bit" if rng.random() < 0.5 else "zeros")
        full, eighth = outcome(damaged), outcome(damaged, reduced=True)
        assert full == eighth if isinstance(full, str) else not isinstance(eighth, str)


HUNGRY = """
import os, resource, sys
from pathlib import Path
from PIL import Image; Image.init()
from ofrecord.images import BadImage, decode, read_header

for file in sorted(Path(sys.argv[1]).iterdir()):
    if os.fork():  # each begins without what another one freed
        assert os.wait()[1] == 0, file
        continue
    data = file.read_bytes()
    for free in (2**20, 2**22, 2**23, 2**24):
        used = int(open("/proc/self/statm").read().split()[0]) * 4096
        resource.setrlimit(resource.RLIMIT_AS, (used + free, resource.RLIM_INFINITY))
        try:
            decode(data, read_header(data))
        except (MemoryError, BadImage) as error:
            print(file.name, type(error).__name__, flush=True)
    os._exit(0)
"""
FLAT, DEEP = np.zeros((1800, 1800, 3), np.uint8), np.zeros((1800, 1800), np.uint16)
LARGE = {kind: {} for kind in "PNG JPEG BMP WEBP GIF PPM JPEG2000 TIFF".split()}
LARGE |= {f"PNG {mode}": {"mode": mode} for mode in ("P", "RGBA", "L", "I;16")}
LARGE |= {f"TIFF {way}": {"compression": way} for way in ("tiff_lzw", "jpeg", "tiff_adobe_deflate")}
LARGE |= {"JPEG CMYK": {"mode": "CMYK"}, "JPEG 2": {"progressive": True}, "AVIF": {"speed": 10}}


def test_a_lack_of_memory_is_no_bad_image(tmp_path):
    for name, options in LARGE.items():
        pixels = DEEP if options.get("mode") == "I;16" else FLAT
        (tmp_path / name).write_bytes(pillow(pixels, name.split()[0], **options))
    result = run_python("-c", HUNGRY, tmp_path, env={"PYTHONPATH": str(PROJECT)})
    lines = [line.rsplit(" ", 1) for line in result.out.splitlines()]
    assert result.code == 0 and {error for _, error in lines} == {"MemoryError"}, result
    assert {name for name, _ in lines} == set(LARGE), result


def test_an_image_that_does_not_fit_in_memory_is_not_skipped(tmp_path):
    (tmp_path / "in" / "a").mkdir(parents=True)
    (tmp_path / "in" / "a" / "0.ppm").write_bytes(b"P6 30000 30000 255\n")
    options = ["--image_root", tmp_path / "in", "--class_folders", "--part_num", 1, "--skip_bad"]
    options += ["--save_dir", tmp_path / "d", "--workers", 1]
    limit = partial(resource.setrlimit, resource.RLIMIT_AS, (3 * 2**29, 3 * 2**29))
    result = run_script("img2ofrecord.py", *options, preexec_fn=limit)
    assert_one_error(result, "0.ppm: not enough memory to decode it", started=True)
