"""A recipe's parts, built once: task, objective, interface and model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from fastweights import specs, tasks
from fastweights.cores import CORES, Core
from fastweights.errors import UserError, reason
from fastweights.models import Model
from fastweights.objectives import OBJECTIVES, Objective
from fastweights.recipes import memory
from fastweights.recipes.memory import model_size
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
        interface: that of a trained model, which is not trained further; None for the task's own.

    Raises:
        UserError: where a part cannot be built, parts do not fit, or they take more memory than there is.
    """
    training = recipe.training if interface is None else None
    task, objective, interface = _parts(recipe, data, interface)
    try:
        planned = _without_weights(recipe, objective, interface)
    except UserError:
        pass  # refused below as well, unless it is a core of the user's own that needs its weights
    else:
        memory.check(task, planned, training)
    torch.manual_seed(recipe.training.seed)
    model = objective.build_model(recipe.model, interface)
    objective.check_core(task, model.core)
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            model(objective.example(interface))  # some options are checked only by the first call
    except (ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"The recipe's model cannot be called ({reason(error)}); change its options.") from error
    return Assembly(recipe, task, objective, interface, model)


def _parts(recipe: Recipe, data: str | None, interface: Interface | None) -> tuple[Task, Objective, Interface]:
    task, objective = _task_and_objective(recipe)
    if interface is None:
        return task, objective, task.prepare(data)
    task.restore(interface)
    return task, objective, interface


def _task_and_objective(recipe: Recipe) -> tuple[Task, Objective]:
    task = tasks.build(recipe.task)
    objective = OBJECTIVES.build(_objective_spec(recipe, task))
    objective.check_task(task)
    _check_target(recipe, objective)
    return task, objective


def _without_weights(recipe: Recipe, objective: Objective, interface: Interface) -> Model:
    """The model on the meta device, where no weight is stored or drawn."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return objective.build_model(recipe.model, interface)


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


def size(recipe: Recipe) -> tuple[int, int]:
    """As `model_size`, without weights being made; with the largest vocabulary where it depends on files.

    >>> from fastweights import recipes
    >>> size(recipes.load("catbabi-qa/fwm"))
    (683745, 33280)
    """
    task, objective = _task_and_objective(recipe)
    return model_size(_without_weights(recipe, objective, task.largest_interface()))


def parts_of(recipe: Recipe) -> tuple[type[Task], type[Objective], type[Core]]:
    """The classes of a recipe's task, objective and core."""

    def name(spec: Any) -> Any:
        return spec.get("type") if isinstance(spec, Mapping) else spec

    task = tasks.TASKS.find(name(recipe.task))
    objective = OBJECTIVES.find(name(_objective_spec(recipe, task)))
    default = specs.options_of(objective.model_builder)["core"].default
    return task, objective, CORES.find(name(recipe.model.get("core", default)))
