"""Recipes: one YAML file a row of a results table, shipped inside the package.

A recipe names a task, a model and how to train it. `Recipe` is what such a file may say; every value can be changed on
the command line.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from fastweights.errors import UserError, nearest


@dataclass
class ModelOptions:
    """The model: an embedding, a core, a softmax."""

    core: dict[str, Any] = field(default_factory=lambda: {"type": "fwm"})
    """The core's type and options, for example --model.core.memory_size 16."""
    embedding_size: int = 256
    """Size of a token's embedding."""
    token_dropout: float = 0.0
    """Probability with which a whole token is dropped from the input."""
    embedding_dropout: float = 0.0
    """Probability with which an element of an embedding is dropped."""
    head_size: int | None = None
    """Size of a ReLU layer between core and softmax, which then have biases; null for none."""


@dataclass
class TrainingOptions:
    """How the model is trained."""

    steps: int = 50_000
    """Number of updates."""
    rows: int = 32
    """Batch size: rows of the stream that are read side by side."""
    learning_rate: float = 1e-3
    """Adam's learning rate, at its highest."""
    schedule: Literal["constant", "cosine"] = "constant"
    """How the learning rate goes on after the warm-up: stays, or falls to 0 along a cosine."""
    warmup_steps: int = 0
    """Steps in which the learning rate rises from 0."""
    adam_epsilon: float = 1e-8
    """What Adam adds to the root of the second moment."""
    clip_norm: float | None = None
    """Largest norm of the gradient, or null for no clipping."""
    report_every: int = 50
    """Steps between two records of the training loss."""
    evaluate_every: int = 250
    """Steps between two validations; also between two saves of the last checkpoint."""
    stop_at_accuracy: float | None = None
    """Validation accuracy at the answers, as a fraction, at which training ends early; null to make all steps."""
    evaluation_rows: int = 128
    """Rows that are read side by side in a validation."""
    seed: int = 0
    """Seed of the weights, of the order of the data and of dropout."""


@dataclass
class Recipe:
    """A task, a model and how to train it."""

    description: str = ""
    """One sentence on what this trains and where it comes from."""
    task: dict[str, Any] = field(default_factory=lambda: {"type": "catbabi"})
    """The task's type and options, for example --task.tasks 1,2,4-20."""
    model: ModelOptions = field(default_factory=ModelOptions)
    """The model."""
    training: TrainingOptions = field(default_factory=TrainingOptions)
    """How it is trained."""

    def to_dict(self) -> dict[str, Any]:
        """The recipe as nested dictionaries of plain values."""
        return asdict(self)


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


def load(name: str | None = None, overrides: list[str] | dict[str, Any] | None = None) -> Recipe:
    """Read a recipe and check it, with overrides as on the command line or as a (nested) dictionary.

    >>> load("catbabi-qa/fwm", ["--training.steps=10", "--model.core.memory_size=16"]).training.steps
    10

    Raises:
        UserError: where a key does not exist or a value is of the wrong kind.
    """
    from jsonargparse import ArgumentParser

    arguments = ArgumentParser(exit_on_error=False)
    arguments.add_class_arguments(Recipe)
    where = name or "the settings"
    try:
        if isinstance(overrides, dict):
            parsed = arguments.parse_object(overrides)
        else:
            arguments.default_config_files = [] if name is None else [str(path(name))]
            parsed = arguments.parse_args(overrides or [])
        return Recipe(**vars(arguments.instantiate(parsed)))
    except UserError:
        raise
    except Exception as error:  # jsonargparse raises several kinds
        raise UserError(_explain(error, where)) from error


def prolonged(recipe: Recipe, steps: int) -> Recipe:
    """The recipe with more steps, as which a run of it can go on.

    >>> prolonged(load("catbabi-qa/fwm"), 60_000).training.steps
    60000

    Raises:
        UserError: where these are fewer steps, or the learning rate falls towards the last one, which would move.
    """
    if steps < recipe.training.steps:
        raise UserError(
            f"The run is of {recipe.training.steps:,} steps; give more than that, not {steps:,}, or leave it out."
        )
    if steps > recipe.training.steps and recipe.training.schedule != "constant":
        raise UserError(
            f"The run's learning rate falls to 0 at step {recipe.training.steps:,}, so it cannot go on to "
            f"step {steps:,}; train anew with --training.steps {steps} and another --out."
        )
    return replace(recipe, training=replace(recipe.training, steps=steps))


def known_keys() -> list[str]:
    """Every key that a recipe may have, dotted, the cores' and tasks' options included."""
    from dataclasses import fields

    from fastweights.cores import CORES
    from fastweights.specs import options_of
    from fastweights.tasks import TASKS

    keys = ["description", "model.core.type", "task.type"]
    keys += [f"model.{f.name}" for f in fields(ModelOptions)]
    keys += [f"training.{f.name}" for f in fields(TrainingOptions)]
    keys += [f"model.core.{key}" for core in CORES.values() for key in options_of(core, skip=1)]
    keys += [f"task.{key}" for task in TASKS.values() for key in options_of(task)]
    return list(dict.fromkeys(keys))


def size(recipe: Recipe) -> tuple[int, int]:
    """The number of a recipe's weights, and of the numbers in one row's state.

    >>> size(load("catbabi-qa/fwm"))
    (683745, 33280)
    """
    import torch

    from fastweights import tasks
    from fastweights.cores import state_size

    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        model = build_model(recipe, tasks.build(recipe.task))
    return sum(parameter.numel() for parameter in model.parameters()), state_size(model.core)


def build_model(recipe: Recipe, task: Any) -> Any:
    """Build a recipe's model with the ends that its task needs: tokens for words, an agent for observations."""
    from fastweights import models, tasks

    options = recipe.to_dict()["model"]
    if isinstance(task, tasks.ControlTask):
        return models.build_actor_critic(options, task.observation_size, task.actions)
    return models.build(options, task.vocabulary_size)


def check(recipe: Recipe, data: str | None) -> None:
    """Find what is wrong with a recipe before a run folder is made for it.

    Raises:
        UserError: where a part cannot be built, a number makes no sense, or files are missing.
    """
    import torch

    from fastweights import tasks

    options = recipe.training
    for key in ("steps", "rows", "report_every", "evaluate_every", "evaluation_rows"):
        if getattr(options, key) < 1:
            raise UserError(f"training.{key} is {getattr(options, key)}; it must be at least 1.")
    for key in ("seed", "warmup_steps"):
        if getattr(options, key) < 0:
            raise UserError(f"training.{key} is {getattr(options, key)}; it must not be negative.")
    if not 0 < options.learning_rate < float("inf"):
        raise UserError(f"training.learning_rate is {options.learning_rate}; it must be positive.")
    if options.clip_norm is not None and not options.clip_norm > 0:
        raise UserError(f"training.clip_norm is {options.clip_norm}; it must be positive, or null for no clipping.")
    goal = options.stop_at_accuracy
    if goal is not None and not 0 < goal <= 1:
        raise UserError(f"training.stop_at_accuracy is {goal}; it must be a fraction above 0, or null to go on.")
    sizes = {"embedding_size": recipe.model.embedding_size, "head_size": recipe.model.head_size}
    sizes |= {f"core.{key}": value for key, value in recipe.model.core.items() if key.endswith("_size")}
    for key, value in sizes.items():
        if isinstance(value, int) and value < 1:
            raise UserError(f"model.{key} is {value}; it must be at least 1.")
    if not 0 < options.adam_epsilon < float("inf"):
        raise UserError(f"training.adam_epsilon is {options.adam_epsilon}; it must be positive.")
    task = tasks.build(recipe.task)
    acts = isinstance(task, tasks.ControlTask)
    what = "an observation" if acts else "a word"
    word = torch.zeros((1, 1, task.observation_size)) if acts else torch.zeros((1, 1), dtype=torch.int64)
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            build_model(recipe, task)(word)  # some options are only looked at when it reads
    except (ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"The recipe's model cannot read {what} ({error}); change its options.") from error
    if acts:
        for key in ("embedding_size", "token_dropout", "embedding_dropout"):
            if getattr(recipe.model, key) != getattr(ModelOptions(), key):
                raise UserError(f"model.{key} is for words, and an agent reads none; leave it out.")
        if data is not None:
            raise UserError(f'The task "{recipe.task["type"]}" makes its own environments; leave --data out.')
        for split in ("train", *task.splits):
            task.environments(split, 1).close()
    else:
        task.training_batches(data, 1, 0)
        task.evaluation_batches(data, "valid", 1)


def explain(recipe: Recipe) -> str:
    """Say what each value of a recipe means."""
    from jsonargparse import ArgumentParser, set_parsing_settings

    from fastweights.cores import CORES
    from fastweights.tasks import TASKS

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    arguments = ArgumentParser(usage="", add_help=False)
    arguments.add_class_arguments(Recipe)
    parts = [arguments.format_help().replace("usage: ", "").strip()]
    parts += [f"task {recipe.task.get('type')}:\n{_arguments_of(TASKS[recipe.task['type']])}"]
    parts += [f"core {recipe.model.core.get('type')}:\n{_arguments_of(CORES[recipe.model.core['type']])}"]
    return "\n\n".join(parts)


def _arguments_of(builder: type) -> str:
    import inspect

    return inspect.getdoc(builder).partition("Args:\n")[2].partition("\n\n")[0]


def _explain(error: Exception, where: str) -> str:
    import re

    text = " ".join(str(error).split())
    unknown = re.search(r"unrecognized arguments: --([\w.-]+)|[Oo]ption '([\w.-]+)' is not accepted", text)
    if unknown:
        key = next(group for group in unknown.groups() if group)
        suggestion = nearest(key, known_keys()) or "."
        return f'A recipe has no key "{key}"{suggestion} It was given in {where} or on the command line.'
    wrong = re.search(r'key "([\w.]+)": (.*)', text)
    if wrong:
        return f"{wrong[1]} cannot be what {where} or the command line says: {wrong[2]}"
    return f"{where} cannot be read: {text}"
