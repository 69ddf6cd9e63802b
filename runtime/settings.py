"""Settings, and files that may come from strangers, described once by pydantic models.

A model's fields carry type, range, default and help. Options of the command
line, YAML files and JSON files are checked against them strictly, and every
problem is reported, a line each.
"""

import difflib
import json
import re
import reprlib
from argparse import SUPPRESS
from types import NoneType
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .cli import ArgumentParser, InputErrors, count

# Bounds that no honest value reaches, so that no number is too large to compute with.
Count = Annotated[int, Field(ge=0, le=2**50)]
Name = Annotated[str, Field(min_length=1, max_length=4096)]


class StrictModel(BaseModel):
    """A model that takes no value of another type, no unknown name, no NaN and no infinity."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True)


Model = TypeVar("Model", bound=BaseModel)


# -- JSON ---------------------------------------------------------------------------


def load_json(text: str | bytes) -> Any:
    """Return a JSON text's value. Raises ValueError, for a key that is there twice too."""
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def validate(model: type[Model], fields: Any) -> Model:
    """Return a model of these fields. Raises ValueError, with the first problem in one line."""
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise ValueError(problems_of(error)[0]) from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("it has the same key twice")
    return values


def problems_of(error: ValidationError) -> list[str]:
    """Return a line for each problem: the field, what is wrong with it, and its value."""
    lines = []
    for problem in error.errors(include_url=False):
        name = ".".join(map(str, problem["loc"]))
        message = re.sub("^.* should ", "it should ", problem["msg"].removeprefix("Value error, "))
        if message.startswith("it should "):
            value = problem["input"]
            # Of what is not a single value a part: all of it may take hours to print.
            value = (
                repr(value) if isinstance(value, str | int | float | None) else reprlib.repr(value)
            )
            message += f", not {value if len(value) < 60 else value[:57] + '...'}"
        lines += [f"{name}: {line}" if name else line for line in message.splitlines()]
    return lines


# -- command line and YAML ------------------------------------------------------------


class Layer(NamedTuple):
    """Settings from one place."""

    origin: str  # what a message about one of them begins with, before its name
    settings: dict[str, str]  # by name, as text


def given_options(
    parser: ArgumentParser, model: type[BaseModel], arguments: list[str] | None = None
) -> Layer:
    """Return the options that a command line gives.

    ``parser`` gets an option ``--name`` for each field of ``model``, and may have others
    of its own. Raises InputError for an option without its value.
    """
    for name, field in model.model_fields.items():
        choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
        metavar = "|".join(choices) or (field.json_schema_extra or {}).get("metavar")
        parser.add_argument(
            f"--{name}",
            default=SUPPRESS,
            metavar=metavar or name.upper(),
            help=f"{field.description} (default: {text_of(field.default)})".replace("%", "%%"),
            **({"nargs": "?", "const": "true"} if field.annotation is bool else {}),
        )
    given, unknown = parser.parse_known_args(arguments)
    more = {word.partition("=")[0]: "" for word in unknown if word.startswith("-")}
    if unknown and not more:
        parser.error(f"unexpected argument {unknown[0]!r}")
    return Layer("--", {**vars(given), **{name.lstrip("-"): "" for name in more}})


def parse_settings(model: type[Model], layers: list[Layer], renamed: dict[str, str]) -> Model:
    """Return the model of several layers of settings, of which the later ones win.

    ``renamed`` maps names of earlier versions to what has replaced them. Raises InputErrors
    with every problem.
    """
    problems, values, origins = [], {}, {}
    for origin, settings in layers:
        for name, text in settings.items():
            field = model.model_fields.get(name)
            if field is None:
                close = difflib.get_close_matches(name, model.model_fields, n=1)
                hint = f"did you mean {close[0]}?" if close else "see --help"
                problems.append(f"{origin}{name}: unknown setting; {renamed.get(name, hint)}")
            else:
                values[name], origins[name] = _value_of(text, field.annotation), origin
    try:
        parsed = model.model_validate(values)
    except ValidationError as error:
        problems += [origins.get(line.split(":")[0], "") + line for line in problems_of(error)]
    if problems:
        raise InputErrors(problems, f"{count(len(problems), 'wrong setting')}; see --help")
    return parsed


INTEGER = re.compile(r"[+-]?[0-9]{1,19}")
NUMBER = re.compile(r"[+-]?([0-9]{1,19}\.?[0-9]{0,19}|\.[0-9]{1,19})([eE][+-]?[0-9]{1,3})?")


def _value_of(text: Any, annotation: Any) -> Any:
    """A setting's text as the type that its field has; what is not of that type stays text."""
    types = get_args(annotation) or (annotation,)  # (int, NoneType) of ``int | None``
    if not isinstance(text, str):
        return text
    if NoneType in types and text in ("", "~", "null"):
        return None
    if bool in types and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if int in types and INTEGER.fullmatch(text):
        return int(text)
    if float in types and NUMBER.fullmatch(text):
        return float(text)
    return text


def text_of(value: Any) -> str:
    """Return a setting's value as YAML and the command line have it."""
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)
