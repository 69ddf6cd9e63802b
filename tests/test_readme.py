"""The README does what it says: its commands, its output, its links."""

import os
import re
import shutil
import subprocess
import sys

import cv2
import pytest

from conftest import PROJECT, run_script

README = (PROJECT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.M | re.S)


def block(start):
    (text,) = [text for _, text in BLOCKS if text.startswith(start)]
    return text.splitlines()


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    """A clone, in which the README's `python …` commands were typed. {command: Result}."""
    clone = tmp_path_factory.mktemp("clone")
    git = subprocess.run(["git", "ls-files"], cwd=str(PROJECT), stdout=subprocess.PIPE, encoding="utf-8")
    files = git.stdout.split("\n") if git.returncode == 0 else [  # a downloaded archive
        str(path.relative_to(PROJECT)) for path in PROJECT.rglob("*") if path.is_file() and ".venv" not in path.parts]
    for name in filter(None, files):
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        (clone / name).write_bytes((PROJECT / name).read_bytes())
    commands = [line for line in block("python3.10 -m venv") if line.startswith("python ")]
    assert commands == ["python img2ofrecord.py", "python lenet_train.py"]
    results = {}
    for command in commands:
        results[command] = subprocess.run([sys.executable] + command.split()[1:], cwd=str(clone), encoding="utf-8",
                                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=dict(os.environ, CUDA_VISIBLE_DEVICES=""))
    return clone, results


def assert_quoted(quoted, printed, same):
    """``quoted`` lines are the printed ones, with ``......`` for any number in between."""
    cut = quoted.index("......")
    for said, was in list(zip(quoted[:cut], printed)) + list(zip(quoted[cut + 1:][::-1], printed[::-1])):
        assert same(said, was), (said, was)


def test_the_converter_prints_what_the_readme_quotes(followed):
    printed = followed[1]["python img2ofrecord.py"].stdout.splitlines()
    assert_quoted(block("The image root is:"), printed, lambda said, was: said == was)


def test_the_trainer_prints_what_the_readme_quotes(followed):
    """The first losses; later ones differ a little from one kind of CPU to the next."""
    printed = followed[1]["python lenet_train.py"].stdout.splitlines()
    assert len(printed) == 100 and float(printed[-1].strip("[]")) < 0.05

    def same(said, was):
        said, was = float(said.strip("[]")), float(was.strip("[]"))
        return was == pytest.approx(said, rel=1e-2) or max(said, was) < 0.05
    assert_quoted(block("[7."), printed, same)


def test_the_record_looks_as_the_readme_shows(followed):
    code = "\n".join(block("import struct"))
    process = subprocess.run([sys.executable, "-c", code], cwd=str(followed[0]), encoding="utf-8",
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.splitlines() == block("295 bytes"), process.stderr


def test_links_lead_to_what_they_name():
    for text, target in re.findall(r"\[([^\]]+)\]\(([^)]+)\)", README):
        if "://" in target:
            continue
        path = PROJECT / target
        assert path.is_file(), target
        if path.suffix == ".py":
            name = text.strip("`")
            assert re.search(r"^(def|class) {}\b".format(name), path.read_text(encoding="utf-8"), re.M), (text, target)


def test_the_tree_is_the_tree(followed):
    tree = "\n".join(block("├── img2ofrecord.py"))
    for name in re.findall(r"^├── ([\w./]+)", tree, re.M):
        assert (followed[0] / name).exists(), name
    shown = {re.split(r"[/]", name)[0] for name in re.findall(r"^[├└]── ([\w./]+)", tree, re.M)}
    hidden_by_intent = {"README.md", "Makefile", "requirements.txt", "__pycache__"}
    assert {path.name for path in followed[0].iterdir() if path.name[0] != "."} - hidden_by_intent == shown


def test_errors_in_the_table_are_the_programs_own():
    """The fixed part of each message in the table stands in the code."""
    code = "".join(path.read_text(encoding="utf-8") for folder in (PROJECT, PROJECT / "ofrecord", PROJECT / "lenet")
                   for path in folder.glob("*.py"))
    code = re.sub(r'"\s*\n\s*"', "", code)  # texts that go on in the next line
    for message in re.findall(r"^\| `([^`]+)` \|", README, re.M):
        for part in re.split(r"…|: |3\.12|\./dataset/|part-3|label\.txt, line 7|NVIDIA H100|nvidia-cudnn-cu11|29500|2 ranks", message):
            assert part.strip(" ,:") in code, part


def test_the_walk_from_a_folder_to_a_prediction(followed):
    """The numbered commands as they stand, on patches of real colour pictures: a palace, a flower and a person."""
    from matplotlib.cbook import get_sample_data
    from sklearn.datasets import load_sample_images

    clone = followed[0]
    pictures = dict(zip(("palace", "flower"), load_sample_images().images))
    pictures["person"] = cv2.cvtColor(cv2.imread(get_sample_data("grace_hopper.jpg", asfileobj=False)), cv2.COLOR_BGR2RGB)
    patches = 0
    for name, picture in pictures.items():
        (clone / "photos" / name).mkdir(parents=True)
        for y in range(0, picture.shape[0] - 63, 64):  # none shares a pixel with another
            for x in range(0, picture.shape[1] - 63, 64):
                patches += 1
                assert cv2.imwrite(str(clone / "photos" / name / "{}_{}.jpg".format(y, x)),
                                   cv2.cvtColor(picture[y:y + 64, x:x + 64], cv2.COLOR_RGB2BGR))
    shutil.move(str(clone / "photos" / "flower" / "128_256.jpg"), str(clone / "new.jpg"))
    walk = README[README.index("## Your own images"):].split("## ")[1]
    commands = re.findall(r"^   python (.*)$", walk, re.M)
    assert len(commands) == 4
    said = []
    for command in commands:
        result = subprocess.run([sys.executable] + command.split(), cwd=str(clone), encoding="utf-8", stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, env=dict(os.environ, CUDA_VISIBLE_DEVICES=""))
        assert result.returncode == 0, (command, result.stderr)
        said.append(result)
    assert (clone / "dataset_sheet.png").exists() and (clone / "runs/own_images/predictions.png").exists()
    assert "3 classes; fused decoder" in said[2].stderr
    right, count = map(int, re.findall(r"(\d+) of (\d+) right", said[2].stderr)[-1])
    print("{} patches; {} of the {} held out right; new.jpg: {}".format(patches, right, count, said[3].stdout))
    assert right / count > 0.7 and "flower" in said[3].stdout


def test_one_gpu_and_many(followed):
    """The commands for several ranks as they stand, and those for a GPU, which say what they do without one."""
    section = README[README.index("## One GPU, and many"):].split("\n## ")[0]
    commands = [line.split("#")[0] for line in re.findall(r"^python (.*)$", section, re.M)]
    assert len(commands) == 6
    for command in commands[:4]:
        result = subprocess.run([sys.executable] + command.split(), cwd=str(followed[0]), encoding="utf-8", stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, env=dict(os.environ, CUDA_VISIBLE_DEVICES="", WORLD_SIZE="1"))
        assert result.returncode == 0, (command, result.stderr)
        assert ("--amp" in command) == ("mixed precision is for GPUs" in result.stderr)
        assert ("launch" in command) == ("ranks: 2, each takes 5 images of a step's 10" in result.stderr)
    for command in commands[4:]:  # of several machines: the options at least are the launcher's
        parts = command.split()
        assert parts[:2] == ["-m", "oneflow.distributed.launch"] and parts[parts.index("--nnodes") + 1] == "2"
