"""The house's rules: which room may import what, and what must parse under Python 3.6."""

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent
SCRIPTS = ("img2ofrecord.py", "lenet_train.py")
ANYTHING = None  # any third-party package

# What a room or a file may import besides the standard library and its own room (DESIGN.md, "The house").
ALLOWED = {
    "runtime": {"tqdm", "pydantic", "yaml"},
    "ofrecord": {
        *("runtime", "numpy", "cv2", "PIL", "pillow_heif", "google.protobuf", "pydantic", "tqdm"),
    },
    "ofrecord/sheet.py": {"matplotlib"},  # the contact sheet
    "ofrecord/commands/sheet.py": {"matplotlib"},
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
OURS = {"runtime", "ofrecord", "lenet", "data", "tests", "benchmarks", "tools", "docs"} | {
    script.removesuffix(".py") for script in SCRIPTS
}
# Imports that are calls: OneFlow's generated protobuf class is loaded by path, without the engine.
CALLS = re.compile(r"\b(import_module|__import__|spec_from_file_location|SourceFileLoader)\b")
CALLED_IN = {"ofrecord/record.py": ["spec_from_file_location"]}

# Python compiles a file as a whole before it can say that the version is wrong, so
# these, and what they import before check_environment, must parse under 3.6.
STARTED = (
    *SCRIPTS,
    "ofrecord/__main__.py",
    "lenet/predict.py",
    "lenet/export.py",
    "data/get_mnist.py",
)
PARSED_BY_3_6 = (
    *STARTED,
    *(f"{room}/__init__.py" for room in ("runtime", "ofrecord", "lenet")),
    "runtime/environment.py",
)


# -- import rules -----------------------------------------------------------------------------


def modules(root: Path) -> list[Path]:
    """Return the modules of all rooms. (data/ holds images by the thousand as well.)"""
    folders = [folder for folder in ROOMS if folder not in (*SCRIPTS, "data")]
    inner = [path for folder in folders for path in sorted((root / folder).rglob("*.py"))]
    return [*inner, *sorted((root / "data").glob("*.py")), *(root / script for script in SCRIPTS)]


def bad_imports(root: Path) -> list[str]:
    """Return every import in the rooms under ``root`` that is not allowed, as "file: name"."""
    found = []
    for path in modules(root):
        file, text = path.relative_to(root).as_posix(), path.read_text(encoding="utf-8")
        room = file.split("/")[0]
        allowed = ALLOWED[room] | ALLOWED.get(file, set())
        for name in imports_in(text, file):
            if not is_allowed(name, room.removesuffix(".py"), allowed) or goes_up(file, name):
                found.append(f"{file}: {name}")
        calls = CALLS.findall(text)
        if calls != CALLED_IN.get(file, []):
            found.append(f"{file}: {', '.join(calls)}")
    return found


def goes_up(file: str, name: str) -> bool:
    """Whether a file of one of ofrecord's floors imports from a higher one."""
    floor, other = (each[1] if len(each) > 1 else "" for each in (file.split("/"), name.split(".")))
    if not (file.startswith("ofrecord/") and name.startswith("ofrecord.")):
        return False
    return floor in FLOORS and other in FLOORS and FLOORS.index(other) < FLOORS.index(floor)


def is_allowed(name: str, own: str, allowed: set) -> bool:
    top = name.split(".")[0]
    if f"{name}.".startswith(f"{NEVER}."):
        return False
    if top in sys.stdlib_module_names or top == own:
        return True
    if any(each and (name == each or name.startswith(f"{each}.")) for each in allowed):
        return True
    return ANYTHING in allowed and top not in OURS and top.isidentifier()


def imports_in(text: str, file: str) -> Iterator[str]:
    """Yield the full name of every import in a module; ``from a import b`` counts as a.b."""
    for node in ast.walk(ast.parse(text, file)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = absolute("." * node.level + (node.module or ""), file.split("/")[:-1])
            yield from (f"{module}.{alias.name}".lstrip(".") for alias in node.names)


def absolute(name: str, package: list[str]) -> str:
    """Return a relative name's full name; ``package`` is where it is imported, as parts."""
    level = len(name) - len(name.lstrip("."))
    if level == 0:
        return name
    if level > len(package):
        return f"<{name} leaves the package>"
    return ".".join([*package[: len(package) - level + 1], name[level:]]).rstrip(".")


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
    ("runtime/cli.py", "class C:\n    from PIL import Image", "PIL.Image"),
    ("runtime/cli.py", "try:\n    import six\nexcept ImportError:\n    pass", "six"),
    ("runtime/cli.py", "from ..lenet import y", "<..lenet leaves the package>.y"),
    ("runtime/atomic.py", "from importlib import import_module as load", "import_module"),
    ("ofrecord/record.py", "__import__('x')", "spec_from_file_location, __import__"),
    ("ofrecord/check.py", "import oneflow as flow", "oneflow"),
    ("ofrecord/check.py", "import lenet.run", "lenet.run"),
    ("ofrecord/check.py", "from matplotlib import pyplot", "matplotlib.pyplot"),
    ("ofrecord/check.py", "from google import cloud", "google.cloud"),
    ("ofrecord/images/x.py", "from ..labels import y", "ofrecord.labels.y"),
    ("ofrecord/dataset/x.py", "import ofrecord.convert.y", "ofrecord.convert.y"),
    ("lenet/run.py", "from img2ofrecord import main", "img2ofrecord.main"),
    ("lenet/run.py", "import tests.helpers", "tests.helpers"),
    ("lenet/run.py", "from lenet_train import LeNet", "lenet_train.LeNet"),
    ("lenet/run.py", "from .predict import load_model", "lenet.predict.load_model"),
    ("lenet/predict.py", "from lenet_train import main", "lenet_train.main"),
    ("lenet/export.py", "from . import predict", "lenet.predict"),
    ("lenet_train.py", "import img2ofrecord", "img2ofrecord"),
    ("lenet_train.py", "import lenet.predict", "lenet.predict"),
    ("img2ofrecord.py", "from data import get_mnist", "data.get_mnist"),
    ("data/get_mnist.py", "import ofrecord.record", "ofrecord.record"),
    ("data/get_mnist.py", "import oneflow", "oneflow"),
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

TOO_NEW = {
    "match": "match x:\n    case 1:\n        pass",
    "walrus": "print(x := 1)",
    "positional-only": "def f(a, /):\n    pass",
    "parenthesized with": "with (open('a') as a, open('b') as b):\n    pass",
    "self-documenting f-string": "f'{x=}'",
}


def find_python_3_6() -> str | None:
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = sorted(versions.glob("3.6*/bin/python"))
    return str(found[0]) if found else shutil.which("python3.6")


needs_python_3_6 = pytest.mark.skipif(
    not find_python_3_6(), reason="there is no Python 3.6, in pyenv or on PATH"
)


@pytest.mark.parametrize("file", PARSED_BY_3_6)
def test_started_files_have_the_grammar_of_3_6(file):
    ast.parse((PROJECT / file).read_text(encoding="utf-8"), file, feature_version=(3, 6))


@pytest.mark.parametrize("code", TOO_NEW.values(), ids=TOO_NEW)
def test_newer_grammar_is_found(code):
    ast.parse(code)
    with pytest.raises(SyntaxError):
        ast.parse(code, feature_version=(3, 6))


@needs_python_3_6
@pytest.mark.parametrize("file", STARTED)
def test_python_3_6_reads_what_is_started_and_says_what_it_needs(file):
    is_module = file.startswith(("ofrecord/", "lenet/"))  # started with python -m
    command = ["-m", file.removesuffix(".py").replace("/", ".")] if is_module else [file]
    result = subprocess.run(
        [find_python_3_6(), *command], cwd=PROJECT, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 2 and result.stdout == "", result
    assert result.stderr.count("\n") == 1 and "error: this is Python 3.6 (" in result.stderr
