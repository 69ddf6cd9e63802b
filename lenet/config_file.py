"""Settings as YAML files: read, with every value as it is written, and written with comments."""

import re

import yaml
from pydantic import BaseModel

from ofrecord.settings import text_of
from runtime.atomic import read_small_file
from runtime.cli import InputError, one_line


def read_yaml(path: str) -> dict[str, str]:
    """Return a YAML file's settings, {name: text}. Raises InputError."""
    try:
        settings = yaml.load(read_small_file(path, 2**20), Loader=_Loader)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path} is not valid YAML: {one_line(' '.join(str(error).split()))}"
        ) from None
    if not isinstance(settings, dict) or not settings:
        raise InputError(f"{path} contains no settings; expected lines such as `steps: 200`")
    return settings


class _Loader(yaml.BaseLoader):
    """Leaves every value as the text that is written: parse_settings alone decides on types."""

    def construct_mapping(self, node, deep=False):
        names = [key.value for key, _ in node.value]
        for name in names:
            if names.count(name) > 1:
                raise yaml.YAMLError(f"the name {name!r} is there twice")
        return super().construct_mapping(node, deep)


def to_yaml(model: BaseModel, title: str) -> str:
    """Return a model's values as a YAML file, each with its help as a comment."""
    lines = {name: f"{name}: {_quoted(text_of(value))}" for name, value in model}
    width = max(map(len, lines.values()))
    fields = type(model).model_fields
    body = [f"{line:{width}}  # {fields[name].description}" for name, line in lines.items()]
    return "\n".join([f"# {line}" for line in title.splitlines()] + body) + "\n"


def _quoted(text: str) -> str:
    """A text as it can stand in a YAML file."""
    if re.fullmatch(r"[\w./~+-]+", text):
        return text
    return yaml.dump(text, default_style='"', width=10**6).strip()
