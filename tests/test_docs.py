"""README and docs/ do what they say: each block is run, each link leads somewhere.

How a page's blocks are read:

* ```console: a line that begins with "$ " is a command, the lines below it are what it
  prints, stdout and stderr together;
* ```python: typed into an interactive Python in the project's folder, which lives until
  the next console block; lines that begin with "#>" are what it prints. One that imports
  OTHER_PACKAGES is typed into a Python of its own, which has them, if there is one;
* ```python that begins with "# FILE": an excerpt of that file, with "..." for lines that are not shown;
* ```yaml that begins with "# FILE": a file to write.

In what is printed, "..." stands for anything: in a line for a part of it, on a line of its
own for any number of lines. Losses are compared within 1 %, seconds and images/s are not
compared, all else exactly.
"""

import ast
import csv
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest
from helpers import ENVIRONMENT, MNIST, PROJECT, needs_mnist

PAGES = [
    "README.md",
    "README.zh-CN.md",
    *(f"docs/{path.name}" for path in sorted((PROJECT / "docs").glob("*.md"))),
]
CHINESE = {"README.zh-CN.md": "README.md", "docs/tutorial.zh-CN.md": "docs/tutorial.md"}
ENGLISH = [page for page in PAGES if page not in CHINESE]

# What is not run as it stands: what is run instead (None: nothing), and why.
LAUNCH = "python -m oneflow.distributed.launch --nnodes 2 --node_rank {} --master_addr 10.0.0.1"
LAUNCH += " --nproc_per_node 8 lenet_train.py --config configs/mnist.yaml"
GET_MNIST = f"python data/get_mnist.py --source {MNIST}"
TRAIN_MNIST = "python lenet_train.py --config configs/mnist.yaml"
TWO_RANKS = "python -m oneflow.distributed.launch --nproc_per_node 2"
TWO_RANKS += TRAIN_MNIST.removeprefix("python")
SHORT = " --steps 160 --epochs 1"
MAKE_MNIST = " && ".join(
    [GET_MNIST]
    + [
        f"python img2ofrecord.py --image_root data/mnist/{split}_set/ "
        f"--label_dir data/mnist/{split}_label/label.txt --save_dir data/mnist/{split}_dataset/ --part_num 4"
        for split in ("train", "test")
    ]
    + [TRAIN_MNIST + SHORT]
)
EXCEPTIONS = {
    "make train": (None, "installs packages; tests/test_setup.py runs it"),
    "make test": (None, "calls this test"),
    "make mnist": (MAKE_MNIST, "installs packages, takes long"),
    "python data/get_mnist.py": (GET_MNIST, "the network"),
    TWO_RANKS: (TWO_RANKS + SHORT, "three epochs take seven minutes"),
    LAUNCH.format(0): (None, "two machines"),
    LAUNCH.format(1): (None, "two machines"),
    ".venv/bin/pip install oneflow==0.9.0+cu118 -f https://release.oneflow.info": (
        None,
        "the network",
    ),
    "pip install -q onnx -c constraints.txt": (None, "the network; the tests have it installed"),
}
# Packages that this project does without: in .venv-peers (`make bench`), or wherever tests run.
OTHER_PACKAGES = {"datasets", "pandas", "torch"}
PEERS = PROJECT / ".venv-peers" / "bin" / "python"
# Sections that take long, or need MNIST's files: run by `make test-all`.
SLOW = {
    "README.md": {"MNIST", "Your own images"},
    "docs/tutorial.md": {"4. Train", "Exercises"},
    "docs/own-images.md": {"*"},
    "docs/datasets.md": {"Merge, append, reshard", "Export"},
    "docs/mnist.md": {"*"},
    "docs/distributed.md": {"*"},
    "docs/gpu.md": {"*"},
    "docs/benchmarks.md": {"*"},
}
NEEDS_MNIST = {"README.md": {"MNIST"}, "docs/mnist.md": {"*"}}


class Block(NamedTuple):
    """A fenced code block of a page."""

    section: str  # the heading above it, of the second level
    language: str
    text: str


@cache
def text_of(page):
    return (PROJECT / page).read_text(encoding="utf-8")


@cache
def blocks(page):
    """All code blocks of a page, in order."""
    found, section = [], ""
    for match in re.finditer(r"^## ([^\n]+)$|^```(\w*)\n(.*?)^```$", text_of(page), re.M | re.S):
        section = match[1] or section
        if match[3] is not None:
            found.append(Block(section, match[2], match[3]))
    return found


def commands(block):
    """[(command, what it prints)] of a console block."""
    found = []
    for line in block.text.splitlines(keepends=True):
        if line.startswith("$ "):
            found.append([line[2:].strip(), ""])
        elif found[-1][0].endswith("\\"):
            found[-1][0] = found[-1][0][:-1] + line.strip()
        else:
            found[-1][1] += line
    return [(re.sub(r"\s+#.*", "", command), printed) for command, printed in found]


def project_files():
    """The project's files, by their path in it: what git tracks, and new ones."""
    listing = "git -c safe.directory=* ls-files -z --cached --others --exclude-standard".split()
    names = subprocess.check_output(listing, cwd=PROJECT, encoding="utf-8").split("\0")
    return sorted({name for name in names if (PROJECT / name).is_file()})


@pytest.fixture
def clone(tmp_path):
    """A copy of the project without what its commands make, but with .venv."""
    for name in project_files():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(PROJECT / name, tmp_path / name)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    return tmp_path


# -- what is printed ------------------------------------------------------------------

NUMBERS = re.compile(
    r"(?<!\.)\.\.\.(?!\.)"  # anything
    r"|(?<=\[)\d+\.\d+(?=\])|(?<=loss )\d+\.\d+"  # a loss
    r"|\d[\d,.]*(?= s\b| images/s)"  # seconds, speed
)


def assert_prints(expected, printed, what):
    """``printed`` is what a page shows."""
    pattern, losses, end = "", [], 0
    expected = re.sub(r"^\.\.\.\n", "\0", expected, flags=re.M)  # any number of lines
    for match in NUMBERS.finditer(expected):
        pattern += re.escape(expected[end : match.start()])
        end = match.end()
        if match[0] == "...":
            pattern += r"[^\n]*"
        elif expected[match.start() - 1] == "[" or expected[: match.start()].endswith("loss "):
            losses.append(float(match[0]))
            pattern += r"(\d[\d.e-]*)"
        else:
            pattern += r"[\d,.]+"
    pattern = (pattern + re.escape(expected[end:])).replace(re.escape("\0"), r"(?:.*\n)*?")
    match = re.fullmatch(pattern, printed)
    assert match, f"{what}\n--- should print\n{expected}\n--- prints\n{printed}"
    for loss, value in zip(losses, map(float, match.groups()), strict=True):
        # Losses near 0 depend on the kind of CPU.
        assert value == pytest.approx(loss, rel=0.01) or max(loss, value) < 0.05, (what, printed)


def test_what_counts_as_printed():
    """The comparison itself: it passes what is equal, and fails what is not."""
    page = "Start......\n[7.932]\n...\nloss 1.00\n10 images in 2.0 s\na ... b\n"
    same = "Start......\n[7.95]\nx\ny\nloss 1.001\n10 images in 17.3 s\na c d b\n"
    assert_prints(page, same, "same")
    changes = [("7.95", "7.4"), ("......", "..."), ("10 images", "11 images"), (" b", "")]
    for old, new in changes:
        with pytest.raises(AssertionError):
            assert_prints(page, same.replace(old, new), "changed")


# -- running a page -------------------------------------------------------------------

# Types blocks into an interactive Python, with a line between their outputs.
TYPIST = """
import code, json, sys
blocks = json.load(sys.stdin)
console = code.InteractiveConsole({"__name__": "__main__"})
for block in blocks:
    for line in [*block.splitlines(), ""]:
        console.push(line)
    print("\\0", flush=True)
"""


class Page:
    """Runs the blocks of a page in a folder, one after the other."""

    def __init__(self, folder):
        self.folder, self.session = folder, []
        paths = os.pathsep.join([str(Path(sys.executable).parent), ENVIRONMENT["PATH"]])
        self.environment = {
            **ENVIRONMENT,
            "PATH": paths,
            "PYTHONUNBUFFERED": "1",
            "PYTHONSTARTUP": "",
            "CUDA_VISIBLE_DEVICES": "",
            "LC_ALL": "C.UTF-8",
        }

    def run(self, page_blocks):
        for block in page_blocks:
            excerpt = re.match(r"# (\S+\.(?:py|yaml))\n", block.text)
            if block.language == "console":
                self.end_session()
                for command, printed in commands(block):
                    self.run_command(command, printed)
            elif block.language == "yaml" and excerpt:
                (self.folder / excerpt[1]).write_text(block.text)
            elif block.language == "python" and excerpt:
                assert_excerpt(excerpt[1], block.text[excerpt.end() :])
            elif block.language == "python" and imported(block) & OTHER_PACKAGES:
                self.end_session()
                if python := python_with(imported(block) & OTHER_PACKAGES):
                    self.session.append(block.text)
                    self.end_session(python)
            elif block.language == "python":
                self.session.append(block.text)
            else:
                assert block.language in ("", "text"), block
        self.end_session()

    def run_command(self, command, printed):
        if command in EXCEPTIONS:
            command, printed = EXCEPTIONS[command][0], "...\n"
            if not command:
                return
        if "oneflow.distributed.launch" in command and "--master_port" not in command:
            with socket.socket() as free:  # the usual port may be taken on this machine
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            command = command.replace("launch", f"launch --master_port {port}", 1)
        process = self.start(["sh", "-c", command])
        assert (process.returncode == 0) == (": error: " not in printed), (command, process)
        assert_prints(printed, process.stdout, command)

    def end_session(self, python=sys.executable):
        typed, self.session = self.session, []
        if not typed:
            return
        process = self.start([python, "-c", TYPIST], json.dumps(typed))
        outputs = process.stdout.split("\0\n")
        assert process.returncode == 0 and len(outputs) == len(typed) + 1, process.stdout
        for block, printed in zip(typed, outputs[:-1], strict=True):
            shown = "".join(re.findall(r"^#> ?(.*\n)", block, re.M))
            assert_prints(shown, printed, block)

    def start(self, command, text=""):
        return subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment,
            input=text,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            timeout=1200,
        )


def imported(block):
    """The packages that a Python block imports."""
    return set(re.findall(r"^(?:import|from) (\w+)", block.text, re.M))


def python_with(packages):
    """A Python that has these packages, or None."""
    for python in (sys.executable, PEERS):
        command = [python, "-c", f"import {', '.join(packages)}"]
        if Path(python).exists() and not subprocess.run(command, capture_output=True).returncode:
            return str(python)
    return None


def assert_excerpt(file, excerpt):
    """The lines of an excerpt stand in the file, in this order; "..." skips lines."""
    content = (PROJECT / file).read_text(encoding="utf-8")
    pieces = re.split(r"^ *\.\.\.\n", excerpt, flags=re.M)
    for piece in pieces:
        start = content.find("\n" + piece)
        assert start >= 0, f"not in {file}, or not there:\n{piece}"
        content = content[start + len(piece) :]


def sections(page, among):
    """The blocks of a page in the sections that ``among`` names for it; "*" is all."""
    return [block for block in blocks(page) if {block.section, "*"} & among.get(page, set())]


@pytest.mark.parametrize("page", [page for page in ENGLISH if "*" not in SLOW.get(page, ())])
def test_blocks(page, clone):
    """What is quick, in order, in an empty folder with a copy of the project."""
    slow = sections(page, SLOW)
    Page(clone).run([block for block in blocks(page) if block not in slow])


@pytest.mark.slow
@pytest.mark.parametrize("page", list(SLOW))
def test_all_blocks(page, clone):
    without = [] if MNIST.is_dir() else sections(page, NEEDS_MNIST)
    chosen = [block for block in blocks(page) if block not in without]
    if not chosen:
        pytest.skip(needs_mnist.kwargs["reason"])
    runner = Page(clone)
    if page == "README.md":  # the reader's photos
        runner.run(blocks("docs/own-images.md")[:1])
        shutil.move(clone / "photos" / "circle" / "000.jpg", clone / "new.jpg")
    runner.run(chosen)
    if page == "README.md":
        metrics = (clone / "runs" / "own_images" / "metrics.csv").read_text().splitlines()
        accuracies = [row["eval_accuracy"] for row in csv.DictReader(metrics)]
        assert float(accuracies[-1]) > 0.8


# -- what is not run ------------------------------------------------------------------


def all_commands(page):
    """The commands of a page's console blocks, and those in its sentences and tables."""
    for block in blocks(page):
        if block.language == "console":
            yield from (command for command, _ in commands(block))
    prose = re.sub(r"^```.*?^```$", "", text_of(page), flags=re.M | re.S)
    yield from re.findall(r"`((?:python|make|pip) [^`]+)`", prose)


@cache
def help_of(*command):
    process = Page(PROJECT).start([*command, "--help"])
    assert process.returncode == 0, process
    return process.stdout


# A program in a command, and its arguments: those of a launcher end where its script begins.
PROGRAM = re.compile(
    r"(python -m ofrecord \w+|python -m \S+|python \S+|pip \w+|(?<= )lenet_train\.py)"
    r"((?: (?!lenet_train\.py)\S+)*)"
)
STARTED_AS = {"lenet_train.py": "python lenet_train.py", "pip install": "python -m pip install"}


def test_options_are_those_of_help():
    """Of every command, those that are not run too."""
    targets = set(re.findall(r"^([\w-]+):", text_of("Makefile"), re.M))
    seen = 0
    for command in sorted({command for page in PAGES for command in all_commands(page)}):
        if command.startswith("make "):
            assert set(re.findall(r" ([^\s=]+)(?= |$)", command)) <= targets, command
        for program, arguments in PROGRAM.findall(command):
            for option in re.findall(r"(?<= )-[\w-]+", arguments):
                text = help_of(*STARTED_AS.get(program, program).split())
                assert re.search(rf"(?<![\w-]){option}(?![\w-])", text), command
                seen += 1
        for config in re.findall(r"configs/\S+", command):
            assert (PROJECT / config).is_file(), command
    assert seen > 20


def test_exceptions_are_few_and_needed():
    assert len(EXCEPTIONS) <= 12
    used = {command for page in PAGES for command in all_commands(page)}
    assert set(EXCEPTIONS) <= used
    for page, named in SLOW.items():
        assert named <= {block.section for block in blocks(page)} | {"*"}, page


# -- links, translations, messages ----------------------------------------------------


def anchors(page):
    """The anchors that GitHub makes of a page's headings."""
    prose = re.sub(r"^```.*?^```$", "", text_of(page), flags=re.M | re.S)
    titles = re.findall(r"^#+ (.+)$", prose, re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)\s]+)\)", text_of(page))
    for link in links:
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (PROJECT / page).parent / path if path else PROJECT / page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(os.path.relpath(target, PROJECT)), link


def test_readme_links_to_every_page():
    english, chinese = (
        set(re.findall(r"\]\(([^)\s#]+)", text_of(readme)))
        for readme in ("README.md", "README.zh-CN.md")
    )
    assert {*ENGLISH, "README.zh-CN.md"} - {"README.md"} <= english
    assert {*ENGLISH, "docs/tutorial.zh-CN.md"} - {"docs/tutorial.md"} <= chinese


@pytest.mark.parametrize("chinese", CHINESE)
def test_chinese_blocks_are_the_english_ones(chinese):
    pairs = [blocks(chinese), blocks(CHINESE[chinese])]
    theirs, ours = ([(block.language, block.text) for block in each] for each in pairs)
    assert theirs == ours
    images = [
        re.findall(r"!\[.*?\]\((.+?)\)", text_of(page)) for page in (chinese, CHINESE[chinese])
    ]
    assert images[0] == images[1]


def test_lengths():
    """Pages that people read to the end."""
    for page, most in {
        "README.md": 130,
        "docs/tutorial.md": 250,
        "docs/own-images.md": 200,
    }.items():
        assert len(text_of(page).splitlines()) <= most, page
    for chinese, english in CHINESE.items():
        assert len(text_of(chinese).splitlines()) == len(text_of(english).splitlines())


def test_the_map_is_the_project():
    """Every top-level file and folder stands in the README's map, and nothing else."""
    (tree,) = [each.text for each in blocks("README.md") if "├── img2ofrecord.py" in each.text]
    lines = re.findall(r"^[├└]── (.+?)(?:  |$)", tree, re.M)
    shown = {name.strip("/") for line in lines for name in line.split(", ")}
    there = {name.split("/")[0] for name in project_files() if name[0] != "."}
    assert shown == there


@pytest.mark.slow
def test_the_script_of_the_pictures_runs(clone):
    """As `make picture` runs it; what it draws is looked at by people."""
    for command in ("img2ofrecord.py", "tools/pictures.py"):
        process = subprocess.run(
            [sys.executable, *command.split()], cwd=clone, env=ENVIRONMENT, capture_output=True
        )
        assert process.returncode == 0, process.stderr.decode()
    for name in ("record.png", "pipeline.png"):
        drawn, shown = (cv2.imread(str(folder / "docs" / name)) for folder in (clone, PROJECT))
        assert drawn.shape == shown.shape
        assert (np.abs(drawn.astype(int) - shown) > 8).mean() < 0.01


def texts_in_the_code():
    """All string constants of the project's modules, without docstrings."""
    texts = []
    for name in project_files():
        if not name.endswith(".py") or name.startswith(("tests/", "benchmarks/")):
            continue
        tree = ast.parse((PROJECT / name).read_text(encoding="utf-8"))
        docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts += [node.value] * (id(node) not in docstrings)
    return "\n".join(texts)


# What the first table of troubleshooting.md shows where the programs fill something in.
FILLED_IN = r"…|^cannot |: |\(|\), |3\.12|\./dataset/|part-3|NVIDIA H100|OneFlow 0.9.0|'images'|libcudnn_cnn_infer.so.8|29500|30 and 20"


def test_messages_are_the_programs_own():
    """The fixed parts of each message in the first table stand in the code."""
    code = texts_in_the_code()
    table = text_of("docs/troubleshooting.md").partition("\n## ")[0]  # below are OneFlow's own
    messages = re.findall(r"^\| `([^`]+)` \|", table, re.M)
    assert len(messages) > 10
    for message in messages:
        parts = [part.strip(" ,:") for part in re.split(FILLED_IN, message)]
        assert max(map(len, parts)) > 8, message
        for part in parts:
            assert part in code, message
