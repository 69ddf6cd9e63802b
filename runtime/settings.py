"""Settings of both scripts, and JSON files that may come from strangers, as pydantic models.

From a field of a model, with its type, range, default and help, follow an option ``--name value``
of the command line, a line ``name: value`` in a YAML file, and the check of both.
"""

import difflib
import json
import re
import reprlib
from argparse import SUPPRESS
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .atomic import read_small_file
from .cli import ArgumentParser, InputError, InputErrors, count, one_line, os_errors

# Bounds that no honest value reaches, so that no number is too large to compute with.
Count = Annotated[int, Field(ge=0, le=2**50)]
LONGEST_NAME = 4096  # characters
Name = Annotated[str, Field(min_length=1, max_length=LONGEST_NAME, pattern=r"^[^\x00]*$")]

MAX_YAML_BYTES = 2**20
NULLS = "null", "~", ""  # None in YAML files and on command lines


class StrictModel(BaseModel):
    """A model that takes no value of another type, no unknown name, no NaN and no infinity."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True)


def setting(default: Any, help: str, metavar: str | None = None, **limits: Any) -> Any:
    """A field of a model of settings; ``metavar`` stands for its value in --help."""
    return Field(default, description=help, json_schema_extra={"metavar": metavar}, **limits)


Model = TypeVar("Model", bound=BaseModel)


def load_json(text: str | bytes) -> Any:
    """Return a JSON text's value. Raises ValueError."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def validate(model: type[Model], fields: Any) -> Model:
    """Return a model of these fields. Raises ValueError, with the first problem in one line."""
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise ValueError(problems_of(error)[0]) from None


def problems_of(error: ValidationError) -> list[str]:
    """Return a line for each problem: the field, what is wrong with it, and its value."""
    lines = []
    for problem in error.errors(include_url=False):
        name = ".".join(map(str, problem["loc"]))
        message = re.sub("^.* should ", "it should ", problem["msg"].removeprefix("Value error, "))
        if message.startswith("it should "):
            value = reprlib.repr(problem["input"])  # of lists a part: all of it may have no end
            message += f", not {value if len(value) < 60 else value[:57] + '...'}"
        lines += [f"{name}: {line}" if name else line for line in message.splitlines()]
    return lines


# Settings from one place: what a message about one begins with, before its name; texts by name.
Layer = tuple[str, dict[str, str]]


def given_options(
    parser: ArgumentParser, model: type[BaseModel], arguments: list[str] | None = None
) -> Layer:
    """Return the options that a command line gives, unknown ones too.

    ``parser`` gets an option ``--name`` for each field of ``model``, and may have others
    of its own. Raises InputError for an option without its value, or an empty one.
    """
    for name, field in model.model_fields.items():
        choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
        parser.add_argument(
            f"--{name}",
            default=SUPPRESS,
            metavar="|".join(choices) or field.json_schema_extra["metavar"],
            help=f"{field.description} (default: {text_of(field.default)})".replace("%", "%%"),
            **({"nargs": "?", "const": "true"} if field.annotation is bool else {}),
        )
    given, unknown = parser.parse_known_args(arguments)
    more = {word.partition("=")[0].lstrip("-"): "" for word in unknown if word.startswith("-")}
    if unknown and not more:
        parser.error(f"unexpected argument {unknown[0]!r}")
    for name, text in vars(given).items():
        if text in ("", [""]):
            parser.error(f"--{name} is empty, such as a variable that is not set")
    return "--", {**vars(given), **more}


def parse_settings(model: type[Model], layers: list[Layer]) -> Model:
    """Return the model of several layers of settings, of which the later ones win.

    Raises InputErrors with all wrong values, or else with all that does not go together.
    """
    problems, values, origins = [], {}, {}
    for origin, settings in layers:
        for name, text in settings.items():
            if name in model.model_fields:
                # In YAML and on the command line null is None: `--epochs null`.
                values[name] = None if text in NULLS else text
                origins[name] = origin
            else:
                close = difflib.get_close_matches(name.lower(), model.model_fields, n=1)
                hint = f"did you mean {close[0]}?" if close else "see --help"
                problems.append(f"{origin}{name}: unknown setting; {hint}")
    try:
        parsed = model.model_validate(values, strict=False)  # pydantic converts the texts
    except ValidationError as error:
        problems += [origins.get(line.split(":")[0], "") + line for line in problems_of(error)]
    if problems:
        raise InputErrors(problems, f"{count(len(problems), 'wrong setting')}; see --help")
    return parsed


def text_of(value: Any) -> str:
    """Return a setting's value as YAML and the command line have it."""
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def read_yaml(path: str) -> dict[str, str]:
    """Return a YAML file's settings, {name: text}. Raises InputError."""
    try:
        with os_errors("read", path):
            settings = yaml.load(read_small_file(path, MAX_YAML_BYTES), Loader=_TextLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = one_line(" ".join(str(error).split()))
        raise InputError(f"{path} is not valid YAML: {reason}") from None
    if not isinstance(settings, dict) or not settings:
        raise InputError(f"{path} contains no settings; expected lines such as `steps: 200`")
    return settings


class _TextLoader(yaml.BaseLoader):
    """Leaves every value as the text that is written: pydantic alone decides on types."""

    def construct_mapping(self, node, deep=False):
        names = [key.value for key, _ in node.value]
        for name in names:
            if names.count(name) > 1:
                raise yaml.YAMLError(f"the name {name!r} is there twice")
        return super().construct_mapping(node, deep)


def to_yaml(model: BaseModel, title: str, leave_out: tuple[str, ...] = ()) -> str:
    """Return a model's values as a YAML file, each with its help as a comment."""
    lines = {
        name: yaml.safe_dump({name: value}, width=MAX_YAML_BYTES, allow_unicode=True).strip()
        for name, value in model
        if name not in leave_out
    }
    width = max(map(len, lines.values()))
    fields = type(model).model_fields
    body = [f"{line:{width}}  # {fields[name].description}" for name, line in lines.items()]
    return "\n".join([f"# {one_line(line)}" for line in title.split("\n")] + body) + "\n"
