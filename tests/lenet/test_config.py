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
    result = train(converted, "--config", mine, "--steps", 2, "--run_dir", "")
    assert len(losses(result)) == 2
    assert "2 steps of 10 images" in result.err
    text = printed("--config", mine, "--steps", 2)
    settings = yaml.safe_load(text)
    assert (settings["batch_size"], settings["steps"], settings["run_dir"]) == (10, 2, "runs")
    assert settings["epochs"] is None and settings["learning_rate"] == 0.001
    assert printed("--config", write(text)) == text


@pytest.mark.parametrize("folder", ["a #1: b", 'it\'s "x"', "数据 1", "[a]", "a\tb", "😀", "-x"])
def test_any_folder_can_be_printed_and_read(write, folder):
    text = printed(f"--dataset_dir={folder}")
    assert yaml.safe_load(text)["dataset_dir"] == folder
    assert printed("--config", write(text)) == text


# -- values ------------------------------------------------------------------------------

VALUES = [  # name, as it is written, value: the same in a file and on the command line
    ("learning_rate", "1e-3", 0.001),
    ("learning_rate", "1E-3", 0.001),
    ("learning_rate", ".5", 0.5),
    ("learning_rate", "1", 1.0),
    ("seed", "9223372036854775807", 2**63 - 1),
    ("seed", "+7", 7),
    ("epochs", "null", None),
    ("epochs", "~", None),
    ("run_dir", "null", None),
    ("run_dir", "''", None),
    ("dataset_dir", "1e3", "1e3"),
    ("augment", "FALSE", False),
    ("augment", "yes", True),
    ("schedule", "cosine", "cosine"),
]


@pytest.mark.parametrize("name, text, value", VALUES)
def test_values(write, name, text, value):
    of_file = printed("--config", write(f"{name}: {text}\n"))
    settings = yaml.safe_load(of_file)
    assert settings[name] == value and type(settings[name]) is type(value)
    assert printed(f"--{name}", text.strip("'")) == of_file


def test_a_switch_may_stand_alone():
    for words in (["--graph"], ["--graph", "--steps", "5"], ["--graph=True"], ["--graph", "false"]):
        assert yaml.safe_load(printed(*words))["graph"] is (words[-1] != "false")


@pytest.mark.parametrize(
    "text", [b"\xef\xbb\xbfsteps: 3", b"seed: 0\r\nsteps: 3\r\n", "{steps: 3}"]
)
def test_yaml_of_other_editors(write, text):
    assert yaml.safe_load(printed("--config", write(text)))["steps"] == 3


INTEGER, NUMBER, BOOLEAN = (f"a valid {kind}" for kind in ("integer", "number", "boolean"))
FINITE = "a finite number"
ODD_VALUES = [  # name, what it should be, values as they are written
    ("steps", INTEGER, ["true", "many", "1e3", "0x10", "1:30", "[3]", "{a: 3}"]),
    ("steps", "greater than or equal to 1", ["0", "-7"]),
    ("steps", "less than or equal to 1000000000", ["1" + 30 * "0", 4000 * "9"]),
    ("batch_size", INTEGER, ["2.5", "null", "''"]),
    ("batch_size", "less than or equal to 1048576", ["2000000"]),
    ("seed", "less than 9223372036854775808", ["9223372036854775808"]),
    ("seed", "greater than or equal to 0", ["-1"]),
    ("learning_rate", NUMBER, [".inf", ".nan", "false", "2 000"]),
    ("learning_rate", FINITE, ["inf", "nan", "1e999"]),
    ("learning_rate", "greater than 0", ["-1"]),
    ("dropout", "less than 1", ["1"]),
    ("augment", BOOLEAN, ["perhaps"]),
    ("device", "'auto', 'cuda' or 'cpu'", ["tpu"]),
    ("init", "'tutorial' or 'he'", ["null"]),
    ("dataset_dir", "a valid string", ["''", "[a, b]"]),
]
CASES = [(name, text, said) for name, said, texts in ODD_VALUES for text in texts]


@pytest.mark.parametrize("name, text, said", CASES, ids=lambda text: text[:20])
def test_odd_values(write, name, text, said):
    """A short line says what the value should be, and what it is."""
    path = write(f"{name}: {text}\n")
    (line,) = problems("--config", path)
    lines = {line.removeprefix(f"{path}: ")}
    if text[0] not in "[{-'":
        (line,) = problems(f"--{name}", text)
        lines.add(line.removeprefix("--"))
    (line,) = lines
    shown = {"null": "None", "''": "None", "[3]": "['3']", "{a: 3}": "{'a': '3'}"}
    shown = shown.get(text, "['a', 'b']" if text == "[a, b]" else repr(text))
    shown = re.escape(shown) if len(text) < 25 else f"{shown[:10]}[0-9]*[.]{{3}}[0-9]*'"
    assert re.fullmatch(
        f"{name}: it should be {re.escape(said)}(, unable to .*)?, not {shown}", line
    )


def test_every_problem_of_file_and_command_line_is_reported(write):
    path = write('steps: many\nSTEPS: 3\ndropout: 2\nweights: he\nbatch_size: 7\nrun_dir: "a\\0"')
    lines = problems("--config", path, "--qqq", "x", "--zom=0.1", "--crop", 1)
    assert sorted(lines[:-1]) == [
        "--crop: it should be less than 1, not '1'",
        "--qqq: unknown setting; see --help",
        "--zom: unknown setting; did you mean zoom?",
        f"{path}: STEPS: unknown setting; did you mean steps?",
        f"{path}: dropout: it should be less than 1, not '2'",
        rf"{path}: run_dir: it should match pattern '^[^\x00]*$', not 'a\x00'",
        f"{path}: steps: it should be a valid integer, unable to parse string as an integer, not 'many'",
        f"{path}: weights: unknown setting; see --help",
    ]
    assert lines[-1] == "8 wrong settings; see --help"


ALIASES = "\n".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10))
ALIASES = f"a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n{ALIASES}\nsteps: *a9"  # 10^10 words in all
TWO_GIVEN = "steps, epochs: give one of them, so that the training ends"
BAD_FILES = [  # what is in a file, and how the line about it goes on after the file's name
    ("amp: true\ngraph: true\ndevice: cpu", ": amp: mixed precision requires a GPU, and device is"),
    ("config: other.yaml\n", ": config: unknown setting"),
    ("resume: true\n", ": resume: unknown setting"),
    ("<<: {steps: 3}\n", ": <<: unknown setting"),
    ("steps: [\n", " is not valid YAML: "),
    ("steps: 3\nsteps: 4\n", " is not valid YAML: the name 'steps' is there twice"),
    ("? [a]\n: 3\n", " is not valid YAML: "),
    ("&a steps: *b\n", " is not valid YAML: "),
    ("steps: &a [*a]\n", " is not valid YAML: "),
    ("steps:\t3\n", " is not valid YAML: "),
    ("steps: 3\n---\nseed: 1\n", " is not valid YAML: "),
    (1000 * "[", " is not valid YAML: "),
    (b"steps: \xff\n", " is not valid YAML: "),
    (b"steps: 3\n" + 2**20 * b"#", ": it is larger than 1,048,576 bytes"),
    ("", " contains no settings; expected lines such as `steps: 200`"),
    ("steps:3\n", " contains no settings"),
    ("- 5\n", " contains no settings"),
    ("5\n", " contains no settings"),
    ("steps:\n", TWO_GIVEN),
    (ALIASES, ": steps: it should be a valid integer"),
]


@pytest.mark.parametrize("text, said", BAD_FILES, ids=lambda text: text[:12])
def test_bad_config_file(write, text, said):
    path = write(text)
    *_, line = [line for line in problems("--config", path) if "wrong settings" not in line]
    assert line.removeprefix("cannot read ").removeprefix(str(path)).startswith(said), line


BAD_OPTIONS = {
    "--amp": "--amp: OneFlow has mixed precision in graphs only: give --graph too",
    "--steps null": TWO_GIVEN,
    "--step 3": "--step: unknown setting; did you mean steps?",
    "--batch-size 3": "--batch-size: unknown setting; did you mean batch_size?",
    "--steps": "argument --steps: expected one argument (--help lists the options)",
    "3": "unexpected argument '3' (--help lists the options)",
    "--config no.yaml": "cannot read no.yaml: No such file or directory",
    "--config /": "cannot read /: it is not a regular file",
    "--config /dev/zero": "cannot read /dev/zero: it is not a regular file",
    "--config=": "cannot read : No such file or directory",
}


@pytest.mark.parametrize("words", BAD_OPTIONS)
def test_bad_command_line(words):
    assert problems(*words.split()) == [BAD_OPTIONS[words]]
