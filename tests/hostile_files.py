"""Hostile changes of a file: of its bytes, of its place, and of one value, key or tensor of the document in it."""

from __future__ import annotations

import json
import pickle
import random
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import yaml

from fastweights.training import checkpoint

SENTINEL = "from pathlib import Path\nPath(__file__).with_name('marker').touch()\nclass Class: pass\n"
CODE = ("hostile_sentinel:Class", "hostile_sentinel.py:Class", {"type": "hostile_sentinel:Class"},
        {"type": "gymnasium", "environment": "hostile_sentinel:Foo-v0"})  # fmt: skip
ODD = (None, True, -1, 0, 1, 3, 10**9, 10**18, 10**30, -(10**18), 0.5, 1e308, float("nan"), float("inf"), "", "x", "é",
       "../../x", "/", "os:system", "[red]", "{0.__class__}", "\0", [], [1], ["x", None], {}, {"": {}},
       json.loads("[" * 50 + "]" * 50), "!!python/object/apply:hostile_sentinel.Class []",
       "!!python/name:hostile_sentinel.Class")  # fmt: skip


class Import:
    """Imports the sentinel where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return import_module, ("hostile_sentinel",)


def dump_yaml(path: Path, document: Any) -> None:
    """Write YAML in which the odd tags are tags."""
    path.write_text(re.sub("'(!!python[^']*)'", r"\1", yaml.safe_dump(document)), encoding="utf-8")


def _dump_lines(path: Path, document: Any) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in document))


FORMATS = {
    ".yaml": (lambda path: yaml.safe_load(path.read_text()), dump_yaml),
    ".json": (lambda path: json.loads(path.read_text()), lambda path, document: path.write_text(json.dumps(document))),
    ".jsonl": (lambda path: [json.loads(line) for line in path.read_text().splitlines()], _dump_lines),
    ".safetensors": (lambda path: list(checkpoint.load(path)), lambda path, parts: checkpoint.save(path, *parts)),
}
BYTES = {
    "empty": lambda content, rng: b"",
    "truncate": lambda content, rng: content[: rng.randrange(len(content) + 1)],
    "flip": lambda content, rng: bytes(
        byte ^ (1 << rng.randrange(8) if number == at else 0)
        for at in [rng.randrange(len(content) or 1)]
        for number, byte in enumerate(content)
    ),
    "random": lambda content, rng: rng.randbytes(300),
    "latin-1": lambda content, rng: "a: é\n1 Où?\tà\t1\n".encode("latin-1"),
    "nested": lambda content, rng: b"[" * 50_000,
    "pickle": lambda content, rng: pickle.dumps(Import()),
    "twice": lambda content, rng: content * 2,
    "null": lambda content, rng: b"null\n",
}
PLACES = {
    "removed": lambda path: None,
    "directory": lambda path: path.mkdir(),
    "loop": lambda path: path.symlink_to(path.name),
    "dangling": lambda path: path.symlink_to("nowhere"),
}
TENSORS = {
    "shape": lambda tensors, name: {name: tensors[name].flatten()[:1].repeat(3, 2)},
    "size": lambda tensors, name: {name: tensors[name].reshape(-1)},
    "kind": lambda tensors, name: {name: tensors[name].to(torch.int64)},
    "precision": lambda tensors, name: {name: tensors[name].half()},
    "nan": lambda tensors, name: {name: torch.full_like(tensors[name].float(), float("nan"))},
    "new": lambda tensors, name: {f"{name}/x": torch.ones(1), "x": torch.ones(2), "../x": torch.ones(1)},
    "empty": lambda tensors, name: {name: torch.zeros(0)},
}


def mutate(path: Path, rng: random.Random) -> str:
    """Change a file in some way, and say which."""
    ways = [BYTES, PLACES] if path.suffix not in FORMATS else [BYTES, PLACES, FORMATS, FORMATS, FORMATS]
    ways = rng.choice(ways)
    if ways is FORMATS:
        read, write = FORMATS[path.suffix]
        document = read(path)
        what = change(document, rng, (*ODD, *(() if path.name == "recipe.yaml" else CODE * 3)))
        write(path, document)
        return what
    name = rng.choice([*ways])
    if ways is BYTES:
        path.write_bytes(BYTES[name](path.read_bytes(), rng))
    else:
        path.unlink()
        PLACES[name](path)
    return name


def change(document: Any, rng: random.Random, odd: tuple[Any, ...]) -> str:
    """Change one value, key or tensor of a document in place, and say how."""
    container, key = rng.choice([*places(document)])
    if isinstance(container[key], torch.Tensor):
        how = rng.choice([*TENSORS])
        container.update(TENSORS[how](container, key))
        return f"{key} {how}"
    if rng.random() < 0.15:
        del container[key]
        return f"without {key}"
    key = "odd" if isinstance(container, dict) and rng.random() < 0.1 else key
    container[key] = rng.choice(odd)
    return f"{key} = {str(container[key])[:60]}"


def places(document: Any) -> Iterator[tuple[Any, Any]]:
    """Every value in a document, as its container and its key there; tensors and metadata are no values themselves."""
    pairs = document.items() if isinstance(document, dict) else enumerate(document)
    for key, inner in pairs:
        if not (isinstance(document, list) and isinstance(inner, dict) and len(document) == 2):
            yield document, key
        if isinstance(inner, dict | list):
            yield from places(inner)
