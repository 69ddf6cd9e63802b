"""The training's settings: from where they come, which values they take, what is said of others."""

import re

import pytest
import yaml
from helpers import PROJECT, call, losses, train

YAML = PROJECT / "configs" / "lenet.yaml"


def printed(*arguments):
    """What --print_config prints."""
    result = call("lenet_train", *arguments, "--print_config")
    assert result.code == 0 and result.err == "", result
    return result.out


def problems(*arguments):
    """The lines about what is wrong with some settings, without the program's name."""
    result = call("lenet_train", *arguments, "--print_config")
    assert result.code == 2 and result.out == "" and "Traceback" not in result.err, result
    return [line.removeprefix("lenet_train.py: error: ") for line in result.err.splitlines()]


@pytest.fixture
def write(tmp_path):
    """Writes a file of settings and returns its path."""

    def write(text):
        path = tmp_path / "mine.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


# -- where they come from ----------------------------------------------------------------


def test_the_yaml_file_has_every_setting():
    """It is what --print_config prints; each has a comment, and its default in --help."""
    assert printed() == printed("--config", YAML) == YAML.read_text()
    for line in YAML.read_text().splitlines():
        assert line.startswith("#") or re.match(r"\w+: \S+ +# \S", line), line
    result = call("lenet_train", "--help")
    assert result.code == 0
    for name, value in yaml.safe_load(YAML.read_text()).items():
        default = "null" if value is None else str(value).lower()
        option = re.search(rf"^  --{name} .*?\(default:\s*(\S+)\)", result.out, re.M | re.S)
        assert option and option[1] == default, name


def test_configuration_from_file_and_command_line(converted, write):
    mine = write("steps: 3\nbatch_size: 10\nimage_size: 12\nrun_dir: runs\n")
    result = train(converted, "--config", mine, "--steps", 2, "--run_dir", "null")
    assert len(losses(result)) == 2
    assert "2 steps of 10 images" in result.err
    text = printed("--config", mine, "--steps", 2)
    settings = yaml.safe_load(text)
    assert (settings["batch_size"], settings["steps"], settings["run_dir"]) == (10, 2, "runs")
    assert settings["epochs"] is None and settings["learning_rate"] == 0.001
    assert printed("--config", PROJECT / "configs/mnist.yaml", "--config", mine) == printed(
        "--config",
        PROJECT / "configs/mnist.yaml",
        *"--steps 3 --batch_size 10 --image_size 12 --run_dir runs".split(),
    )
    assert printed("--config", write(text)) == text


def test_any_folder_can_be_printed_and_read(write):
    for folder in ("a #1: b", 'it\'s "x"', "数据 1", "[a]", "a\tb", "😀", "-x"):
        text = printed(f"--dataset_dir={folder}")
        assert yaml.safe_load(text)["dataset_dir"] == folder
        assert printed("--config", write(text)) == text


# -- values ------------------------------------------------------------------------------

VALUES = [  # name, as it is written, value: the same in a file and on the command line
    ("learning_rate", "1e-3", 0.001),
    ("learning_rate", "1", 1.0),
    ("seed", "9223372036854775807", 2**63 - 1),
    ("epochs", "null", None),
    ("epochs", "~", None),
    ("run_dir", "''", None),
    ("dataset_dir", "1e3", "1e3"),
    ("augment", "FALSE", False),
    ("augment", "yes", True),
]


@pytest.mark.parametrize("name, text, value", VALUES)
def test_values(write, name, text, value):
    of_file = printed("--config", write(f"{name}: {text}\n"))
    settings = yaml.safe_load(of_file)
    assert settings[name] == value and type(settings[name]) is type(value)
    assert printed(f"--{name}", text if text != "''" else "null") == of_file


def test_a_switch_may_stand_alone():
    for words in (["--graph"], ["--graph", "--steps", "5"], ["--graph=True"], ["--graph", "false"]):
        assert yaml.safe_load(printed(*words))["graph"] is (words[-1] != "false")


def test_yaml_of_other_editors(write):
    for text in (b"\xef\xbb\xbfsteps: 3", b"seed: 0\r\nsteps: 3\r\n", "{steps: 3}"):
        assert yaml.safe_load(printed("--config", write(text)))["steps"] == 3


INTEGER = "a valid integer, unable to parse string as an integer"
NUMBER = "a valid number, unable to parse string as a number"
BOOLEAN = "a valid boolean, unable to interpret input"
ODD_VALUES = [  # name, as it is written, what it should be
    ("steps", "1e3", INTEGER),
    ("steps", "0", "greater than or equal to 1"),
    ("batch_size", "null", "a valid integer"),
    ("batch_size", "2.5", INTEGER),
    ("batch_size", "2000000", "less than or equal to 1048576"),
    ("seed", "9223372036854775808", "less than 9223372036854775808"),
    ("learning_rate", ".nan", NUMBER),
    ("learning_rate", "nan", "a finite number"),
    ("learning_rate", "-1", "greater than 0"),
    ("augment", "perhaps", BOOLEAN),
    ("device", "tpu", "'auto', 'cuda' or 'cpu'"),
    ("dataset_dir", "null", "a valid string"),
]


@pytest.mark.parametrize("name, text, said", ODD_VALUES)
def test_odd_values(write, name, text, said):
    """A short line says what the value should be, and what it is."""
    path, found = write(f"{name}: {text}\n"), None if text == "null" else text
    line = f"{name}: it should be {said}, not {found!r}"
    assert problems("--config", path) == [f"{path}: {line}"]
    assert problems(f"--{name}", text) == [f"--{line}"]


BAD_FILES = [  # what is in a file, and how the line about it goes on after the file's name
    ("amp: true\ngraph: true\ndevice: cpu", ": amp: mixed precision requires a GPU, and device is"),
    ("steps: {a: [3]}\n", ": steps: it should be a valid integer, not {'a': ['3']}"),
    ("steps: [\n", " is not valid YAML: "),
    ("steps: 3\nsteps: 4\n", " is not valid YAML: the name 'steps' is there twice"),
    ("steps: &a [*a]\n", " is not valid YAML: "),
    ("steps: 3\n---\nseed: 1\n", " is not valid YAML: "),
    (1000 * "[", " is not valid YAML: "),
    (b"steps: \xff\n", " is not valid YAML: "),
    (b"steps: 3\n" + 2**20 * b"#", ": it is larger than 1,048,576 bytes"),
    ("", " contains no settings; expected lines such as `steps: 200`"),
    ("steps:3\n", " contains no settings"),
    ("steps:\n", "steps, epochs: give one of them, so that the training ends"),
]


@pytest.mark.parametrize("text, said", BAD_FILES, ids=lambda text: text[:12])
def test_bad_config_file(write, text, said):
    path = write(text)
    *_, line = [line for line in problems("--config", path) if "wrong settings" not in line]
    assert line.removeprefix("cannot read ").removeprefix(str(path)).startswith(said), line


BAD_OPTIONS = {
    "--amp": "--amp: OneFlow has mixed precision in graphs only: give --graph too",
    "--step 3": "--step: unknown setting; did you mean steps?",
    "--batch-size 3": "--batch-size: unknown setting; did you mean batch_size?",
    "--steps": "argument --steps: expected one argument (--help lists the options)",
    "3": "unexpected argument '3' (--help lists the options)",
    "--run_dir=": "--run_dir is empty, such as a variable that is not set (--help lists the options)",
    "--config=": "--config is empty, such as a variable that is not set (--help lists the options)",
    "--config no.yaml": "cannot read no.yaml: No such file or directory",
    "--config /dev/zero": "cannot read /dev/zero: it is not a regular file",
}


@pytest.mark.parametrize("words", BAD_OPTIONS)
def test_bad_command_line(words):
    assert problems(*words.split()) == [BAD_OPTIONS[words]]
