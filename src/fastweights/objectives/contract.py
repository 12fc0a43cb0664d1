"""The contract of objectives: the item of a training step, its loss, its metrics, and the evaluation of a split."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from fastweights.cores import Core
from fastweights.distributed import Group
from fastweights.errors import UserError
from fastweights.models import Model
from fastweights.tasks import Interface, Source, Task

TaskT = TypeVar("TaskT", bound=Task)
InterfaceT = TypeVar("InterfaceT", bound=Interface)
ModelT = TypeVar("ModelT", bound=Model)

BAR = 20  # characters of a full bar in a table


class Metric(NamedTuple):
    """A metric by its name in records; label and format for people; its least and its most value.

    >>> Metric("answer_accuracy", "answers", "{:.1%}", higher_is_better=True).show(0.25)
    'answers 25.0%'
    """

    name: str
    label: str
    format: str
    higher_is_better: bool = False
    least: float = -math.inf
    most: float = math.inf

    def show(self, value: float) -> str:
        """Label and value."""
        return f"{self.label} {self.format.format(value)}"

    def is_better(self, value: float, than: float | None) -> bool:
        """Whether a value is better than another, or than none."""
        return than is None or (value > than if self.higher_is_better else value < than)

    def reaches(self, value: float, target: float) -> bool:
        """Whether a value is as good as a target."""
        return value >= target if self.higher_is_better else value <= target


LOSS = Metric("loss", "loss", "{:.3f}")


class Sums:
    """Additive statistics of many steps, on the device where they were computed; metrics are ratios of them."""

    def __init__(self, values: Mapping[str, Tensor] | None = None) -> None:
        self.values = dict(values or {})

    def add(self, values: Mapping[str, Tensor], decay: float = 1.0) -> None:
        """Multiply what was summed by `decay` and add the statistics of a step; vectors grow as needed."""
        for name, value in values.items():
            old = self.values.get(name)
            if old is None:
                self.values[name] = value.double()
                continue
            if old.ndim and len(old) != len(value):
                size = max(len(old), len(value))
                old, value = pad(old, (0, size - len(old))), pad(value, (0, size - len(value)))
            old = old.to(value.device)  # restored sums, and those of several processes, are on the CPU
            self.values[name] = (old if decay == 1.0 else old * decay) + value

    def all_reduce(self, group: Group) -> Sums:
        """The sums over all processes of a group."""
        if group.size == 1:
            return self
        reduced = {}
        for name in sorted(self.values):
            value = self.values[name]
            size = int(group.all_reduce_max(value.numel()))
            total = group.all_reduce_sum(*pad(value.flatten(), (0, size - value.numel())).tolist())
            reduced[name] = torch.tensor(total if value.ndim else total[0], dtype=torch.float64)
        return Sums(reduced)

    def state_dict(self) -> dict[str, Any]:
        """The sums as plain numbers, exactly."""
        return {name: value.tolist() for name, value in self.values.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the sums."""
        self.values = {name: torch.tensor(value, dtype=torch.float64) for name, value in state.items()}


@dataclass
class Step:
    """The result of a training step before the gradient.

    loss is the scalar to minimise; state is carried to the next step, or None; sums are additive statistics; count is
    the number of the objective's units; inputs are the tensors that the model read, for a report where the loss is not
    finite; lr_scale multiplies the learning rate.
    """

    loss: Tensor
    state: Any
    sums: dict[str, Tensor]
    count: int
    inputs: dict[str, Tensor]
    lr_scale: float = 1.0


class Objective(ABC, Generic[TaskT, InterfaceT, ModelT]):
    """The base of all objectives, by the types of its tasks, of their interface and of its models."""

    task_type: ClassVar[type[Task]]
    """The tasks on which it can be trained."""
    headline: ClassVar[Metric]
    """The metric by which models are compared: early stopping, the best checkpoint, sweeps and reports."""
    progress: ClassVar[tuple[Metric, ...]]
    """The metrics of the progress bar."""
    summary: ClassVar[tuple[Metric, ...]]
    """The metrics of a validation's line."""
    unit: ClassVar[str]
    """The unit of a step's count."""
    data_parallel: ClassVar[bool] = True
    """Whether several processes can train together."""
    episodic: ClassVar[bool] = False
    """Whether an evaluation samples episodes: it takes their number, no files and no state."""
    model_builder: ClassVar[Callable[..., Model]]
    """Builds a model from what the interface gives and the options under `model` in a recipe."""

    def check_task(self, task: Task) -> None:
        """Refuse a task of another kind.

        Raises:
            UserError: naming the kind that the objective needs.
        """
        if not isinstance(task, self.task_type):
            raise UserError(
                f"The objective {type(self).__name__} is for tasks that extend {self.task_type.__name__}, and "
                f"{type(task).__name__} does not; leave objective out of the recipe for the task's own."
            )

    def check_core(self, task: TaskT, core: Core) -> None:
        """Refuse a core that does not fit.

        Raises:
            UserError: saying what is missing.
        """
        for name in task.required_arguments:
            if name not in core.supported_arguments:
                raise UserError(
                    f"{type(task).__name__} needs a core that supports {name}, and {type(core).__name__} does not; "
                    "choose another core."
                )

    @abstractmethod
    def build_model(self, options: Mapping[str, Any], interface: InterfaceT) -> ModelT:
        """Build a model from a recipe's `model` part, with the sizes of the interface.

        Raises:
            UserError: where an option does not exist or a value is of the wrong kind.
        """

    @abstractmethod
    def example(self, interface: InterfaceT) -> Tensor:
        """The smallest input of a model: one row, one step."""

    @abstractmethod
    def source(self, task: TaskT, data: str | None, batch_size: int, seed: int, shard: slice = slice(None)) -> Source:
        """The items of training.

        Args:
            task: the task.
            data: the directory of the task's files, or None for generated data.
            batch_size: rows of a batch, or environments of a rollout.
            seed: of the data and of their order.
            shard: this process's rows of each item; the cursor is that of all.

        Raises:
            UserError: where files are missing.
        """

    def check_data(self, task: TaskT, data: str | None) -> None:
        """Refuse missing files before a run begins.

        Raises:
            UserError: naming what is missing.
        """
        self.source(task, data, 1, 0)

    @abstractmethod
    def step(self, model: ModelT, task: TaskT, item: Any, state: Any, group: Group) -> Step:
        """The loss and the statistics of one item, on the group's device.

        Args:
            model: the model, in a group of several wrapped by `DistributedDataParallel`: call it, read no attribute.
            task: the task.
            item: the next of `source`.
            state: that of the step before; None for the initial state.
            group: the processes that train together.
        """

    @abstractmethod
    def metrics(self, sums: Sums) -> dict[str, Any]:
        """Metrics from sums over steps; those of the training record."""

    @abstractmethod
    def evaluate(
        self,
        model: ModelT,
        task: TaskT,
        data: str | None,
        split: str,
        batch_size: int,
        state: Any = None,
        *,
        episodes: int | None = None,
        on_progress: Callable[[int], None] = lambda count: None,
    ) -> dict[str, Any]:
        """Evaluate a model on a split: its metrics, the headline metric among them.

        Args:
            model: the model.
            task: the task.
            data: the directory of the task's files, or None for generated data.
            split: "valid" or "test".
            batch_size: rows evaluated side by side.
            state: the state to start from, of one row; None for the initial state.
            episodes: episodes of each environment, for agents alone.
            on_progress: called with the number of units after each batch.

        Raises:
            UserError: where the split does not exist or an argument has no meaning for the objective.
        """

    def final_batch_size(self, task: TaskT, batch_size: int) -> int:
        """The batch size of a final evaluation, from that of validations."""
        return batch_size

    def validate(self, model: ModelT, task: TaskT, data: str | None, batch_size: int, state: Any) -> dict[str, Any]:
        """The evaluation in training: of the split "valid", from the carried state; arguments as in `evaluate`."""
        return self.evaluate(model, task, data, "valid", batch_size, state)

    def evaluation_counts(self, task: TaskT, data: str | None, split: str) -> dict[str, int]:
        """The size of a split; its units under the name of `unit`, where it is known."""
        return {}

    @abstractmethod
    def table(self, metrics: Mapping[str, Any], task: TaskT) -> list[list[str]]:
        """An evaluation as the lines of a table for people, headings first."""

    def summarize(self, metrics: Mapping[str, Any]) -> str:
        """A validation in one line."""
        return "  ".join(metric.show(metrics[metric.name]) for metric in self.summary)

    def locate(self, inputs: Mapping[str, Tensor]) -> str:
        """Where a step's inputs come from, in a few words."""
        return "an item of training"


def bar(fraction: float) -> str:
    """A bar of a table.

    >>> bar(0.25)
    '█████'
    """
    return "█" * max(0, round(BAR * fraction))
