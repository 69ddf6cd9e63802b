"""The README does what it says: its commands, its output, its links."""

import ast
import re
import shutil
import socket
import subprocess

import cv2
import pytest
from helpers import ENVIRONMENT, PROJECT, call, run_python

README = (PROJECT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^ *```(\w*)\n(.*?)^ *```", README, re.M | re.S)
MADE = {".git", ".venv", ".venv-peers", ".pytest_cache", ".ruff_cache", "__pycache__", "log"}
MADE |= {".uv", "runs", "mnist", "dataset", "dataset_val", "dataset_4"}
ON_CPU = {"CUDA_VISIBLE_DEVICES": ""}


def block(start):
    """The lines of the one code block that begins so."""
    (text,) = [text for _, text in BLOCKS if text.startswith(start)]
    return text.splitlines()


def section(title):
    """What stands below a heading, up to the next one."""
    return README[README.index(f"\n## {title}\n") :].split("\n## ")[1]


def commands(text):
    """The arguments of each ``python …`` command on a line of its own, comments aside."""
    return [line.split("#")[0].split() for line in re.findall(r"^ *python (.*)$", text, re.M)]


def project_files():
    """The project's files, by their path in it: what git tracks, and new modules."""
    git = ["git", "-c", "safe.directory=*", "ls-files", "-z"]
    names = []
    try:
        for more in ([], ["--others", "--exclude-standard", "*.py"]):
            process = subprocess.run(
                git + more, cwd=PROJECT, env=ENVIRONMENT, capture_output=True, check=True
            )
            names += process.stdout.decode().split("\0")
    except (OSError, subprocess.CalledProcessError):  # a downloaded archive, or no git
        paths = (path.relative_to(PROJECT) for path in PROJECT.rglob("*"))
        names = [str(path) for path in paths if not MADE & set(path.parts)]
    return [name for name in names if (PROJECT / name).is_file()]


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A copy of the project as it is without what its commands make. Tests may add folders."""
    folder = tmp_path_factory.mktemp("clone")
    for name in project_files():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(PROJECT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def followed(clone):
    """The Results of the README's first two ``python …`` commands, in the clone."""
    first = commands("\n".join(block("uv venv --python 3.10")))
    assert first == [["img2ofrecord.py"], ["lenet_train.py"]]
    return [run_python(*command, cwd=clone, env=ON_CPU) for command in first]


# -- what is quick ------------------------------------------------------------------


def assert_quoted(quoted, printed, same):
    """``quoted`` lines are the printed ones, with ``......`` for any number in between."""
    cut = quoted.index("......")
    after = len(quoted) - cut - 1
    assert cut and after and len(printed) >= cut + after
    pairs = list(zip(quoted[:cut], printed[:cut], strict=True))
    for expected, line in pairs + list(zip(quoted[-after:], printed[-after:], strict=True)):
        assert same(expected, line), (expected, line)


def test_the_converter_prints_what_the_readme_quotes(followed):
    printed = followed[0].out.splitlines()
    assert_quoted(block("The image root is:"), printed, lambda expected, line: expected == line)


def test_the_trainer_prints_what_the_readme_quotes(followed):
    """The first losses; later ones differ a little from one kind of CPU to the next."""
    printed = followed[1].out.splitlines()
    assert len(printed) == 100 and float(printed[-1].strip("[]")) < 0.05, followed[1]

    def same(expected, line):
        expected, value = float(expected.strip("[]")), float(line.strip("[]"))
        return value == pytest.approx(expected, rel=1e-2) or max(expected, value) < 0.05

    assert_quoted(block("[7."), printed, same)


def test_the_record_looks_as_the_readme_shows(clone, followed):
    result = run_python("-c", "\n".join(block("import struct")), cwd=clone)
    assert result.out.splitlines() == block("295 bytes"), result


def test_every_command_has_known_options(clone):
    """Those of the commands that take too long here too: the script or module is there, with these options."""
    found = 0
    texts = {}  # of --help
    for command in commands(README):
        if "oneflow.distributed.launch" in command:
            script = next(word for word in command if word.endswith(".py"))
            command = command[command.index(script) :]
        module = command[1] if command[0] == "-m" else command[0][: -len(".py")].replace("/", ".")
        if module == "venv":
            continue
        if module == "ofrecord":
            module = "ofrecord.__main__"
        if module not in texts:
            result = call(module, "--help")
            assert result.code == 0, result
            texts[module] = result.out
        for word in command:
            if word.startswith("--"):
                assert re.search(rf"^ *(-\w, )?{word}\b|[\[ ]{word}\b", texts[module], re.M), (
                    command
                )
                found += 1
            elif word.startswith("configs/"):
                assert (clone / word).is_file(), command
    assert found > 20 and len(texts) >= 5, (found, sorted(texts))


def test_links_lead_to_what_they_name():
    for text, target in re.findall(r"\[([^\]]+)\]\(([^)]+)\)", README):
        if "://" in target:
            continue
        path = PROJECT / target
        assert path.is_file(), target
        if path.suffix == ".py":
            name = text.strip("`")
            code = path.read_text(encoding="utf-8")
            assert re.search(rf"^(def|class) {name}\b", code, re.M), (text, target)


def test_the_tree_is_the_tree(clone):
    tree = "\n".join(block("├── img2ofrecord.py"))
    shown = set(re.findall(r"^[├└]── ([\w.]+)", tree, re.M))
    made = {"dataset"}
    not_shown = {"README.md", "Makefile", "LICENSE", "CHANGELOG.md"} | {
        "requirements.txt",
        "constraints.txt",
        "pyproject.toml",
    }
    there = {name.split("/")[0] for name in project_files() if name[0] != "."}
    assert there - not_shown == shown - made
    for name in re.findall(r"^[├└]── (\w+/[\w.]+)", tree, re.M):
        assert (clone / name).exists(), name
    folder = None
    for top, inner in re.findall(r"^(?:[├└]── ([\w./]+)|│   [├└]── ([\w./]+))", tree, re.M):
        folder = top or folder
        if inner and folder.strip("/") not in made:
            assert (clone / folder / inner).exists(), (folder, inner)


def texts_in_the_code():
    """All string constants of the project's modules, those of f-strings and continued ones too, without docstrings."""
    texts = []
    for name in project_files():
        if not name.endswith(".py") or name.startswith(("tests/", "benchmarks/")):
            continue
        tree = ast.parse((PROJECT / name).read_text(encoding="utf-8"))
        documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        texts += [
            node.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in documentation
        ]
    return "\n".join(texts)


# What the README's table says in the place of what the programs fill in.
FILLED_IN = (
    r"…|: |3\.12|\./dataset/|part-3|NVIDIA H100|'images'|libcudnn_cnn_infer.so.8|29500|world size 2"
)


def test_errors_in_the_table_are_the_programs_own():
    """The fixed parts of each message in the table stand in the code."""
    code = texts_in_the_code()
    messages = re.findall(r"^\| `([^`]+)` \|", section("When something is wrong"), re.M)
    assert len(messages) > 10
    for message in messages:
        parts = [part.strip(" ,:") for part in re.split(FILLED_IN, message)]
        assert max(map(len, parts)) > 8, message
        for part in parts:
            assert part in code, message


# -- what takes longer ----------------------------------------------------------------


@pytest.mark.slow
def test_the_walk_from_a_folder_to_a_prediction(clone):
    """The numbered commands as they stand, on patches of real colour pictures: a palace, a flower and a person."""
    from matplotlib.cbook import get_sample_data
    from sklearn.datasets import load_sample_images

    pictures = dict(zip(("palace", "flower"), load_sample_images().images, strict=True))
    hopper = cv2.imread(get_sample_data("grace_hopper.jpg", asfileobj=False))
    pictures["person"] = cv2.cvtColor(hopper, cv2.COLOR_BGR2RGB)
    patches = 0
    for name, picture in pictures.items():
        (clone / "photos" / name).mkdir(parents=True)
        for y in range(0, picture.shape[0] - 63, 64):  # none shares a pixel with another
            for x in range(0, picture.shape[1] - 63, 64):
                if (x + y) % 128:  # half of them will do
                    continue
                patches += 1
                patch = cv2.cvtColor(picture[y : y + 64, x : x + 64], cv2.COLOR_RGB2BGR)
                assert cv2.imwrite(str(clone / "photos" / name / f"{y}_{x}.jpg"), patch)
    new = []  # two of each class, of which the first is the README's new.jpg
    for name in sorted(pictures):
        for path in sorted((clone / "photos" / name).iterdir())[3:9:5]:
            new.append((clone / f"{name}_{path.name}" if new else clone / "new.jpg", name))
            shutil.move(path, new[-1][0])
    walk = commands(section("Your own images"))
    assert len(walk) == 4
    results = []
    for command in walk:
        results.append(run_python(*command, cwd=clone, env=ON_CPU))
        assert results[-1].code == 0, (command, results[-1])
    assert (clone / "dataset_sheet.png").exists()
    assert (clone / "runs/own_images/predictions.png").exists()
    assert "colour images (64x64) in 5 parts, 3 classes" in results[2].err, results[2]
    right, count = map(int, re.findall(r"accuracy (\d+)/(\d+)", results[2].err)[-1])
    assert results[3].out.startswith("new.jpg: "), results[3]
    checkpoint = clone / "runs/own_images/best.npz"
    predicted = call("lenet.predict", "--checkpoint", checkpoint, *(path for path, _ in new)).out
    recognized = sum(
        f": {name} (" in line for line, (_, name) in zip(predicted.splitlines(), new, strict=True)
    )
    print(f"{patches} patches; {right} of the {count} held out right, {recognized} of 6 new ones")
    assert right / count > 0.7 and recognized >= 4, predicted


@pytest.mark.slow
def test_one_gpu_and_many(clone):
    """The commands for several ranks, and those for a GPU, which say what they do without one.

    As they stand, but that ten steps are enough.
    """
    found = commands(section("One GPU, and many"))
    assert len(found) == 6
    exported = dict(re.findall(r"^export (\w+)=(\S+)", section("One GPU, and many"), re.M))
    for command in found[:4]:
        launched = "oneflow.distributed.launch" in command
        if launched:  # on a port of its own, as the default's may be taken here
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                command[2:2] = ["--master_port", free.getsockname()[1]]
        steps = ["--steps", 10] if "lenet_train.py" in command else []
        result = run_python(*command, *steps, cwd=clone, env={**ON_CPU, **exported})
        assert result.code == 0, (command, result)
        assert ("--amp" in command) == ("mixed precision requires a GPU" in result.err), result
        assert launched == ("world size: 2, batch per rank: 5 images" in result.err), result
    for command in found[4:]:  # of several machines: the options at least are the launcher's
        assert command[:2] == ["-m", "oneflow.distributed.launch"]
        assert command[command.index("--nnodes") + 1] == "2"
