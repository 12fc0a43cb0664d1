"""YAML as recipes use it: YAML 1.2's numbers, no duplicate keys, no anchors, no tags."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from fastweights.errors import UserError

LARGEST_FILE = 100_000  # bytes; a recipe takes some hundred
LONGEST_NUMBER = 100  # characters


class _Loader(yaml.SafeLoader):
    """Reads 1e-3 as a number, and refuses a key that is there twice."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.events.AliasEvent) or getattr(event, "tag", None) is not None:
            what = "anchors" if isinstance(event, yaml.events.AliasEvent) else f"tags such as {event.tag}"
            raise yaml.composer.ComposerError(None, None, f"{what} are not for recipes", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for key, number in zip(node.value, range(len(keys)), strict=True):
            if keys[number] in keys[:number]:
                mark = key[0].start_mark
                raise yaml.constructor.ConstructorError(None, None, f'the key "{keys[number]}" is there twice', mark)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: Any) -> int:
        if len(node.value) > LONGEST_NUMBER:
            raise yaml.constructor.ConstructorError(None, None, "the number is too long", node.start_mark)
        return super().construct_yaml_int(node)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?$"),
    list("-+0123456789."),
)


def read(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds.

    Raises:
        UserError: where it cannot be read, or holds something else.
    """
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; check the path.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} cannot be read, as it is not in UTF-8; save it as a text file in UTF-8.") from error
    if len(content) > LARGEST_FILE:
        raise UserError(f"{path} has more than {LARGEST_FILE:,} bytes, so it is no recipe; check the path.")
    values = parse(text, str(path))
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no recipe; it must be a mapping such as `task: {{type: catbabi}}`.")
    return values


def parse(text: str, where: str) -> Any:
    """The value of a text in YAML.

    Raises:
        UserError: naming `where` it stands.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        what, mark = " ".join(filter(None, (error.context, error.problem))), error.problem_mark
        place = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise UserError(f"{where} cannot be read: {what}{place}.") from error
    except RecursionError as error:
        raise UserError(f"{where} cannot be read: it is nested too deeply.") from error
    except yaml.reader.ReaderError as error:
        raise UserError(f"{where} cannot be read: it holds a character that is no text.") from error
    except (ArithmeticError, ValueError) as error:
        raise UserError(f"{where} cannot be read: it holds a number, date or character that does not exist.") from error
