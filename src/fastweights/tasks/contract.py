"""What a task gives to the loop that learns it: batches with a resumable cursor, or environments to act in.

A task owns its data, its loss and its metrics; it does not know which core learns it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

from torch import Tensor

if TYPE_CHECKING:
    from gymnasium.vector import VectorEnv


class Batch(NamedTuple):
    """One segment of every row, all `[B, T]`.

    inputs and targets are tokens; reads says where the loss looks, valid where time passes (elsewhere is padding),
    answers where the task's metrics look (within reads), groups the number by which metrics are told apart.
    """

    inputs: Tensor
    targets: Tensor
    reads: Tensor
    valid: Tensor
    answers: Tensor
    groups: Tensor


class Batches(Protocol):
    """An iterator of batches that can be saved and continued exactly."""

    def __iter__(self) -> Iterator[Batch]: ...

    def __next__(self) -> Batch: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Task(Protocol):
    """A supervised task on tokens."""

    vocabulary_size: int
    segment_length: int
    carries_state: bool
    """Whether a row goes on from batch to batch; if not, each batch starts from the initial state."""

    def group_names(self) -> dict[int, str]:
        """Names of the groups that metrics are told apart by."""

    def describe(self, data: str | None) -> str:
        """One line that says what will be read."""

    def training_batches(self, data: str | None, rows: int, seed: int, share: slice = slice(None)) -> Batches:
        """The batches of training; with a share, of those rows only, while the cursor is of all."""

    def evaluation_batches(self, data: str | None, split: str, rows: int) -> Batches:
        """The batches of a split, the same each time."""

    def evaluation_counts(self, data: str | None, split: str) -> dict[str, int]:
        """How many stories, or whatever else it is made of, and "tokens" a split has."""

    def vocabulary(self) -> tuple[str, ...]:
        """The words by their number."""


class ControlTask:
    """The base of tasks in which an agent acts; it learns by A2C from whole episodes.

    Observations are vectors of `observation_size` numbers, actions are numbers below `actions`, and an episode ends
    after at most `steps`.

    Args:
        discount: γ, what a reward is worth a step earlier.
        value_weight: weight of the value's squared error in the loss.
        entropy_weight: weight of the policy's entropy, which the loss rewards.
    """

    splits: ClassVar[tuple[str, ...]] = ("valid",)  # measured in training; the best model is chosen by the first
    observation_size: int
    actions: int
    steps: int

    def __init__(self, discount: float, value_weight: float, entropy_weight: float):
        if not 0 <= discount <= 1:
            raise ValueError(f"discount is {discount}; it must be between 0 and 1")
        self.discount, self.value_weight, self.entropy_weight = discount, value_weight, entropy_weight

    def describe(self) -> str:
        """One line that says in what the agent acts."""
        raise TypeError(f"{type(self).__name__} does not define describe")

    def environments(self, split: str, rows: int) -> VectorEnv:
        """As many environments of a split, stepped together; training is the split "train".

        Raises:
            UserError: where a package is missing or the split does not exist.
        """
        raise TypeError(f"{type(self).__name__} does not define environments")

    def bounds(self, split: str) -> dict[str, float]:
        """The exact expected reward of agents to compare with, by name; empty where nobody knows."""
        return {}
