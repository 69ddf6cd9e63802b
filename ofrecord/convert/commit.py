"""The end of a conversion: the manifest and the table of each dataset, and what is said of them."""

from array import array
from collections import Counter
from collections.abc import Iterator
from typing import Any

from runtime.cli import SHOWN_PROBLEMS, InputError, count, log, os_errors
from runtime.settings import validate

from ..dataset.commit import NewDataset
from ..dataset.commit import commit as commit_datasets
from ..dataset.images_csv import DIGITS, Row, printable
from ..dataset.manifest import FORMATS, Manifest, Part, part_name
from ..dataset.statistics import ImageStatistics
from .chunk import Problem
from .copies import StoredImages, report_copies
from .datasets import PlannedDataset
from .options import ConvertOptions
from .parts import PlannedPart
from .progress import describe

DARK = 64  # of 255: 16-bit images below it use at most 14 of their bits


def commit(datasets: dict[str, PlannedDataset], options: ConvertOptions) -> None:
    """Put the datasets, all of whose parts are there, in place of the old ones.

    Logs what was skipped, what looks wrong, and copies. Raises InputError where a dataset is
    left without an image.
    """
    finished = {name: FinishedDataset(planned, options) for name, planned in datasets.items()}
    channels = max(each.statistics.channels for each in finished.values())  # the same for all
    new = [NewDataset(each.folder, each.write(channels), each.staged) for each in finished.values()]
    for each in finished.values():
        each.report()
    stored = {name: each.stored for name, each in finished.items()}
    report_copies(stored, datasets["train"].samples, options.image_root)
    commit_datasets(new)


class FinishedDataset:
    """A dataset all of whose parts are there."""

    def __init__(self, planned: PlannedDataset, options: ConvertOptions):
        self.folder, self._planned, self._options = planned.folder, planned, options
        self.statistics, self._label_counts = ImageStatistics(), Counter()
        self.stored = StoredImages([], array("i"), array("Q"))
        self.staged: list[str] = []  # the names of the part files in the hidden folder
        self._parts: list[Part] = []
        self._problems: list[Problem] = []
        with os_errors("read", self.folder.staging):
            for part in planned.parts:
                self._add(part)
        if not self._parts:
            images = f"{len(planned.samples):,} for {self.folder.path} in {options.image_root}"
            raise InputError(f"no valid image among the {images}")

    def _add(self, part: PlannedPart) -> None:
        """Add a part; one all of whose images were skipped is none, and the next ones move up."""
        finished, samples = part.load(), part.samples
        skipped = dict(finished.skipped)
        self._problems += [Problem(*each, True) for each in skipped.items()]
        if not finished.num_records:
            return
        self.statistics.merge(finished.statistics)
        self._label_counts.update(finished.label_counts)
        for name, label in zip(samples.names, samples.labels, strict=True):
            if name not in skipped:
                self.stored.names.append(name)
                self.stored.labels.append(label)
        digests = finished.digests
        for start in range(0, len(digests), DIGITS):
            self.stored.digests.append(int(digests[start : start + DIGITS], 16))
        self.staged.append(part.name_of(part.key))
        file = part_name(len(self._parts), self._options.part_name_suffix_length)
        fields = {"num_records": finished.num_records, "bytes": finished.bytes}
        self._parts.append(Part(file=file, sha256=finished.sha256, **fields))

    def write(self, channels: int) -> Manifest:
        """Write the table of images to the hidden folder, and return the manifest."""
        fields = {
            **self._options.manifest_fields,
            **self.statistics.manifest_fields(channels),
            **self._label_fields(),
            "num_records": len(self.stored.names),
            # Of JPEG, what is not plain is re-encoded; OneFlow's faster decoder misreads gray ones.
            "plain_jpeg": FORMATS[self._options.img_format] == "JPEG"
            and not self.statistics.num_gray,
            "split_id": self._planned.split_id,
            "skipped": [
                {"file": self._shown(name), "reason": reason} for name, reason, _ in self._problems
            ],
            "images_csv": self.folder.write_table(self._rows()),
            "parts": self._parts,
        }
        try:
            return validate(Manifest, fields)
        except ValueError as error:
            reason = f"its parts do not fit together ({error}): remove it and convert again"
            raise InputError(f"{self.folder.staging}: {reason}") from None

    def _label_fields(self) -> dict[str, Any]:
        names, labels = self._planned.samples.class_names, sorted(map(int, self._label_counts))
        return {
            "num_classes": len(names or ()) or max(labels[-1] + 1, 0),
            "class_names": names,
            "label_counts": {str(label): self._label_counts[str(label)] for label in labels},
        }

    def _rows(self) -> Iterator[Row]:
        images = zip(*self.stored, strict=True)
        for part in self._parts:
            for record in range(part.num_records):
                name, label, digest = next(images)
                yield Row(part.file, record, self._shown(name), label, f"{digest:0{DIGITS}x}")

    def _shown(self, name: str) -> str:
        return "" if self._options.anonymous else printable(name)

    def report(self) -> None:
        """Log how many images are stored unchanged, why others are not, and what looks wrong."""
        statistics, samples = self.statistics, self._planned.samples
        reencoded = statistics.reencode_reasons
        number = statistics.num_images - reencoded.total()
        text = f"{self.folder.path}: {count(number, 'image')} stored unchanged"
        if reencoded:
            reasons = (f"{number:,} {reason}" for reason, number in reencoded.most_common())
            text += f"; re-encoded: {', '.join(reasons)}"
        log(text)
        if statistics.num_measured < statistics.num_images:
            images = count(statistics.num_measured, "image")
            log(f"mean and standard deviation are those of {images}, decoded at full size")
        warnings = [
            f"skipped: {line}" for line in describe(self._problems, self._options.image_root)
        ][:SHOWN_PROBLEMS]
        if self._problems:
            images = count(len(samples), "image")
            warnings.append(f"skipped {len(self._problems):,} of {images}")
        lost = sorted(set(samples.labels).difference(self.stored.labels))[:SHOWN_PROBLEMS]
        names = map(samples.class_name, lost)
        warnings += [f"--skip_bad left no image of class {name}" for name in names]
        for line in warnings + self._doubts():
            log(line, "warning")

    def _doubts(self) -> list[str]:
        """Return what looks wrong with the images, a line each."""
        statistics, folder, lines = self.statistics, self.folder.path, []
        if not any(statistics.manifest_fields()["std"]):
            lines.append(f"{folder}: all pixels of all images have the same value")
        if statistics.num_images > 2 and len(set(self.stored.digests)) == 1:
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
