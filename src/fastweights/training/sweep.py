"""Many runs: recipes × settings × seeds, each in a run folder of its own.

All state of a sweep is in its run folders: the same command resumes it, and any number of processes that give the same
command, on any machines with the folder on a shared filesystem, divide the runs among them. A search (`search.py`) is
made of the same points and run folders, `build` and `train`; what it adds is a record of results, from which it
decides what is trained next.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from fastweights import recipes
from fastweights.errors import UserError
from fastweights.recipes import Assembly, Recipe
from fastweights.training import checkpoint
from fastweights.training.checkpoint import write_atomically
from fastweights.training.loop import Observer, Trainer, run_config
from fastweights.training.optimization import Optimization
from fastweights.training.runs import InUse, RunFolder
from fastweights.training.trained import load_model

SEED = "training.seed"
LONGEST_NAME = 100  # characters of a folder's name, of the 255 bytes that file systems allow


class Point(NamedTuple):
    """One run of a sweep: a recipe's name, the settings in which it differs from others, and the whole recipe."""

    name: str
    settings: dict[str, str]
    recipe: Recipe

    def path(self, folder: Path) -> Path:
        """Where its run folder is: `folder/art/fw-lstm/pairs=8,seed=0`."""
        text = ",".join(f"{key.rpartition('.')[2]}={value}" for key, value in self.settings.items())
        return folder / self.name / folder_name(text or "run", json.dumps(self.settings))


def folder_name(text: str, identity: str) -> str:
    """The text where it is a short name; else its beginning, without what means something in a path, and a digest.

    >>> folder_name("pairs=8,seed=0", ""), folder_name("x=../../y", '{"x": "../../y"}')
    ('pairs=8,seed=0', 'x=_y-a15853a41f08')
    """
    plain = "[A-Za-z0-9_=,+-]+"
    if len(text) <= LONGEST_NAME and re.fullmatch(rf"{plain}(\.{plain})*", text):
        return text
    words = "_".join(re.findall(plain, text))
    return f"{words[:LONGEST_NAME]}-{hashlib.sha256(identity.encode(errors='replace')).hexdigest()[:12]}"


def points(names: Sequence[str], over: Sequence[str], overrides: Sequence[str]) -> list[Point]:
    """Every recipe with every combination of the values in `over`, `["task.pairs=8,16", "training.seed=0,1"]`.

    Raises:
        UserError: where a recipe or a key does not exist, a run is there twice, or a setting replaces another one.
    """
    axes = read_axes(over, overrides)
    found = [
        point(name, name, dict(zip(axes, values, strict=True)), overrides)
        for name, values in itertools.product(names, itertools.product(*axes.values()))
    ]
    refuse_duplicates(found)
    return found


def refuse_duplicates(found: Sequence[Point]) -> None:
    """Refuse runs of which two are the same or have one folder.

    Raises:
        UserError: where there are such.
    """
    runs = {json.dumps([point.name, point.recipe.to_dict()], default=str) for point in found}
    if len(runs) < len(found) or len({point.path(Path()) for point in found}) < len(found):
        raise UserError("Two runs would be the same or share a folder; give each recipe and value once.")


def point(name: str, source: str | Mapping[str, Any], settings: dict[str, str], overrides: Sequence[str] = ()) -> Point:
    """The run of a recipe, by its name and what it is read from, with settings."""
    recipe = recipes.load(source, [*overrides, *(f"--{key}={value}" for key, value in settings.items())])
    folder = folder_name(Path(name).stem, name) if name.endswith((".yaml", ".yml")) else name
    return Point(folder, settings, recipe)


def read_axes(over: Sequence[str], overrides: Sequence[str]) -> dict[str, list[str]]:
    """The keys in `over`, each with its values.

    Raises:
        UserError: where a key is there twice, has no values, or replaces one in `overrides`.
    """
    axes = dict(_axis(text) for text in over)
    if len(axes) < len(over):
        raise UserError("A setting stands in more than one --over; give all its values in one.")
    fixed = [override.removeprefix("--").partition("=")[0] for override in overrides]
    for axis in axes:
        for key in fixed:
            if f"{key}.".startswith(f"{axis}."):
                raise UserError(f"--over {axis} replaces --{key}; leave one of them out.")
    return axes


def _axis(text: str) -> tuple[str, list[str]]:
    """The key and the values of `task.pairs=8,16`; commas inside brackets and quotes belong to a value."""
    key, _, values = text.partition("=")
    try:
        nodes = yaml.compose(f"[{values}]", yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError):
        nodes = None
    found = [values[node.start_mark.index - 1 : node.end_mark.index - 1] for node in nodes.value] if nodes else []
    if not (key and found and all(found)) or values.rstrip().endswith(","):
        raise UserError(f'"{text}" is no setting with values; write for example --over task.pairs=8,16.')
    return key.removeprefix("--"), found


def run(
    found: Sequence[Point],
    folder: Path,
    data: str | None,
    tests: bool,
    observe: Callable[[str], AbstractContextManager[Observer]],
) -> Iterator[tuple[Point, str]]:
    """Train the runs that are not finished, one after another, and yield the outcome of each.

    Args:
        found: the runs.
        folder: the folder of their run folders.
        data: the directory of the task's files, or None for generated data.
        tests: evaluate the best model of each on the test split; the metrics are saved as `test.json` in its folder.
        observe: gives a listener for the path of a run.

    Yields:
        a run, and "done", "made", "in use" where another process trains it, or the sentence of its failure.

    Raises:
        Interrupted: after SIGINT or SIGTERM, with everything saved.
    """
    for point in found:
        try:
            with RunFolder.claim(point.path(folder)) as run_folder:
                made = train(point, build(point, data), run_folder, data, tests, observe)
        except InUse:
            yield point, "in use"
        except UserError as error:
            yield point, str(error)
        else:
            yield point, "made" if made else "done"


def build(point: Point, data: str | None) -> Assembly:
    """A run's parts, with its optimizer's options checked.

    Raises:
        UserError: where they cannot be built.
    """
    assembly = recipes.assemble(point.recipe, data)
    Optimization(assembly.model, point.recipe.training)
    return assembly


def train(
    point: Point,
    assembly: Assembly,
    run: RunFolder,
    data: str | None,
    tests: bool,
    observe: Callable[[str], AbstractContextManager[Observer]],
    until: int | None = None,
) -> bool:
    """Train a run in its locked folder, from its last checkpoint on, and say whether anything was left to do.

    Args:
        point: the run.
        assembly: its parts.
        run: its folder, locked; it holds this run, or none.
        data: the directory of the task's files, or None for generated data.
        tests: evaluate the best model on the test split.
        observe: gives a listener for the path of a run.
        until: the step at which training pauses; None for the last.

    Raises:
        Interrupted: after SIGINT or SIGTERM, with everything saved.
        Diverged: where the loss, its gradient or the validation's metrics are not finite.
        UserError: where the folder holds another run, cannot be read or cannot be written.
    """
    config = run_config(assembly, data) | {"sweep": {"recipe": point.name, "settings": point.settings}}
    if run.config.exists():
        _check_same(run, config)
    else:
        run.begin(config)
    if is_finished(run, until or point.recipe.training.steps, tests):
        return False
    with observe(str(run.path)) as observer:
        trainer = Trainer(assembly, run, data, observer)
        trainer.resume()
        trainer.train(until)
        if tests:
            evaluate_test_split(run, trainer)
    return True


def is_finished(run: RunFolder, steps: int, tests: bool) -> bool:
    """Whether a run has made so many steps or stopped early, and is tested where that is requested."""
    if not run.last.exists() or (tests and not (run.path / "test.json").exists()):
        return False
    saved = checkpoint.read_metadata(run.last)
    step = saved.get("step")
    return bool(saved.get("stopped_early")) or (isinstance(step, int) and step >= steps)


def evaluate_test_split(run: RunFolder, trainer: Trainer) -> None:
    """Evaluate a run's best model on the test split, and save the metrics in the run's folder.

    Raises:
        UserError: where the best model is of another recipe.
    """
    if checkpoint.read_metadata(run.best).get("recipe") != json.loads(json.dumps(trainer.recipe.to_dict())):
        raise UserError(f"{run.best} was saved by another recipe than {run.config}; remove {run.path} and train again.")
    model, state, metadata, _ = load_model(run.best, trust=True)  # its recipe is the one that this sweep names
    metrics = trainer.objective.evaluate(
        model, trainer.task, trainer.data, "test", trainer.options.eval_batch_size, state
    )
    text = json.dumps({"split": "test", "step": metadata["step"], **metrics})
    write_atomically(run.path / "test.json", text.encode())


def _check_same(run: RunFolder, config: dict[str, Any]) -> None:
    saved = run.read_config()
    if recipes.load(saved.get("recipe", {})) != recipes.load(config["recipe"]):
        raise UserError(f"{run.path} holds a run with other settings; sweep into another --out.")
