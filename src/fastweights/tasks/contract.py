"""The contract of tasks: data to learn from, as batches of token sequences or as environments.

A task owns its data and says what sizes a model; an objective (`fastweights.objectives`) owns loss and metrics. Neither
knows which core learns.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol

from torch import Tensor

from fastweights import specs
from fastweights.data.vocabulary import Vocabulary
from fastweights.errors import UserError
from fastweights.specs import Width

if TYPE_CHECKING:
    import torch
    from gymnasium.vector import VectorEnv


@dataclass(frozen=True)
class Spaces:
    """What an agent observes and does: vectors of `observation_size` numbers, `num_actions` discrete actions."""

    observation_size: Width
    num_actions: Width

    def to_dict(self) -> dict[str, Any]:
        """The sizes as plain values."""
        return asdict(self)


Interface = Vocabulary | Spaces
"""What sizes a model, and gives its numbers a meaning; made when a run begins, and saved in each checkpoint."""


def interface_from_dict(values: dict[str, Any]) -> Interface:
    """The interface that `to_dict` made plain.

    Raises:
        UserError: where the values are of another form.
    """
    if "words" in values:
        return specs.call("vocabulary", _vocabulary, values)
    return specs.call("interface", Spaces, values)


def _vocabulary(words: str, unit: Literal["words", "characters", "tokens"]) -> Vocabulary:
    return Vocabulary.from_dict({"words": words, "unit": unit})


class Batch(NamedTuple):
    """One segment of every row, all `[B, T]`.

    inputs and targets are tokens. loss_mask is True at positions of the loss, mask False at padding, answer_mask True
    at answers (within loss_mask), resets, where given, True where a row starts from the initial state. groups holds the
    number of each token's group, by which metrics are split. lr_scale multiplies the learning rate of the step.
    """

    inputs: Tensor
    targets: Tensor
    loss_mask: Tensor
    mask: Tensor
    answer_mask: Tensor
    groups: Tensor
    resets: Tensor | None = None
    lr_scale: float = 1.0

    def to(self, device: torch.device) -> Batch:
        """The batch on a device."""
        moved: list[Any] = [x.to(device) if isinstance(x, Tensor) else x for x in self]
        return Batch(*moved)


class Source(Protocol):
    """An iterator of training items whose cursor can be saved and restored exactly."""

    def __iter__(self) -> Iterator[Any]: ...

    def __next__(self) -> Any: ...

    def state_dict(self) -> dict[str, Any]:
        """The cursor, as plain values."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a cursor.

        Raises:
            UserError: where it is of other data.
        """
        ...


class GeneratedBatches:
    """A source of endless batches, each generated from its number; the cursor is the number of the next one.

    Args:
        generate: gives the batch of a number.
    """

    def __init__(self, generate: Callable[[int], Batch]):
        self._generate, self._next = generate, 0

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        self._next += 1
        return self._generate(self._next - 1)

    def state_dict(self) -> dict[str, Any]:
        """The cursor."""
        return {"next": self._next}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the cursor."""
        self._next = state["next"]


class Task(ABC):
    """The base of all tasks."""

    objective: ClassVar[str]
    """The name of the objective with which a task is trained by default."""
    required_arguments: ClassVar[tuple[str, ...]] = ()
    """The masks ("mask", "resets") that a core must support to learn this task."""

    @abstractmethod
    def prepare(self, data: str | None) -> Interface:
        """Read or make what sizes a model.

        Args:
            data: the directory of the task's files, or None for generated data.

        Raises:
            UserError: where files are missing or the task takes none.
        """

    def largest_interface(self) -> Interface:
        """The interface, or where it depends on files, the largest that the options allow."""
        return self.prepare(None)

    def files(self, data: str | None) -> list[Path]:
        """The files in the directory that training and validation read; none for generated data."""
        return []

    def restore(self, interface: Interface) -> None:
        """Take the interface of a trained model in place of `prepare`'s.

        Raises:
            UserError: where they do not fit.
        """
        own = self.prepare(None)
        if own != interface:
            raise UserError(
                f"The model was trained with {describe(interface)}, and the task has {describe(own)}; set the task as "
                "in training, or choose another checkpoint."
            )

    @abstractmethod
    def describe(self, data: str | None) -> str:
        """One line that says what the data are."""

    def memory(self) -> int:
        """Bytes that the generated data take at least, before the first step; 0 where that is not known."""
        return 0


class SequenceTask(Task):
    """The base of tasks on token sequences."""

    objective = "answers"
    required_arguments: ClassVar[tuple[str, ...]] = ("mask",)
    carries_state: ClassVar[bool] = False
    """Whether a row goes on from batch to batch; if not, each batch starts from the initial state."""
    segment_length: int = 1
    """Tokens of a row in each batch, at least; the estimate of memory takes it."""

    @abstractmethod
    def training_batches(self, data: str | None, batch_size: int, seed: int, shard: slice = slice(None)) -> Source:
        """Endless batches of training.

        Args:
            data: the directory of the task's files, or None for generated data.
            batch_size: rows of a whole batch.
            seed: of the data and of their order.
            shard: this process's rows of each batch; the cursor is that of all.

        Raises:
            UserError: where files are missing or the task takes none.
        """

    @abstractmethod
    def evaluation_batches(self, data: str | None, split: str, batch_size: int) -> Iterator[Batch]:
        """The batches of a split, the same each time.

        Args:
            data: the directory of the task's files, or None for generated data.
            split: "valid" or "test".
            batch_size: rows of a batch.

        Raises:
            UserError: where files are missing or the split does not exist.
        """

    @abstractmethod
    def evaluation_counts(self, data: str | None, split: str) -> dict[str, int]:
        """The number of stories or sequences of a split, and of its "tokens"."""

    def group_names(self) -> dict[int, str]:
        """Names of the groups that metrics are split by."""
        return {}


class EnvironmentTask(Task):
    """The base of tasks in which an agent acts; an episode ends after at most `steps`."""

    objective = "a2c"
    splits: ClassVar[tuple[str, ...]] = ("valid",)
    """The splits of a validation; the best model is chosen by the first."""
    steps: int

    @abstractmethod
    def environments(self, split: str, count: int) -> VectorEnv:
        """Vectorised environments of a split, stepped together.

        Args:
            split: "train", "valid" or "test".
            count: the number of environments.

        Raises:
            UserError: where a package is missing or the split does not exist.
        """

    def bounds(self, split: str) -> dict[str, float]:
        """The exact expected return of agents to compare with, by name; empty where it is unknown."""
        return {}


def describe(interface: Interface) -> str:
    """An interface in a few words."""
    if isinstance(interface, Spaces):
        return f"observations of size {interface.observation_size} and {interface.num_actions} actions"
    return f"a vocabulary of {len(interface)} tokens"


def refuse_data(data: str | None) -> None:
    """Refuse files for a task that makes its own environments.

    Raises:
        UserError: where a directory is given.
    """
    if data is not None:
        raise UserError("The task makes its own environments; leave --data out.")
