"""Work with datasets: ``python -m ofrecord check|show|index|finish|merge|export``."""

from runtime.environment import check_environment

check_environment(__name__)

import os
from array import array
from collections import Counter

import numpy as np
from tqdm import tqdm

from runtime.cli import (
    ArgumentParser,
    InputError,
    InputErrors,
    count,
    log,
    one_line,
    os_errors,
    output,
    run_main,
)
from runtime.workers import num_cpus

from .check import (
    Features,
    PartReport,
    check_parts,
    compare_totals,
    index_parts,
    read_image,
)
from .dataset import CHECK, dataset_in_use, read_records
from .export import export
from .headers import BadImage
from .images import decode, decoder_messages
from .labels import counted, describe_columns
from .manifest import MANIFEST_NAME, load_manifest
from .merge import merge
from .record import IMAGE_FEATURE, LABEL_FEATURE
from .report import copies_text, digests_of, name_conflicts
from .resume import finish

ACTIONS = {
    "check": "read every byte again and name what is wrong by part and record",
    "show": "print what is in it and draw a contact sheet of sample images",
    "index": "write the manifest of part files that another converter wrote",
    "finish": "make a dataset of the parts that jobs wrote (img2ofrecord.py --job)",
}
COPY_ACTIONS = {
    "merge": "copy the records of datasets into a new one: to join, append, reshard or shuffle",
    "export": "write the images as files, in a folder for each class",
}


def main() -> None:
    args = parse_args()
    if args.action == "merge":
        manifest = merge(args.sources, args.target, args.part_num, args.seed)
        return output(f"{args.target}: {manifest.summary}")
    if args.action == "finish":
        return output(f"{args.folder}: {finish(args.folder).summary}")
    with dataset_in_use(args.folder), dataset_in_use(getattr(args, "other", None)):
        if args.action == "export":
            number = export(args.folder, args.target, args.flat)
            return output(f"{args.target}: {count(number, 'image')}")
        {"check": check, "show": show, "index": index}[args.action](args)


def parse_args():
    parser = ArgumentParser(prog="python -m ofrecord", description="Work with OFRecord datasets.")
    names = "|".join((*ACTIONS, *COPY_ACTIONS))
    actions = parser.add_subparsers(dest="action", metavar=names, required=True)
    add_copy_actions(actions)
    for name, text in ACTIONS.items():
        command = actions.add_parser(name, help=text, description=text.capitalize() + ".")
        command.add_argument("folder", metavar="DIR", help="the dataset's folder")
        if name == "check":
            command.add_argument("other", metavar="OTHER", nargs="?", help="look for copies here")
        if name == "show":
            help = "the PNG file of the contact sheet (default: DIR_sheet.png beside the folder)"
            command.add_argument("--sheet", metavar="FILE", help=help)
        if name in ("show", "finish"):
            continue
        for kind, default in (("image", IMAGE_FEATURE), ("label", LABEL_FEATURE)):
            help = f"the name of the records' {kind} feature (default: {default})"
            command.add_argument(f"--{kind}_feature", default=default, metavar="NAME", help=help)
    args = parser.parse_args()
    if "" in (*vars(args).values(), *getattr(args, "sources", ())):
        parser.error("an argument is empty, such as a variable that is not set")
    if args.action == "merge":
        if args.part_num is not None and not 1 <= args.part_num <= 10**6:
            parser.error(f"--part_num {args.part_num}: it should be from 1 to 1,000,000")
        if args.seed is not None and not args.shuffle:
            parser.error("--seed is for --shuffle, which is not given")
        args.seed = (args.seed or 0) if args.shuffle else None
    if getattr(args, "sheet", None) and not args.sheet.lower().endswith(".png"):
        parser.error(f"--sheet {args.sheet}: the name must end in .png")
    return args


def add_copy_actions(actions) -> None:
    """Add the parsers of merge and export."""
    texts = {
        name: {"help": t, "description": f"{t.capitalize()}."} for name, t in COPY_ACTIONS.items()
    }
    command = actions.add_parser("merge", **texts["merge"])
    command.add_argument("sources", nargs="+", metavar="SRC", help="the folders of datasets")
    command.add_argument("target", metavar="DST", help="the new dataset's folder")
    help = "number of part files (default: as many as the datasets have together)"
    command.add_argument("--part_num", type=int, metavar="N", help=help)
    command.add_argument("--shuffle", action="store_true", help="in random order")
    command.add_argument("--seed", type=int, metavar="N", help="of --shuffle (default: 0)")
    command = actions.add_parser("export", **texts["export"])
    command.add_argument("folder", metavar="SRC", help="the dataset's folder")
    command.add_argument("target", metavar="DIR", help="the new folder of the images")
    help = "all images in one folder, with a label file, labels.csv"
    command.add_argument("--flat", action="store_true", help=help)


def check(args) -> None:
    """Check one dataset or two, and look for copies of images in them.

    Raises InputErrors with all that is wrong.
    """
    folders, problems = [each for each in (args.folder, args.other) if each], []
    datasets = [check_dataset(folder, args, problems) for folder in folders]
    if problems:
        wrong = count(len(problems), "problem")
        raise InputErrors(problems, f"{wrong} in {' and '.join(folders)}")
    found = [reports for reports, _ in datasets]
    if args.other:
        ours, theirs = map(digests_of, found)
        shared = int(np.isin(theirs, ours).sum())
        if shared:
            text = f"{count(shared, 'image')} of {args.other} are copies of images in {args.folder}"
            log(text, "warning")
    # Labels can be compared where they stand for the same classes.
    kinds = {str((names, *reports[0].label_kinds)) for reports, names in datasets}
    for reports in [sum(found, [])] if len(kinds) == 1 else found:
        name_conflicts(reports)


def check_dataset(folder: str, args, problems: list[str]) -> tuple[list[PartReport], list | None]:
    """Print a line for each part and one for the whole; add what is wrong to ``problems``.

    Returns the reports and the names of the classes.
    """
    has_manifest = os.path.lexists(os.path.join(folder, MANIFEST_NAME))
    manifest = load_manifest(folder) if has_manifest else None
    features = Features(args.image_feature, args.label_feature)
    if manifest:
        features = Features(manifest.image_feature, manifest.label_feature)
    reports, found = [], []
    for report in check_parts(folder, features, manifest, num_cpus()):
        reports.append(report)
        found += report.problems
        state = count(len(report.problems), "problem") if report.problems else "valid"
        records = count(report.num_records, "record")
        output(f"{report.file}: {records}, {report.num_bytes:,} bytes, {state}", flush=True)
    found += compare_totals(folder, reports, manifest)
    problems += found
    if not found:
        records = count(sum(report.num_records for report in reports), "record")
        size = sum(report.num_bytes for report in reports)
        output(f"{folder}: {records}, {size:,} bytes, all valid")
        copies = copies_text(digests_of(reports))
        if copies:
            output(f"{folder}: {copies}")
    if not manifest and not found:
        output(f"(there is no {MANIFEST_NAME}, which would tell how many there should be)")
    return reports, manifest and manifest.class_names


def index(args) -> None:
    """Write the manifest and print what it says."""
    features = Features(args.image_feature, args.label_feature)
    manifest = index_parts(args.folder, features, num_cpus())
    output(f"{args.folder}: {manifest.summary}")


def show(args) -> None:
    """Print counts, sizes and a histogram of the classes or columns; draw the contact sheet."""
    from .sheet import Sampler, draw_sheet  # matplotlib takes a second to import

    manifest = load_manifest(args.folder)
    kind, values, sampler = manifest.label_kind, array("d"), Sampler()
    is_float = kind.type == "float32"
    labels = Counter({0: 0} if is_float else dict.fromkeys(map(int, manifest.label_counts), 0))
    bar = tqdm(total=manifest.num_records, unit="record", disable=None, leave=False)
    with bar:
        for _, _, data, label in read_records(args.folder, manifest):
            values.extend(label if is_float else ())
            for group in [0] if is_float else counted(label, kind):
                labels[group] += 1
                sampler.add(group, data)
            bar.update()
    samples = decode_samples(sampler.samples, args.folder)
    known = {0: "all"} if is_float else dict(enumerate(manifest.class_names or []))
    names = {label: one_line(known.get(label, label)) for label in labels}
    output(f"{args.folder}: {manifest.summary}")
    figures = [" ".join(f"{value:.1f}" for value in each) for each in (manifest.mean, manifest.std)]
    output(f"pixels: mean {figures[0]}, standard deviation {figures[1]} (0 to 255)")
    if manifest.skipped:
        output(f"skipped: {count(len(manifest.skipped), 'image')}, listed in {MANIFEST_NAME}")
    if is_float:
        output(*describe_columns(values, list(map(one_line, manifest.class_names))))
    else:
        print_histogram(labels, names)
    name = os.path.basename(os.path.abspath(args.folder))
    sheet = args.sheet or os.path.normpath(os.path.join(args.folder, "..", f"{name}_sheet.png"))
    with os_errors("write the contact sheet", sheet):
        draw_sheet(sheet, manifest.summary, samples, names, labels)
    output(f"contact sheet: {sheet}")


def decode_samples(samples, folder: str):
    """Return the sampled images' pixels, gray or RGB, by label. Raises InputError."""
    pixels = {}
    with decoder_messages:
        for label, encoded in samples.items():
            try:
                images = [decode(data, read_image(data)[0]) for data in encoded]
            except BadImage as error:
                line = f"{folder}: invalid image with label {label}: {error}"
                raise InputError(f"{line}; {CHECK.format(folder)}") from None
            pixels[label] = [each if each.ndim == 2 else each[:, :, ::-1] for each in images]
    return pixels


BAR, MOST_CLASSES = 40, 50


def print_histogram(labels: Counter, names) -> None:
    """Print a line for each class: name, count, bar; the fifty largest where there are more."""
    most, some = max(labels.values()) or 1, [label for label, _ in labels.most_common(MOST_CLASSES)]
    shown = sorted(labels) if len(labels) <= MOST_CLASSES else some
    width = min(max(len(names[label]) for label in shown), 30)
    for label in shown:
        bar = "█" * max(labels[label] > 0, round(BAR * labels[label] / most))
        number = f"{labels[label]:>{len(f'{most:,}')},}"
        output(f"  {names[label][:30]:>{width}}  {number}  {bar}".rstrip())
    if len(labels) > len(shown):
        output(f"  … and {len(labels) - len(shown):,} smaller classes")


if __name__ == "__main__":
    run_main(main)
