"""YAML as recipes use it: YAML 1.2's numbers, no duplicate keys, no anchors."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from fastweights.errors import UserError


class _Loader(yaml.SafeLoader):
    """Reads 1e-3 as a number, and refuses a key that is there twice."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            event = self.peek_event()
            raise yaml.composer.ComposerError(None, None, "anchors are not for recipes", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for key, number in zip(node.value, range(len(keys)), strict=True):
            if keys[number] in keys[:number]:
                mark = key[0].start_mark
                raise yaml.constructor.ConstructorError(None, None, f'the key "{keys[number]}" is there twice', mark)
        return super().construct_mapping(node, deep)


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
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}); a recipe is a text file in UTF-8.") from error
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
        return yaml.load(text, Loader=_Loader)  # a SafeLoader
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{where} cannot be read: {' '.join(str(error).split())}.") from error
