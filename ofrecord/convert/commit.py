"""The end of a conversion: the manifest and the table of each dataset, and what is said of them."""

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain, repeat
from typing import NamedTuple

from runtime.cli import SHOWN_PROBLEMS, InputError, count, log, os_errors

from ..dataset.copies import ImageTable, report_copies
from ..dataset.images_csv import Row, printable
from ..dataset.loading import manifest_of
from ..dataset.manifest import FORMATS, Manifest, Part, digest_of, part_name
from ..dataset.staging import commit as commit_datasets
from ..dataset.statistics import ImageStatistics
from ..labels.samples import Samples
from .options import ConvertOptions
from .packed import Problem, describe
from .parts import PlannedPart, load_finished

DARK = 64  # of 255: 16-bit images below it use at most 14 of their bits


def commit(datasets: Iterable[list[PlannedPart]], options: ConvertOptions) -> None:
    """Put the datasets, all of whose parts are there, in place of the old ones.

    Logs what was skipped, what looks wrong, and copies. Raises InputError where a dataset is
    left without an image.
    """
    finished = [FinishedDataset(parts, options) for parts in datasets]
    channels = max(each.statistics.channels for each in finished)
    split_id = digest_of([each.table for each in finished]) if len(finished) > 1 else None
    new = [(each.folder, each.manifest(channels, split_id), each.staged) for each in finished]
    for each in finished:
        each.report()
    tables = [ImageTable(each.folder.path, each.rows, each.class_names) for each in finished]
    report_copies(tables, say=log)
    commit_datasets(new)


class StoredPart(NamedTuple):
    """A part with an image at least."""

    part: Part
    samples: Samples  # without the skipped ones
    digests: list[str]  # of the stored bytes of each, as images.csv has them


class FinishedDataset:
    """A dataset all of whose parts are there, and its ``table``: the SHA-256 of images.csv."""

    def __init__(self, parts: list[PlannedPart], options: ConvertOptions):
        self.folder, self.class_names = parts[0].folder, parts[0].samples.class_names
        self.statistics = ImageStatistics()
        self.staged: list[str] = []  # the names of the part files in the hidden folder
        self._options, self._planned = options, parts
        self._stored: list[StoredPart] = []
        self._problems: list[Problem] = []
        with os_errors("read", self.folder.staging):
            for part in parts:
                self._add(part)
        labels = (label for stored in self._stored for label in stored.samples.labels)
        self._label_counts = Counter(labels)
        self._num_stored = self._label_counts.total()
        self._num_images = self._num_stored + len(self._problems)
        if not self.statistics.num_measured:
            images = f"the {self._num_images:,} for {self.folder.path} in {options.image_root}"
            which = f"those of {images} whose pixels would be counted" if self._stored else images
            raise InputError(f"no valid image among {which}")
        anonymous = (row._replace(image="") for row in self.rows())
        self.table = self.folder.write_table(anonymous if options.anonymous else self.rows())

    def rows(self) -> Iterator[Row]:
        """Yield the rows of images.csv."""
        for part, samples, digests in self._stored:
            names, records = map(printable, samples.names), range(part.num_records)
            yield from map(Row, repeat(part.file), records, names, samples.labels, digests)

    def _add(self, part: PlannedPart) -> None:
        """Add a part; one all of whose images were skipped is none, and the next ones move up."""
        finished = load_finished(self.folder, part.file)
        self._problems += [Problem(*each, True) for each in finished.skipped]
        if not finished.digests:
            return
        samples, skipped = part.samples, dict(finished.skipped)
        if skipped:
            names = enumerate(samples.names)
            samples = samples.take([index for index, name in names if name not in skipped])
        self.statistics.merge(finished.statistics)
        self.staged.append(part.file)
        stored = Part(
            file=part_name(len(self._stored), self._options.part_name_suffix_length),
            num_records=len(finished.digests),
            bytes=finished.bytes,
            sha256=finished.sha256,
        )
        self._stored.append(StoredPart(stored, samples, finished.digests))

    def manifest(self, channels: int, split_id: str | None) -> Manifest:
        """Return the manifest, with what all datasets share. Raises InputError."""
        options, names, counts = self._options, self.class_names, self._label_counts
        fields = {
            **options.model_dump(include={"background", "image_feature", "label_feature"}),
            "fit": options.fit if options.size else None,
            "image_format": options.img_format,
            **self.statistics.manifest_fields(channels),
            "num_records": self._num_stored,
            "num_classes": len(names or ()) or max(max(counts) + 1, 0),
            "class_names": names,
            "label_counts": {str(label): counts[label] for label in sorted(counts)},
            # Of JPEG, what is not plain is re-encoded; OneFlow's faster decoder misreads gray ones.
            "plain_jpeg": FORMATS[options.img_format] == "JPEG" and not self.statistics.num_gray,
            "split_id": split_id,
            "skipped": [
                {"file": "" if options.anonymous else printable(name), "reason": reason}
                for name, reason, _ in self._problems
            ],
            "images_csv": self.table,
            "parts": [stored.part for stored in self._stored],
        }
        return manifest_of(fields, f"{self.folder.path} cannot be described")

    def report(self) -> None:
        """Log how many images are stored unchanged, why others are not, and what looks wrong."""
        statistics, reencoded = self.statistics, self.statistics.reencode_reasons
        stored = count(statistics.num_images - reencoded.total(), "image")
        text = f"{self.folder.path}: {stored} stored unchanged"
        if reencoded:
            reasons = (f"{number:,} {reason}" for reason, number in reencoded.most_common())
            text += f"; re-encoded: {', '.join(reasons)}"
        log(text)
        if statistics.num_measured < statistics.num_images:
            images = count(statistics.num_measured, "image")
            log(f"mean and standard deviation are those of {images}, decoded at full size")
        problems = describe(self._problems[:SHOWN_PROBLEMS], self._options.image_root)
        lines = [f"skipped: {line}" for line in problems]
        if problems:
            images = count(self._num_images, "image")
            lines.append(f"skipped {len(self._problems):,} of {images}")
        labels = set().union(*(part.samples.labels for part in self._planned))
        lost = sorted(labels.difference(self._label_counts))[:SHOWN_PROBLEMS]
        names = map(self._planned[0].samples.class_name, lost)
        lines += [f"--skip_bad left no image of class {name}" for name in names]
        for line in lines + self._doubts():
            log(line, "warning")

    def _doubts(self) -> list[str]:
        """Return what looks wrong with the images, a line each."""
        statistics, folder, lines = self.statistics, self.folder.path, []
        first = self._stored[0].digests[0]
        digests = chain.from_iterable(stored.digests for stored in self._stored)
        if self._num_stored > 2 and all(digest == first for digest in digests):
            lines.append(f"{folder}: all images are the same")
        wide = statistics.reencode_reasons["16-bit"]
        if wide and statistics.brightest < DARK:
            lines.append(
                f"{count(wide, '16-bit image')} reach only {statistics.brightest} of 255, as their "
                "values are small: scale them before, so that white is 65,535"
            )
        if statistics.num_several:
            files = count(statistics.num_several, "file")
            lines.append(
                f"{files} with several pictures (an animation, or pages): only the first is stored"
            )
        return lines
