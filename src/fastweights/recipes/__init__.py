"""Recipes: the hyperparameters of a training, one YAML file for each row of a results table."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from fastweights import specs
from fastweights.cores import CORES
from fastweights.errors import UserError, nearest
from fastweights.objectives import OBJECTIVES
from fastweights.recipes.assembly import Assembly, assemble, load_interface, parts_of, size
from fastweights.recipes.memory import model_size
from fastweights.recipes.options import EarlyStopping, Recipe, TrainingOptions, WeightAverage
from fastweights.recipes.yaml import parse, read
from fastweights.tasks import TASKS

__all__ = [
    "Assembly", "EarlyStopping", "Recipe", "TrainingOptions", "WeightAverage", "assemble", "explain",
    "known_keys", "load", "load_interface", "model_size", "names", "path", "size",
    "with_more_steps",
]  # fmt: skip


def names() -> list[str]:
    """The names of the shipped recipes.

    >>> "catbabi-qa/fwm" in names()
    True
    """
    root = resources.files(__package__)
    return sorted(
        f"{folder.name}/{file.name.removesuffix('.yaml')}"
        for folder in root.iterdir()
        if folder.is_dir()
        for file in folder.iterdir()
        if file.name.endswith(".yaml")
    )


def path(name: str) -> Path:
    """The file of a shipped recipe, or of one of the user's own (a path that ends in .yaml).

    Raises:
        UserError: where there is no such recipe.
    """
    if name.endswith((".yaml", ".yml")):
        if not Path(name).is_file():
            raise UserError(f"There is no recipe file {name}; check the path.")
        return Path(name)
    if name not in names():
        raise UserError(f'There is no recipe "{name}"{nearest(name, names()) or "."} See `fastweights recipes`.')
    return Path(str(resources.files(__package__) / f"{name}.yaml"))


def load(source: str | Mapping[str, Any], overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and check it, with overrides as on the command line.

    >>> load("catbabi-qa/fwm", ["--training.steps=10", "--model.core.memory_size=16"]).training.steps
    10

    Args:
        source: a recipe's name, the path of a YAML file, or the recipe as a (nested) dictionary.
        overrides: dotted keys with values in YAML, such as "--training.steps=10".

    Raises:
        UserError: where a key does not exist or a value is of the wrong kind.
    """
    values = read(path(source)) if isinstance(source, str) else source
    for override in overrides:
        values = _override(values, override)
    return specs.from_dict(Recipe, values)


def _override(values: Any, override: str) -> dict[str, Any]:
    """The values with one dotted key replaced; a part that was its type alone gets options beside it."""
    key, equals, text = override.removeprefix("--").partition("=")
    if not (override.startswith("--") and equals and key):
        raise UserError(f'"{override}" is no setting; write for example --training.steps=1000.')
    changed = place = dict(values)
    *folders, last = key.split(".")
    for folder in folders:
        inner = place.get(folder)
        if not isinstance(inner, str | Mapping | None):
            raise UserError(f"{folder} is {inner!r}, which has no {last}; it must be a mapping of keys to values.")
        place[folder] = {"type": inner} if isinstance(inner, str) else dict(inner or {})
        place = place[folder]
    place[last] = parse(text, f"--{key}")
    return changed


def with_more_steps(recipe: Recipe, steps: int) -> Recipe:
    """The recipe with more steps, with which its run can resume.

    >>> with_more_steps(load("catbabi-qa/fwm"), 60_000).training.steps
    60000

    Raises:
        UserError: where these are fewer steps, or the schedule ends at the last one.
    """
    training = recipe.training
    if steps < training.steps:
        raise UserError(f"The run has {training.steps:,} steps; give more than that, not {steps:,}, or leave it out.")
    if steps > training.steps and training.schedule != "constant":
        raise UserError(
            f"The run's learning rate falls to 0 at step {training.steps:,}, so it cannot go on to step {steps:,}; "
            f"start another run with --training.steps {steps} and another --out."
        )
    return load(_override(recipe.to_dict(), f"--training.steps={steps}"))


def known_keys() -> list[str]:
    """Every key of a recipe, dotted, with the options of all shipped parts."""
    keys = [
        *specs.keys_of(Recipe),
        *(f"{key}.type" for key in ("task", "model.core", "objective", "training.optimizer")),
    ]
    for where, registry, skip in (("task", TASKS, 0), ("model.core", CORES, 1), ("objective", OBJECTIVES, 0)):
        keys += [f"{where}.{key}" for part in registry.entries.values() for key in specs.options_of(part, skip)]
    for objective in OBJECTIVES.entries.values():
        keys += [f"model.{key}" for key in specs.options_of(objective.model_builder) if f"{key}:" not in _SIZES]
    return list(dict.fromkeys(keys))


_SIZES = ("vocabulary_size:", "observation_size:", "num_actions:", "input_size:")  # from the interface


def explain(recipe: Recipe) -> str:
    """The meaning of each value of a recipe, from the docstrings of its parts."""
    task, objective, core = parts_of(recipe)
    parts: dict[str, Any] = {"task": task, "objective": objective, "model": objective.model_builder, "core": core}
    sections = {f"{kind} ({part.__name__})": _arguments(part) for kind, part in parts.items()}
    sections["training"] = "\n".join(_fields(TrainingOptions))
    return "\n\n".join(f"{title}:\n{text or '    no options'}" for title, text in sections.items())


def _fields(cls: type, prefix: str = "") -> list[str]:
    """Each field of a dataclass with its default and its docstring, nested ones with a dotted name."""
    texts = dict(re.findall(r'^    (\w+): .+\n    """(.+)"""', inspect.getsource(cls), re.MULTILINE))
    lines = []
    for name, hint in typing.get_type_hints(cls).items():
        nested, default = specs.dataclass_in(hint), getattr(cls(), name)
        shown = "" if nested and default is not None else f" (default: {'null' if default is None else default})"
        lines.append(f"    {prefix}{name}: {texts[name]}{shown}")
        lines += _fields(nested, f"{prefix}{name}.") if nested else []
    return lines


def _arguments(builder: Any) -> str:
    """The Args section of a docstring, without what the interface gives."""
    text = (inspect.getdoc(builder) or "").partition("Args:\n")[2].partition("\n\n")[0]
    return "\n".join(line for line in text.splitlines() if not line.strip().startswith(_SIZES))
