"""The end of a conversion: the manifest and the table of each dataset, and what is said of them."""

from collections import Counter

from runtime.cli import SHOWN_PROBLEMS, InputError, count, log, os_errors
from runtime.settings import validate

from ..dataset.commit import NewDataset
from ..dataset.commit import commit as commit_datasets
from ..dataset.copies import ImageTable, report_copies
from ..dataset.images_csv import Row, printable
from ..dataset.manifest import FORMATS, Manifest, Part, part_name
from ..dataset.statistics import ImageStatistics
from .chunk import Problem
from .datasets import PlannedDataset
from .options import ConvertOptions
from .packing import describe
from .parts import PlannedPart, load_finished

DARK = 64  # of 255: 16-bit images below it use at most 14 of their bits


def commit(datasets: dict[str, PlannedDataset], options: ConvertOptions) -> None:
    """Put the datasets, all of whose parts are there, in place of the old ones.

    Logs what was skipped, what looks wrong, and copies. Raises InputError where a dataset is
    left without an image.
    """
    finished = [FinishedDataset(planned, options) for planned in datasets.values()]
    channels = max(each.statistics.channels for each in finished)  # the same for all
    new = [NewDataset(each.folder, each.write(channels), each.staged) for each in finished]
    for each in finished:
        each.report()
    names = datasets["train"].samples.class_names
    report_copies([ImageTable(each.folder.path, each.rows, names) for each in finished], say=log)
    commit_datasets(new)


class FinishedDataset:
    """A dataset all of whose parts are there."""

    def __init__(self, planned: PlannedDataset, options: ConvertOptions):
        self.folder, self._planned, self._options = planned.folder, planned, options
        self.statistics = ImageStatistics()
        self.rows: list[Row] = []  # of images.csv
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
        finished = load_finished(self.folder, part.file)
        skipped = dict(finished.skipped)
        self._problems += [Problem(*each, True) for each in skipped.items()]
        if not finished.digests:
            return
        self.statistics.merge(finished.statistics)
        self.staged.append(part.file)
        file = part_name(len(self._parts), self._options.part_name_suffix_length)
        fields = {"bytes": finished.bytes, "sha256": finished.sha256}
        self._parts.append(Part(file=file, num_records=len(finished.digests), **fields))
        labels = zip(part.samples.names, part.samples.labels, strict=True)
        stored = ((printable(name), label) for name, label in labels if name not in skipped)
        for record, (image, digest) in enumerate(zip(stored, finished.digests, strict=True)):
            self.rows.append(Row(file, record, *image, digest))

    def write(self, channels: int) -> Manifest:
        """Write the table of images to the hidden folder, and return the manifest."""
        is_jpeg = FORMATS[self._options.img_format] == "JPEG"
        names, counts = self._planned.samples.class_names, Counter(row.label for row in self.rows)
        anonymous = self._options.anonymous
        rows = (row._replace(image="") for row in self.rows) if anonymous else self.rows
        fields = {
            **self._options.manifest_fields,
            **self.statistics.manifest_fields(channels),
            "num_records": len(self.rows),
            "num_classes": len(names or ()) or max(max(counts) + 1, 0),
            "class_names": names,
            "label_counts": {str(label): counts[label] for label in sorted(counts)},
            # Of JPEG, what is not plain is re-encoded; OneFlow's faster decoder misreads gray ones.
            "plain_jpeg": is_jpeg and not self.statistics.num_gray,
            "split_id": self._planned.split_id,
            "skipped": [
                {"file": "" if anonymous else printable(name), "reason": reason}
                for name, reason, _ in self._problems
            ],
            "images_csv": self.folder.write_table(rows),
            "parts": self._parts,
        }
        try:
            return validate(Manifest, fields)
        except ValueError as error:
            reason = f"its parts do not fit together ({error}): remove it and convert again"
            raise InputError(f"{self.folder.staging}: {reason}") from None

    def report(self) -> None:
        """Log how many images are stored unchanged, why others are not, and what looks wrong."""
        statistics, samples = self.statistics, self._planned.samples
        reencoded = statistics.reencode_reasons
        stored = count(statistics.num_images - reencoded.total(), "image")
        text = f"{self.folder.path}: {stored} stored unchanged"
        if reencoded:
            reasons = (f"{number:,} {reason}" for reason, number in reencoded.most_common())
            text += f"; re-encoded: {', '.join(reasons)}"
        log(text)
        if statistics.num_measured < statistics.num_images:
            images = count(statistics.num_measured, "image")
            log(f"mean and standard deviation are those of {images}, decoded at full size")
        problems = describe(self._problems, self._options.image_root)[:SHOWN_PROBLEMS]
        lines = [f"skipped: {line}" for line in problems]
        if problems:
            lines.append(f"skipped {len(self._problems):,} of {count(len(samples), 'image')}")
        lost = sorted(set(samples.labels).difference(row.label for row in self.rows))
        names = map(samples.class_name, lost[:SHOWN_PROBLEMS])
        lines += [f"--skip_bad left no image of class {name}" for name in names]
        for line in lines + self._doubts():
            log(line, "warning")

    def _doubts(self) -> list[str]:
        """Return what looks wrong with the images, a line each."""
        statistics, folder, lines = self.statistics, self.folder.path, []
        if not any(statistics.manifest_fields()["std"]):
            lines.append(f"{folder}: all pixels of all images have the same value")
        if len(self.rows) > 2 and len({row.sha256 for row in self.rows}) == 1:
            lines.append(f"{folder}: all images are the same")
        wide = count(statistics.reencode_reasons["16-bit"], "16-bit image")
        if statistics.reencode_reasons["16-bit"] and statistics.brightest < DARK:
            lines.append(
                f"{wide} reach only {statistics.brightest} of 255, as their values are small: "
                "scale them before, so that white is 65,535"
            )
        if statistics.num_several:
            files = count(statistics.num_several, "file")
            first = "only the first is stored"
            lines.append(f"{files} with several pictures (an animation, or pages): {first}")
        return lines
