"""Many runs: recipes × settings × seeds, each in a run folder of its own.

All state of a sweep is in its run folders: the same command resumes it, and any number of processes that give the same
command, on any machines with the folder on a shared filesystem, divide the runs among them.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

from fastweights import recipes
from fastweights.errors import UserError
from fastweights.recipes import Recipe
from fastweights.training import checkpoint
from fastweights.training.checkpoint import write_atomically
from fastweights.training.loop import Observer, Trainer, run_config
from fastweights.training.runs import InUse, RunFolder
from fastweights.training.trained import load_model

SEED = "training.seed"


class Point(NamedTuple):
    """One run of a sweep: a recipe's name, the settings in which it differs from others, and the whole recipe."""

    name: str
    settings: dict[str, str]
    recipe: Recipe

    def path(self, folder: Path) -> Path:
        """Where its run folder is: `folder/art/fw-lstm/pairs=8,seed=0`."""
        parts = [f"{key.rpartition('.')[2]}={value.replace('/', '_')}" for key, value in self.settings.items()]
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
        path = point.path(folder)
        try:
            assembly = recipes.assemble(point.recipe, data)
            config = run_config(assembly, data) | {"sweep": {"recipe": point.name, "settings": point.settings}}
            resumes = (path / "config.yaml").exists()
            with RunFolder.open(path) if resumes else RunFolder.create(path, config) as run_folder:
                if resumes:
                    _check_same(run_folder, config)
                if is_finished(run_folder, point.recipe, tests):
                    yield point, "done"
                    continue
                with observe(str(path)) as observer:
                    trainer = Trainer(assembly, run_folder, data, observer)
                    trainer.resume()
                    trainer.train()
                    if tests:
                        evaluate_test_split(run_folder, trainer)
        except InUse:
            yield point, "in use"
        except UserError as error:
            yield point, str(error)
        else:
            yield point, "made"


def is_finished(run: RunFolder, recipe: Recipe, tests: bool) -> bool:
    """Whether a run's last step is done or it stopped early, and it is tested where that is requested."""
    if not run.last.exists() or (tests and not (run.path / "test.json").exists()):
        return False
    saved = checkpoint.read_metadata(run.last)
    return bool(saved.get("stopped_early")) or saved["step"] >= recipe.training.steps


def evaluate_test_split(run: RunFolder, trainer: Trainer) -> None:
    """Evaluate a run's best model on the test split, and save the metrics in the run's folder."""
    model, state, metadata, _ = load_model(run.best, trust=True)  # this process has just trained it
    metrics = trainer.objective.evaluate(
        model, trainer.task, trainer.data, "test", trainer.options.eval_batch_size, state
    )
    text = json.dumps({"split": "test", "step": metadata["step"], **metrics})
    write_atomically(run.path / "test.json", text.encode())


def _check_same(run: RunFolder, config: dict[str, Any]) -> None:
    saved = run.read_config()
    if recipes.load(saved.get("recipe", {})) != recipes.load(config["recipe"]):
        raise UserError(f"{run.path} holds a run with other settings; sweep into another --out.")
