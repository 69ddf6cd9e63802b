"""Reading labels as the converter does, in this process, from files that the test made."""

from pathlib import Path
from typing import NamedTuple

from ofrecord.labels.options import SourceOptions
from ofrecord.labels.samples import Samples
from ofrecord.labels.sources import read_samples
from runtime.cli import InputError


class Read(NamedTuple):
    """What came of reading labels."""

    samples: Samples | None  # None: it was refused
    errors: list[str]
    log: list[str]

    @property
    def labels(self):
        return list(self.samples.labels)

    @property
    def warnings(self):
        return [line.partition(": warning: ")[2] for line in self.log if ": warning: " in line]

    @property
    def pairs(self):
        """{image's name: class's name or number} of all images."""
        labels = map(self.samples.class_name, self.samples.labels)
        return dict(zip(self.samples.names, labels, strict=True))


def make_files(root, names):
    """Files below a folder that are images by their names only: nobody opens them here."""
    for name in names:
        path = Path(root) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"image " + name.encode("utf-8", "surrogateescape"))


def read(capsys, root, **options):
    """Read the labels of the images in a folder; return a Read."""
    texts = {
        name: str(value) if isinstance(value, Path) else value for name, value in options.items()
    }
    samples, errors = None, []
    try:
        samples = read_samples(SourceOptions(image_root=str(root), **texts))
    except InputError as error:
        errors = error.lines()
    err = capsys.readouterr().err
    return Read(samples, errors, err.splitlines())


def assert_error(result, *texts):
    """One line that has each of the texts."""
    assert result.samples is None and len(result.errors) == 1, result
    for text in texts:
        assert text in result.errors[0], result


def assert_one(lines, text):
    """Exactly one of the lines has the text."""
    assert len([line for line in lines if text in line]) == 1, lines
