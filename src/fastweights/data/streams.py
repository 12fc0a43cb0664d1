"""Batches of story streams for truncated BPTT, with a cursor for exact resumption."""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

import numpy as np

from fastweights.data.babi import PAD, EncodedStory
from fastweights.data.sources import StorySource
from fastweights.errors import UserError


class Segment(NamedTuple):
    """The next tokens of each stream: three arrays `[B, T]` int64, 0 at padding."""

    inputs: np.ndarray
    targets: np.ndarray
    babi_tasks: np.ndarray


class Streams:
    """A batch of B streams of concatenated stories, cut into segments of T tokens.

    The next story goes to the shortest stream, the first of equals. Between epochs all streams end, with padding. A
    shard is a slice of the batch, for one of several data-parallel processes; all of them keep the same cursor.

    >>> for segment in Streams(OrderedStories(stories), batch_size=8, segment_length=200):  # doctest: +SKIP
    ...     evaluate(segment.inputs, segment.targets)

    Raises:
        UserError: for a batch size or a segment length below 1.
    """

    def __init__(self, source: StorySource, batch_size: int, segment_length: int, shard: slice = slice(None)) -> None:
        if batch_size < 1 or segment_length < 1:
            raise UserError(
                f"the batch size is {batch_size} and the segment length {segment_length}; both must be at least 1"
            )
        self._source = source
        self._segment_length = segment_length
        self._shard = shard
        self._streams = [_Stream() for _ in range(batch_size)]
        self._next = 0

    def __iter__(self) -> Streams:
        return self

    def __next__(self) -> Segment:
        return self.next_segment()

    def next_segment(self) -> Segment:
        """Return the next `[B, T]` tokens; raise StopIteration at the end of the source."""
        if self._at_epoch_boundary() and self._is_empty() and self._source_has_ended():
            raise StopIteration
        self._append_stories()
        # Padding and its bAbI task are 0: a stream writes only its own tokens.
        shape = (len(self._streams), self._segment_length)
        segment = Segment(*(np.full(shape, PAD, dtype=np.int64) for _ in Segment._fields))
        for number, stream in enumerate(self._streams):
            stream.read(*(array[number] for array in segment))
        return Segment(*(array[self._shard] for array in segment))

    def state_dict(self) -> dict[str, Any]:
        """Return the cursor: the index of the next story, the stories in each stream, the offset in their first."""
        return {
            "next": self._next,
            "epoch_length": self._source.epoch_length,
            "stories": [[index for index, _ in stream.stories] for stream in self._streams],
            "offsets": [stream.offset for stream in self._streams],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved cursor, with the same segments from the same source.

        Raises:
            UserError: if the batch size or the epoch length differs.
        """
        if len(state["stories"]) != len(self._streams):
            raise UserError(
                f"the saved cursor has a batch size of {len(state['stories'])} and this run one of "
                f"{len(self._streams)}; resume with the saved batch size"
            )
        if state["epoch_length"] != self._source.epoch_length:
            raise UserError(
                f"the saved cursor is of epochs of {_epoch(state['epoch_length'])} and this run's are of "
                f"{_epoch(self._source.epoch_length)}; resume with the same data and bAbI tasks"
            )
        self._next = state["next"]
        self._streams = [_Stream() for _ in state["stories"]]
        for stream, indices, offset in zip(self._streams, state["stories"], state["offsets"], strict=True):
            for index in indices:
                stream.append(index, self._source[index])
            stream.skip(offset)

    def _is_empty(self) -> bool:
        return not any(stream.length for stream in self._streams)

    def _at_epoch_boundary(self) -> bool:
        epoch_length = self._source.epoch_length
        return epoch_length is not None and self._next % epoch_length == 0

    def _source_has_ended(self) -> bool:
        try:
            self._source[self._next]
        except IndexError:
            return True
        return False

    def _append_stories(self) -> None:
        while True:
            shortest = min(self._streams, key=_length)
            epoch_has_ended = self._at_epoch_boundary() and not self._is_empty()
            if shortest.length >= self._segment_length or epoch_has_ended:
                return
            shortest.append(self._next, self._source[self._next])
            self._next += 1


class _Stream:
    """A queue of stories: `length` unread tokens, the next of them at `offset` in the first story."""

    __slots__ = ("length", "offset", "stories")

    def __init__(self) -> None:
        self.stories: deque[tuple[int, EncodedStory]] = deque()
        self.offset = 0
        self.length = 0

    def append(self, index: int, story: EncodedStory) -> None:
        self.stories.append((index, story))
        self.length += len(story.inputs)

    def skip(self, count: int) -> None:
        self.offset += count
        self.length -= count

    def read(self, inputs: np.ndarray, targets: np.ndarray, babi_tasks: np.ndarray) -> None:
        """Move tokens into three arrays `[T]`, up to the end of the arrays or of the stream."""
        position = 0
        while position < len(inputs) and self.stories:
            _, story = self.stories[0]
            count = min(len(inputs) - position, len(story.inputs) - self.offset)
            target, source = slice(position, position + count), slice(self.offset, self.offset + count)
            inputs[target] = story.inputs[source]
            targets[target] = story.targets[source]
            babi_tasks[target] = story.babi_task
            position += count
            self.skip(count)
            if self.offset == len(story.inputs):
                self.stories.popleft()
                self.offset = 0


def _length(stream: _Stream) -> int:
    return stream.length


def _epoch(length: int | None) -> str:
    return "no fixed length" if length is None else f"{length:,} stories"
