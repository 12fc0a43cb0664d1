"""Stories joined end to end in rows, cut into segments, with a cursor that goes on exactly where it stood."""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

import numpy as np

from fastweights.data.babi import PAD, EncodedStory
from fastweights.data.sources import StorySource
from fastweights.errors import UserError


class Segment(NamedTuple):
    """The next tokens of every row: all three arrays `[B, L]` int64, and 0 where a row has run out."""

    inputs: np.ndarray
    targets: np.ndarray
    babi_tasks: np.ndarray


class Streams:
    """Rows of joined stories; the shortest row, the lowest of equals, is always fed the next story.

    With a share, only those rows are given, for one of several processes that read the streams together.
    When an epoch's stories are used up the rows are read to their ends, padded, before the next epoch starts.

    >>> for segment in Streams(InOrder(stories), rows=8, length=200):  # doctest: +SKIP
    ...     evaluate(segment.inputs, segment.targets)
    """

    def __init__(self, source: StorySource, rows: int, length: int, share: slice = slice(None)) -> None:
        if rows < 1 or length < 1:
            raise UserError(f"{rows} rows of {length} tokens cannot be read; give at least one row and one token")
        self._source = source
        self._length = length
        self._share = share
        self._rows = [_Row() for _ in range(rows)]
        self._next = 0

    def __iter__(self) -> Streams:
        return self

    def __next__(self) -> Segment:
        return self.next_segment()

    def next_segment(self) -> Segment:
        """Return the next `[B, L]` tokens; raise StopIteration when the source has ended."""
        if self._at_epoch_boundary() and self._is_empty() and self._source_has_ended():
            raise StopIteration
        self._feed()
        # Padding and the bAbI task at padding are 0, so the rows need only write what they have.
        shape = (len(self._rows), self._length)
        segment = Segment(*(np.full(shape, PAD, dtype=np.int64) for _ in Segment._fields))
        for number, row in enumerate(self._rows):
            row.read(*(array[number] for array in segment))
        return Segment(*(array[self._share] for array in segment))

    def state_dict(self) -> dict[str, Any]:
        """Return the cursor: the next story's index, and each row's stories with the place in the first."""
        return {
            "next": self._next,
            "epoch_length": self._source.epoch_length,
            "rows": [[index for index, _ in row.stories] for row in self._rows],
            "offsets": [row.offset for row in self._rows],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved cursor; the same source then gives the same segments as it would have."""
        if len(state["rows"]) != len(self._rows):
            raise UserError(
                f"the saved cursor has {len(state['rows'])} rows of stories and this run {len(self._rows)}; "
                "resume with the batch size it was saved with"
            )
        if state["epoch_length"] != self._source.epoch_length:
            raise UserError(
                f"the saved cursor is of epochs of {_epoch(state['epoch_length'])} and this run's are of "
                f"{_epoch(self._source.epoch_length)}; resume with the data and tasks it was saved with"
            )
        self._next = state["next"]
        self._rows = [_Row() for _ in state["rows"]]
        for row, indices, offset in zip(self._rows, state["rows"], state["offsets"], strict=True):
            for index in indices:
                row.append(index, self._source[index])
            row.skip(offset)

    def _is_empty(self) -> bool:
        return not any(row.left for row in self._rows)

    def _at_epoch_boundary(self) -> bool:
        epoch_length = self._source.epoch_length
        return epoch_length is not None and self._next % epoch_length == 0

    def _source_has_ended(self) -> bool:
        try:
            self._source[self._next]
        except IndexError:
            return True
        return False

    def _feed(self) -> None:
        while True:
            row = min(self._rows, key=_left)  # the first of equals, hence the lowest
            epoch_is_used_up = self._at_epoch_boundary() and not self._is_empty()
            if row.left >= self._length or epoch_is_used_up:
                return
            row.append(self._next, self._source[self._next])
            self._next += 1


class _Row:
    """The unread stories of one row: `left` tokens, of which the next is `offset` into the first story."""

    __slots__ = ("left", "offset", "stories")

    def __init__(self) -> None:
        self.stories: deque[tuple[int, EncodedStory]] = deque()
        self.offset = 0
        self.left = 0

    def append(self, index: int, story: EncodedStory) -> None:
        self.stories.append((index, story))
        self.left += len(story.inputs)

    def skip(self, count: int) -> None:
        self.offset += count
        self.left -= count

    def read(self, inputs: np.ndarray, targets: np.ndarray, babi_tasks: np.ndarray) -> None:
        """Move tokens into three arrays `[L]` until they are full or the row is empty."""
        place = 0
        while place < len(inputs) and self.stories:
            _, story = self.stories[0]
            count = min(len(inputs) - place, len(story.inputs) - self.offset)
            there = slice(place, place + count)
            here = slice(self.offset, self.offset + count)
            inputs[there] = story.inputs[here]
            targets[there] = story.targets[here]
            babi_tasks[there] = story.babi_task
            place += count
            self.skip(count)
            if self.offset == len(story.inputs):
                self.stories.popleft()
                self.offset = 0


def _left(row: _Row) -> int:
    return row.left


def _epoch(length: int | None) -> str:
    return "no fixed length" if length is None else f"{length:,} stories"
