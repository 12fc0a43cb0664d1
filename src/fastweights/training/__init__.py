"""Training: one loop for batches of tokens, one for agents; both share run folders, records and checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastweights.recipes import Recipe
    from fastweights.training.loop import Training


def begin(recipe: Recipe, *arguments: Any, **options: Any) -> Training:
    """The training that a recipe's task needs; arguments as of `fastweights.training.loop.Training`."""
    from fastweights import tasks
    from fastweights.training import a2c, supervised

    acts = isinstance(tasks.build(recipe.task), tasks.ControlTask)
    return (a2c if acts else supervised).Trainer(recipe, *arguments, **options)
