"""The memory that a recipe takes, so that what cannot fit is refused before anything of it is made."""

from __future__ import annotations

import torch

from fastweights import machine
from fastweights.cores import state_size
from fastweights.errors import UserError
from fastweights.models import Model
from fastweights.recipes.options import TrainingOptions
from fastweights.tasks import EnvironmentTask, Task

FLOAT32 = 4  # bytes


def model_size(model: Model) -> tuple[int, int]:
    """The number of a model's weights, and of the elements in one row's state."""
    return sum(parameter.numel() for parameter in model.parameters()), state_size(model.core)


def check(task: Task, model: Model, training: TrainingOptions | None) -> None:
    """Refuse what cannot fit into this machine's memory.

    Args:
        task: the task.
        model: the model, on the meta device.
        training: how it is trained; None for an evaluation.

    Raises:
        UserError: saying how much is needed, how much there is, and what to make smaller.
    """
    needed = _needed(task, model, training)
    total, there = sum(needed.values()), _available()
    if there is not None and total > there:
        largest = max(needed, key=lambda key: needed[key])
        raise UserError(
            f"This needs about {total / 1e9:,.1f} GB of memory, and the machine has {there / 1e9:,.1f} GB; make "
            f"{largest} smaller, for which {needed[largest] / 1e9:,.1f} GB are needed."
        )


def _needed(task: Task, model: Model, training: TrainingOptions | None) -> dict[str, int]:
    """Bytes by what to make smaller."""
    weights, state = model_size(model)
    if training is None:
        return {"the model's sizes": FLOAT32 * weights}
    moments = 2 if "adam" in str(training.optimizer).lower() else 0
    sides = [max(parameter.shape) for parameter in model.core.parameters() if parameter.ndim == 2]
    steps = task.steps if isinstance(task, EnvironmentTask) else getattr(task, "segment_length", 1)
    element = 2 if training.precision == "bfloat16" else FLOAT32
    processes = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    kept = FLOAT32 * state + element * model.core.kept_elements(steps)
    batch = training.batch_size // processes * kept
    validation = training.eval_batch_size * (FLOAT32 * state + FLOAT32 * steps * max(sides, default=0))
    most = max((batch, "training.batch_size"), (validation, "training.eval_batch_size"))
    return {
        "the model's sizes": FLOAT32 * weights * (2 + moments),  # with the gradients
        "the sizes of the task's data": task.memory(),
        f"{most[1]}, the task's sequences or the model's sizes": most[0],
    }


def _available() -> int | None:
    """The bytes of memory of this machine and its graphics cards."""
    installed = machine.memory()
    if installed is None or not torch.cuda.is_available():
        return installed
    cards = range(torch.cuda.device_count())
    return installed + sum(torch.cuda.get_device_properties(card).total_memory for card in cards)
