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


@pytest.mark.parametrize(
    "folder", ["a #1: b", 'it\'s "x"', "数据 1", "[a]", "a\tb", "😀", "-x", "~"]
)
def test_any_folder_can_be_printed_and_read(write, folder):
    text = printed(f"--dataset_dir={folder}")
    assert yaml.safe_load(text)["dataset_dir"] == (folder if folder != "~" else None)
    assert printed("--config", write(text)) == text


def test_help_lists_every_setting_with_its_default():
    result = call("lenet_train", "--help")
    assert result.code == 0
    for name, value in yaml.safe_load(YAML.read_text()).items():
        default = "null" if value is None else str(value).lower()
        option = re.search(rf"^  --{name} .*?\(default:\s*(\S+)\)", result.out, re.M | re.S)
        assert option and option[1] == default, name


@pytest.mark.parametrize(
    "arguments, value",
    [
        (["--graph"], "true"),
        (["--graph", "--steps", "5"], "true"),
        (["--graph", "false"], "false"),
        (["--graph=True"], "true"),
        ([], "false"),
    ],
)
def test_a_switch_may_stand_alone(arguments, value):
    assert yaml.safe_load(printed(*arguments))["graph"] is (value == "true")


# -- values ------------------------------------------------------------------------------

VALUES = [  # name, as it is written, value
    ("learning_rate", "1e-3", 0.001),
    ("learning_rate", "1E-3", 0.001),
    ("learning_rate", ".5", 0.5),
    ("learning_rate", "1", 1.0),
    ("seed", "9223372036854775807", 2**63 - 1),
    ("seed", "+7", 7),
    ("steps", "null", None),
    ("steps", "~", None),
    ("eval_dataset_dir", "''", None),
    ("dataset_dir", "1e3", "1e3"),
    ("augment", "FALSE", False),
    ("schedule", "cosine", "cosine"),
]


@pytest.mark.parametrize("name, text, value", VALUES)
def test_values(write, name, text, value):
    more = "epochs: 1\n" if name == "steps" else ""
    settings = yaml.safe_load(printed("--config", write(f"{name}: {text}\n{more}")))
    assert settings[name] == value and type(settings[name]) is type(value)


INTEGER = "it should be a valid integer, not "
NUMBER = "it should be a valid number, not "
ODD_VALUES = [  # name, as it is written, what is said of it
    ("steps", "true", INTEGER + "'true'"),
    ("steps", "many", INTEGER + "'many'"),
    ("steps", "0", "it should be greater than or equal to 1, not 0"),
    ("steps", "1_000", INTEGER + "'1_000'"),
    ("steps", "1e3", INTEGER + "'1e3'"),
    ("steps", "0x10", INTEGER + "'0x10'"),
    ("steps", "1:30", INTEGER + "'1:30'"),
    ("steps", "[3]", INTEGER + "['3']"),
    ("steps", "{a: 3}", INTEGER + "{'a': '3'}"),
    ("steps", "1" + 30 * "0", INTEGER + "'1" + 30 * "0" + "'"),
    ("steps", 4000 * "9", INTEGER + "'99999"),
    ("batch_size", "2.5", INTEGER + "'2.5'"),
    ("batch_size", "null", INTEGER + "'null'"),
    ("batch_size", "''", INTEGER + "''"),
    ("batch_size", "2000000", "it should be less than or equal to 1048576, not 2000000"),
    ("seed", "9223372036854775808", "it should be less than 9223372036854775808, not"),
    ("seed", "-1", "it should be greater than or equal to 0, not -1"),
    ("learning_rate", ".inf", NUMBER + "'.inf'"),
    ("learning_rate", "inf", NUMBER + "'inf'"),
    ("learning_rate", "nan", NUMBER + "'nan'"),
    ("learning_rate", ".nan", NUMBER + "'.nan'"),
    ("learning_rate", "1e999", "it should be a finite number, not inf"),
    ("learning_rate", "-1", "it should be greater than 0, not -1.0"),
    ("learning_rate", "0." + 4000 * "1", NUMBER + "'0.11111"),
    ("learning_rate", "false", NUMBER + "'false'"),
    ("learning_rate", "2 000", NUMBER + "'2 000'"),
    ("dropout", "1", "it should be less than 1, not 1.0"),
    ("augment", "perhaps", "it should be a valid boolean, not 'perhaps'"),
    ("augment", "yes", "it should be a valid boolean, not 'yes'"),
    ("augment", "1", "it should be a valid boolean, not '1'"),
    ("device", "tpu", "it should be 'auto', 'cuda' or 'cpu', not 'tpu'"),
    ("init", "null", "it should be 'tutorial' or 'he', not 'null'"),
    ("dataset_dir", "''", "it should have at least 1 character, not ''"),
    ("dataset_dir", "[a, b]", "it should be a valid string, not ['a', 'b']"),
]


@pytest.mark.parametrize("name, text, said", ODD_VALUES, ids=lambda text: text[:20])
def test_odd_values(write, name, text, said):
    path = write(f"{name}: {text}\n")
    (line,) = problems("--config", path)
    assert line.startswith(f"{path}: {name}: {said}") and len(line) < 200 + len(str(path)), line
    if text[0] not in "[{-'":
        (line,) = problems(f"--{name}", text)
        assert line.startswith(f"--{name}: {said}"), line


def test_every_problem_of_file_and_command_line_is_reported(write):
    path = write("steps: many\nstepz: 3\ndropout: 2\nweights: he\nbatch_size: 7\n")
    lines = problems("--config", path, "--decoder", "x", "--picture=a.png", "--crop", 1)
    assert sorted(lines[:-1]) == [
        "--crop: it should be less than 1, not 1.0",
        "--decoder: unknown setting; it was removed, as it follows from the dataset",
        "--picture: unknown setting; it was removed: run_dir has loss.png and predictions.png",
        f"{path}: dropout: it should be less than 1, not 2.0",
        f"{path}: steps: it should be a valid integer, not 'many'",
        f"{path}: stepz: unknown setting; did you mean steps?",
        f"{path}: weights: unknown setting; it is named init now",
    ]
    assert lines[-1] == "7 wrong settings; see --help"


@pytest.mark.parametrize("name", ["image_feature", "label_feature"])
def test_settings_of_earlier_versions(name):
    text = f"--{name}: unknown setting; it is an option of `python -m ofrecord index` now"
    assert problems(f"--{name}", "x") == [text]


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
    (tmp_path / "bytes.yaml").write_bytes(b"steps: \xff\n")
    assert_one_error(call("lenet_train", "--config", tmp_path / "bytes.yaml"), "is not valid YAML")


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--step", "3"], "--step: unknown setting; did you mean steps?"),
        (["--steps"], "argument --steps: expected one argument"),
        (["3"], "unexpected argument '3'"),
    ],
)
def test_bad_command_line(arguments, said):
    assert_one_error(call("lenet_train", *arguments), said)


def test_a_value_that_would_take_hours_to_print(write):
    """As aliases make it: a list of lists of lists …, 10^10 words in all."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    result = call("lenet_train", "--config", write("\n".join([*lines, "steps: *a9"])))
    assert result.code == 2 and "steps: it should be" in result.err, result
