"""A recipe's parts, built once: task, objective, interface and model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from fastweights import specs, tasks
from fastweights.cores import CORES, Core, state_size
from fastweights.errors import UserError, reason
from fastweights.models import Model
from fastweights.objectives import OBJECTIVES, Objective
from fastweights.recipes.options import Recipe, Spec
from fastweights.tasks import Interface, Task
from fastweights.tasks.contract import interface_from_dict


class Assembly(NamedTuple):
    """A recipe and the parts that it describes."""

    recipe: Recipe
    task: Task
    objective: Objective
    interface: Interface
    model: Model


def assemble(recipe: Recipe, data: str | None = None, interface: Interface | None = None) -> Assembly:
    """Build a recipe's parts, with weights by its seed, and call the model once.

    Args:
        recipe: the recipe.
        data: the directory of the task's files, or None for generated data.
        interface: that of a trained model; None for the task's own.

    Raises:
        UserError: where a part cannot be built or parts do not fit.
    """
    assembly = _build(recipe, data, interface)
    example = assembly.objective.example(assembly.interface)
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            assembly.model(example)  # some options are checked only by the first call
    except (ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"The recipe's model cannot be called ({reason(error)}); change its options.") from error
    return assembly


def _build(recipe: Recipe, data: str | None, interface: Interface | None) -> Assembly:
    task = tasks.build(recipe.task)
    objective = OBJECTIVES.build(_objective_spec(recipe, task))
    objective.check_task(task)
    _check_target(recipe, objective)
    if interface is None:
        interface = task.prepare(data)
    else:
        task.restore(interface)
    torch.manual_seed(recipe.training.seed)
    model = objective.build_model(recipe.model, interface)
    objective.check_core(task, model.core)
    return Assembly(recipe, task, objective, interface, model)


def _check_target(recipe: Recipe, objective: Objective) -> None:
    """Refuse a target of early stopping that the headline metric can never have."""
    target, headline = recipe.training.early_stopping.target, objective.headline
    if target is not None and not headline.least <= target <= headline.most:
        raise UserError(
            f"training.early_stopping.target is {target:g}; it must be a value of {headline.name}, from "
            f"{headline.least:g} to {headline.most:g}."
        )


def _objective_spec(recipe: Recipe, task: Task | type[Task]) -> Spec:
    """The objective of a recipe; options without a type are those of the task's own."""
    options = {} if recipe.objective is None else recipe.objective
    return options if isinstance(options, str) else {"type": task.objective, **options}


def load_interface(values: Mapping[str, Any]) -> Interface:
    """The interface in a checkpoint's metadata.

    Raises:
        KeyError, TypeError: where there is none.
    """
    return interface_from_dict(dict(values["interface"]))


def model_size(model: Model) -> tuple[int, int]:
    """The number of a model's weights, and of the elements in one row's state."""
    return sum(parameter.numel() for parameter in model.parameters()), state_size(model.core)


def size(recipe: Recipe) -> tuple[int, int]:
    """As `model_size`, for a recipe whose weights are not made.

    >>> from fastweights import recipes
    >>> size(recipes.load("catbabi-qa/fwm"))
    (683745, 33280)
    """
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return model_size(_build(recipe, None, None).model)


def parts_of(recipe: Recipe) -> tuple[type[Task], type[Objective], type[Core]]:
    """The classes of a recipe's task, objective and core."""

    def name(spec: Any) -> Any:
        return spec if isinstance(spec, str) else spec.get("type")

    task = tasks.TASKS.find(name(recipe.task))
    objective = OBJECTIVES.find(name(_objective_spec(recipe, task)))
    default = specs.options_of(objective.model_builder)["core"].default
    return task, objective, CORES.find(name(recipe.model.get("core", default)))
