"""The house's rules: which room may import what, and what must parse under Python 3.6."""

import ast
import importlib.util
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import PROJECT

SCRIPTS = ("img2ofrecord.py", "lenet_train.py")
ANYTHING = None  # any third-party package

# What a room or a file may import besides the standard library and its own room (DESIGN.md, "The house").
ALLOWED = {
    "runtime": {"tqdm", "pydantic", "yaml"},
    "ofrecord": {
        *("runtime", "numpy", "cv2", "PIL", "pillow_heif", "google.protobuf", "pydantic", "tqdm"),
    },
    "ofrecord/commands/sheet.py": {"matplotlib"},  # the contact sheet
    "data": {"runtime", "numpy", "cv2", "tqdm"},
    "lenet": {"runtime", "ofrecord", ANYTHING},
    "lenet/predict.py": {"lenet_train.LeNet"},  # the one exception: the network is in the lesson
    "img2ofrecord.py": {"runtime", "ofrecord", "lenet", ANYTHING},
    "lenet_train.py": {"runtime", "ofrecord", "lenet", ANYTHING},
}
# What nothing may import: the script would be run a second time, by another name.
NEVER = "lenet.predict"
# The sub-packages of ofrecord/, from the top: each imports only those below it.
FLOORS = ("commands", "convert", "labels", "images", "dataset")
ROOMS = ("runtime", "ofrecord", "lenet", "data", *SCRIPTS)
# Everything of this project that can be imported by name.
OURS = {room.removesuffix(".py") for room in ROOMS} | {"tests", "benchmarks", "tools", "docs"}

# Python compiles a file as a whole before it can say that the version is wrong, so
# these, and what they import before check_environment, must parse under 3.6.
STARTED = [*SCRIPTS, "ofrecord/__main__.py", "lenet/predict.py", "lenet/export.py"]
STARTED += ["data/get_mnist.py"]
IMPORTED_FIRST = [f"{room}/__init__.py" for room in ("runtime", "ofrecord", "lenet")]
IMPORTED_FIRST += ["runtime/environment.py"]


# -- import rules -----------------------------------------------------------------------------


def modules(root: Path) -> list[Path]:
    """Return the modules of all rooms. (data/ holds images by the thousand as well.)"""
    inner = [path for room in ROOMS[:3] for path in sorted((root / room).rglob("*.py"))]
    return [*inner, *sorted((root / "data").glob("*.py")), *(root / script for script in SCRIPTS)]


def bad_imports(root: Path) -> list[str]:
    """Return every import in the rooms under ``root`` that is not allowed, as "file: name"."""
    files = [(path, path.relative_to(root).as_posix()) for path in modules(root)]
    names = ((file, name) for path, file in files for name in imports_in(path.read_text(), file))
    return [f"{file}: {name}" for file, name in names if not is_allowed(file, name)]


def is_allowed(file: str, name: str) -> bool:
    room, floor = file.split("/")[0], file.split("/")[1:2]
    top, inner = name.split(".")[0], name.split(".")[1:2]
    if f"{name}.".startswith(f"{NEVER}."):
        return False
    if top == room.removesuffix(".py"):
        floors = [FLOORS.index(each) for each in (*floor, *inner) if each in FLOORS]
        return sorted(floors) == floors  # also where only one of the two is a floor
    allowed = ALLOWED[room] | ALLOWED.get(file, set())
    if any(each and f"{name}.".startswith(f"{each}.") for each in allowed):
        return True
    is_package = top not in OURS and top.isidentifier()
    return top in sys.stdlib_module_names or (ANYTHING in allowed and is_package)


def imports_in(text: str, file: str) -> Iterator[str]:
    """Yield the full name of every import in a module; ``from a import b`` counts as a.b."""
    package = file.rpartition("/")[0].replace("/", ".")
    for node in ast.walk(ast.parse(text, file)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            name = "." * node.level + (node.module or "")
            try:
                module = importlib.util.resolve_name(name, package)
            except ImportError:
                module = f"<{name} leaves the package>"
            yield from (f"{module}.{alias.name}" for alias in node.names)


def test_every_import_is_allowed():
    assert bad_imports(PROJECT) == []


def test_every_module_is_in_a_room():
    files = [*PROJECT.glob("*.py"), *PROJECT.glob("[!.]*/*.py")]
    tops = {path.relative_to(PROJECT).parts[0].removesuffix(".py") for path in files}
    assert {room.removesuffix(".py") for room in ROOMS} <= tops <= OURS
    assert not [path for path in files if path.name == "utils.py"]


# (file, code to append to it, the import to be found in that)
PLANTED = (
    ("runtime/cli.py", "import numpy", "numpy"),
    ("runtime/cli.py", "import os, cv2 as y", "cv2"),
    ("runtime/cli.py", "import ofrecord.record", "ofrecord.record"),
    ("runtime/cli.py", "from lenet.engine import *", "lenet.engine.*"),
    ("runtime/cli.py", "def f():\n    import matplotlib", "matplotlib"),
    ("runtime/cli.py", "from ..lenet import y", "<..lenet leaves the package>.y"),
    ("ofrecord/check.py", "import oneflow as flow", "oneflow"),
    ("ofrecord/check.py", "from matplotlib import pyplot", "matplotlib.pyplot"),
    ("ofrecord/images/x.py", "from ..labels import y", "ofrecord.labels.y"),
    ("ofrecord/dataset/x.py", "import ofrecord.convert.y", "ofrecord.convert.y"),
    ("lenet/run.py", "from img2ofrecord import main", "img2ofrecord.main"),
    ("lenet/run.py", "from lenet_train import LeNet", "lenet_train.LeNet"),
    ("lenet/run.py", "from .predict import load_model", "lenet.predict.load_model"),
    ("lenet/predict.py", "from lenet_train import main", "lenet_train.main"),
    ("lenet/export.py", "from . import predict", "lenet.predict"),
    ("lenet_train.py", "import lenet.predict", "lenet.predict"),
    ("img2ofrecord.py", "from data import get_mnist", "data.get_mnist"),
    ("data/get_mnist.py", "import ofrecord.record", "ofrecord.record"),
)


def test_planted_imports_are_found(tmp_path):
    for path in modules(PROJECT):
        copy = tmp_path / path.relative_to(PROJECT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    assert bad_imports(tmp_path) == []
    for file, code, _ in PLANTED:
        with (tmp_path / file).open("a", encoding="utf-8") as module:
            module.write(f"\n\n{code}\n")
    assert sorted(bad_imports(tmp_path)) == sorted(f"{file}: {name}" for file, _, name in PLANTED)


# -- what Python 3.6 can read -----------------------------------------------------------------


@pytest.mark.parametrize("file", STARTED + IMPORTED_FIRST)
def test_started_files_have_the_grammar_of_3_6(file):
    ast.parse((PROJECT / file).read_text(encoding="utf-8"), file, feature_version=(3, 6))
