"""What a task gives to the supervised loop: batches with a resumable cursor, a meter for its metrics, its size.

A task owns its data, its loss and its metrics; it does not know which core learns it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

from torch import Tensor


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
