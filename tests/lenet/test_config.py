"""The training's settings: from where they come, which values they take, what is said of others."""

import re

import pytest
import yaml
from helpers import PROJECT, assert_one_error, call, losses, train

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
        (tmp_path / "mine.yaml").write_text(text)
        return tmp_path / "mine.yaml"

    return write


# -- where they come from ----------------------------------------------------------------


def test_the_yaml_file_is_what_print_config_prints():
    assert printed() == YAML.read_text()
    assert printed("--config", YAML) == YAML.read_text()


def test_every_setting_in_the_yaml_file_has_a_comment():
    for line in YAML.read_text().splitlines():
        assert line.startswith("#") or re.match(r"\w+: \S+ +# \S", line), line


def test_configuration_from_file_and_command_line(converted, write, tmp_path):
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


def test_help_lists_every_setting_with_its_default():
    result = call("lenet_train", "--help")
    assert result.code == 0
    for name, value in yaml.safe_load(YAML.read_text()).items():
        default = "null" if value is None else str(value).lower()
        option = re.search(rf"^  --{name} .*?\(default:\s*(\S+)\)", result.out, re.M | re.S)
        assert option and option[1] == default, name


def test_a_switch_may_stand_alone():
    for words in (["--graph"], ["--graph", "--steps", "5"], ["--graph=True"], ["--graph", "false"]):
        assert yaml.safe_load(printed(*words))["graph"] is (words[-1] != "false")


# -- values ------------------------------------------------------------------------------

VALUES = {  # name: {as it is written: value}
    "learning_rate": {"1e-3": 0.001, "1E-3": 0.001, ".5": 0.5, "1": 1.0},
    "seed": {"9223372036854775807": 2**63 - 1, "+7": 7},
    "steps": {"null": None, "~": None},
    "run_dir": {"null": None, "''": None},
    "dataset_dir": {"1e3": "1e3"},
    "augment": {"FALSE": False, "yes": True},
    "schedule": {"cosine": "cosine"},
}


@pytest.mark.parametrize("name", VALUES)
def test_values(write, name):
    """The same in a file and on the command line."""
    more = "epochs: 1\n" if name == "steps" else ""
    for text, value in VALUES[name].items():
        of_file = printed("--config", write(f"{name}: {text}\n{more}"))
        settings = yaml.safe_load(of_file)
        assert settings[name] == value and type(settings[name]) is type(value)
        words = ["--epochs", 1] if more else []
        assert printed(f"--{name}", text.strip("'"), *words) == of_file


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
    path = write("steps: many\nstepz: 3\ndropout: 2\nweights: he\nbatch_size: 7\n")
    lines = problems("--config", path, "--qqq", "x", "--zom=0.1", "--crop", 1)
    assert sorted(lines[:-1]) == [
        "--crop: it should be less than 1, not '1'",
        "--qqq: unknown setting; see --help",
        "--zom: unknown setting; did you mean zoom?",
        f"{path}: dropout: it should be less than 1, not '2'",
        f"{path}: steps: it should be a valid integer, unable to parse string as an integer, not 'many'",
        f"{path}: stepz: unknown setting; did you mean steps?",
        f"{path}: weights: unknown setting; see --help",
    ]
    assert lines[-1] == "7 wrong settings; see --help"


def test_settings_that_do_not_go_together(write):
    assert problems("--amp") == [
        "--amp: OneFlow has mixed precision in graphs only: give --graph too"
    ]
    path = write("amp: true\ngraph: true\ndevice: cpu\n")
    assert problems("--config", path) == [
        f"{path}: amp: mixed precision requires a GPU, and device is cpu"
    ]
    assert problems("--steps", "null") == [
        "steps, epochs: give one of them, so that the training ends"
    ]


@pytest.mark.parametrize(
    "text, said",
    [
        ("stepz: 3\n", ": stepz: unknown setting; did you mean steps?"),
        ("config: other.yaml\n", ": config: unknown setting"),
        ("resume: true\n", ": resume: unknown setting"),
        ("steps: [\n", " is not valid YAML: "),
        ("steps: 3\nsteps: 4\n", " is not valid YAML: the name 'steps' is there twice"),
        ("? [a]\n: 3\n", " is not valid YAML: "),
        ("&a steps: *b\n", " is not valid YAML: "),
        (1000 * "[", " is not valid YAML: "),
        ("", " contains no settings; expected lines such as `steps: 200`"),
        ("steps:\n", "steps, epochs: give one of them"),
        ("- 5\n", " contains no settings"),
        ("5\n", " contains no settings"),
    ],
    ids=lambda text: text[:12],
)
def test_bad_config_file(write, text, said):
    path = write(text)
    (line,) = problems("--config", path)
    assert line.removeprefix(str(path)).startswith(said), line


def test_config_files_that_cannot_be_read(tmp_path):
    assert_one_error(call("lenet_train", "--config", tmp_path / "no.yaml"), "no.yaml: No such file")
    assert_one_error(call("lenet_train", "--config", tmp_path), f"cannot read {tmp_path}: ")
    assert_one_error(call("lenet_train", "--config", "/dev/zero"), "cannot read /dev/zero: ")
    (tmp_path / "large.yaml").write_bytes(b"steps: 3\n" + 2**20 * b"#")
    assert_one_error(call("lenet_train", "--config", tmp_path / "large.yaml"), "large.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"steps: \xff\n")
    assert_one_error(call("lenet_train", "--config", tmp_path / "bytes.yaml"), "is not valid YAML")


def test_bad_command_line():
    texts = {
        "--step 3": "--step: unknown setting; did you mean steps?",
        "--steps": "argument --steps: expected one argument",
        "3": "unexpected argument '3'",
    }
    for words, text in texts.items():
        assert_one_error(call("lenet_train", *words.split()), text)


def test_a_value_that_would_take_hours_to_print(write):
    """As aliases make it: a list of lists of lists …, 10^10 words in all."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    result = call("lenet_train", "--config", write("\n".join([*lines, "steps: *a9"])))
    assert result.code == 2 and "steps: it should be" in result.err, result
