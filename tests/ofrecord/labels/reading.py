"""Reading labels as the converter does, in this process, from files that the test made."""

from array import array
from pathlib import Path
from types import SimpleNamespace

from ofrecord.labels.options import SourceOptions
from ofrecord.labels.samples import Samples
from ofrecord.labels.sources import read_samples
from runtime.cli import InputError


def read(capsys, root, **options):
    """Read the labels of the images in a folder; return what came of it, and what was said.

    ``pairs``: {image's name: class's name or number}; ``said``: of a table's columns; ``unused``:
    the warning of files that are not used.
    """
    texts = {name: str(path) for name, path in options.items() if isinstance(path, Path)}
    samples, errors = Samples([], array("i")), []
    try:
        samples = read_samples(SourceOptions(image_root=str(root), **{**options, **texts}))
    except InputError as error:
        errors = error.lines()
    log = [line.partition(": ")[2] for line in capsys.readouterr().err.splitlines()]
    warnings = [line[9:] for line in log if line.startswith("warning: ")]
    return SimpleNamespace(
        errors=errors,
        said=[line for line in log if not line.startswith("warning: ")],
        warnings=[line for line in warnings if not line.startswith("skipped")],
        unused=[line for line in warnings if line.startswith("skipped")],
        names=samples.names,
        labels=list(samples.labels),
        classes=samples.class_names,
        splits=samples.splits,
        pairs=dict(zip(samples.names, map(samples.class_name, samples.labels), strict=True)),
    )


def make_files(root, *names):
    """Files below a folder that are images by their names only: nobody opens them here."""
    for name in names:
        path = Path(root) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"image " + name.encode("utf-8", "surrogateescape"))


def write(path, text):
    """Write bytes, or a text as it is, to a file; return its path."""
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def assert_error(result, *texts):
    """One line that has each of the texts."""
    assert len(result.errors) == 1 and not result.names, result
    assert [text for text in texts if text not in result.errors[0]] == [], result
