"""Many runs: recipes × settings × seeds, each in a run folder of its own.

A sweep keeps no books beside its run folders, so it goes on where it stopped when the same command is given again, and
any number of processes, on any machines that see the folder, share the work by giving it too.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

from fastweights import recipes, tasks, training
from fastweights.errors import UserError
from fastweights.recipes import Recipe
from fastweights.training.evaluate import evaluate
from fastweights.training.loop import Observer, load_model
from fastweights.training.runs import InUse, RunFolder, write_atomically

SEED = "training.seed"


class Point(NamedTuple):
    """One run of a sweep: a recipe's name, the settings in which it differs from others, and the whole recipe."""

    name: str
    settings: dict[str, str]
    recipe: Recipe

    def path(self, folder: Path) -> Path:
        """Where its run folder is: `folder/art/fw-lstm/pairs=8,seed=0`."""
        parts = [f"{key.rpartition('.')[2]}={value}" for key, value in self.settings.items()]
        return folder / self.name / (",".join(parts) or "run")


def points(names: Sequence[str], over: Sequence[str], overrides: Sequence[str]) -> list[Point]:
    """Every recipe with every combination of the values in `over`, `["task.pairs=8,16", "training.seed=0,1"]`.

    Raises:
        UserError: where a recipe or a key does not exist, or a value is given twice.
    """
    axes = dict(_axis(text) for text in over)
    if len(axes) < len(over):
        raise UserError("A setting stands in more than one --over; give all its values in one.")
    found = []
    for name, values in itertools.product(names, itertools.product(*axes.values())):
        settings = dict(zip(axes, values, strict=True))
        recipe = recipes.load(name, [*overrides, *(f"--{key}={value}" for key, value in settings.items())])
        found.append(Point(Path(name).stem if name.endswith((".yaml", ".yml")) else name, settings, recipe))
    paths = [point.path(Path()) for point in found]
    if len(set(paths)) < len(paths):
        raise UserError("Two runs of the sweep would share a folder; give each recipe and each value once.")
    return found


def _axis(text: str) -> tuple[str, list[str]]:
    key, equals, values = text.partition("=")
    if not (key and equals and all(values.split(","))):
        raise UserError(f'"{text}" is no setting with values; write for example --over task.pairs=8,16.')
    return key.removeprefix("--"), values.split(",")


def run(
    found: Sequence[Point],
    folder: Path,
    data: str | None,
    tests: bool,
    observe: Callable[[str], AbstractContextManager[Observer]],
) -> Iterator[tuple[Point, str]]:
    """Make the runs that are not made yet, one after another, and say of each what became of it.

    Args:
        found: the runs.
        folder: where their folders are.
        data: the directory of the task's files, or None for generated data.
        tests: whether the best model of each is asked the test split, which is kept in `test.json` in its folder.
        observe: given the path of a run, what watches it.

    Yields:
        a run, and "done", "made", "in use" where another process makes it, or the sentence of its failure.

    Raises:
        Interrupted: on Ctrl-C or a polite kill; what was made is saved.
    """
    for point in found:
        path = point.path(folder)
        settings = {"recipe": point.name, "settings": point.settings}
        config = {"recipe": point.recipe.to_dict(), "data": data, "sweep": settings}
        try:
            resumes = (path / "config.yaml").exists()
            with RunFolder.open(path) if resumes else RunFolder.create(path, config) as folder_of_run:
                if resumes:
                    _check_same(folder_of_run, config)
                if is_finished(folder_of_run, point.recipe, tests):
                    yield point, "done"
                    continue
                with observe(str(path)) as observer:
                    trainer = training.begin(point.recipe, folder_of_run, data, observer)
                    trainer.resume()
                    trainer.train()
                    if tests:
                        ask_test_split(folder_of_run, point.recipe, data)
        except InUse:
            yield point, "in use"
        except UserError as error:
            yield point, str(error)
        else:
            yield point, "made"


def is_finished(run: RunFolder, recipe: Recipe, tests: bool) -> bool:
    """Whether a run has made its last step, or was good enough before, and has been tested where it is to be."""
    validations = [record for record in run.records() if "valid" in record]
    if not validations or (tests and not (run.path / "test.json").exists()):
        return False
    step, goal = validations[-1]["step"], recipe.training.stop_at_accuracy
    reached = goal is not None and validations[-1]["valid"].get("answer_accuracy", 0.0) >= goal
    return step >= recipe.training.steps or reached


def ask_test_split(run: RunFolder, recipe: Recipe, data: str | None) -> None:
    """Ask a run's best model the test split and keep the answer in the run's folder; agents are tested in training."""
    task = tasks.build(recipe.task)
    if isinstance(task, tasks.ControlTask):
        return
    model, state, metadata = load_model(run.best)
    rows = recipe.training.evaluation_rows
    metrics = evaluate(
        model, task.evaluation_batches(data, "test", rows), rows, state, carries_state=task.carries_state
    )
    text = json.dumps({"split": "test", "step": metadata["step"], **metrics})
    write_atomically(run.path / "test.json", text.encode())


def _check_same(run: RunFolder, config: dict[str, Any]) -> None:
    kept = run.read_config()
    if recipes.load(None, kept.get("recipe", {})) != recipes.load(None, config["recipe"]):
        raise UserError(f"{run.path} holds a run with other settings; sweep into another --out.")
