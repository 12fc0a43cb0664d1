"""Sources of stories: a story for each global index 0, 1, 2, …

The story is a pure function of the index: to resume a run, the saved index is enough.
"""

from __future__ import annotations

import itertools
from bisect import bisect
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np

from fastweights.data.babi import EncodedStory, Story, encode
from fastweights.data.systematic import filter_questions
from fastweights.errors import UserError

if TYPE_CHECKING:
    from fastweights.data.generate.story_sizes import StorySizes

Item = TypeVar("Item")

STORIES_TRIED = 1_000  # for one with a question that may be asked


class StorySource(Protocol):
    """Stories by global index; a finite source raises IndexError after its last story, like a list."""

    @property
    def epoch_length(self) -> int | None:
        """The number of stories in an epoch; None: no epochs."""

    def __getitem__(self, index: int) -> EncodedStory:
        """Return the story of a global index, counted through all epochs."""


class OrderedStories:
    """Each story once, in the given order: the source for evaluation."""

    def __init__(self, stories: Iterable[Story]) -> None:
        self._stories = _encoded(stories)
        self.epoch_length = len(self._stories)

    def __getitem__(self, index: int) -> EncodedStory:
        return self._stories[index]


class ShuffledStories:
    """Each story once per epoch, in a random order by seed and epoch: the source for training on files."""

    def __init__(self, stories: Iterable[Story], seed: int) -> None:
        self._stories = _encoded(stories)
        self._seed = seed
        self._epoch = -1
        self.epoch_length = len(self._stories)

    def __getitem__(self, index: int) -> EncodedStory:
        epoch, position = divmod(index, self.epoch_length)
        if epoch != self._epoch:
            self._order = _permutation(self.epoch_length, self._seed, epoch)
            self._epoch = epoch
        return self._stories[self._order[position]]


class GeneratedStories:
    """Endless generated stories: the source for training without files.

    Args:
        babi_tasks: bAbI tasks of the stories.
        seed: seed of tasks and stories.
        weights: relative frequencies of the tasks' stories (not questions), by bAbI task; None: all equal.
        held_out: fraction of held-out combinations, without questions here (see `fastweights.data.systematic`).
        sizes: sizes of the stories; None: as in bAbI.

    Raises:
        UserError: for no, unknown or impossible bAbI tasks, or weights that do not fit them.
    """

    epoch_length = None

    def __init__(
        self,
        babi_tasks: Sequence[int],
        seed: int,
        weights: Mapping[int, float] | None = None,
        held_out: float = 0.0,
        sizes: StorySizes | None = None,
    ) -> None:
        # Imported here: stories from files do not need the generators.
        from fastweights.data.generate import check_babi_task, generate_story
        from fastweights.data.generate.story_sizes import BABI_SIZES

        self._babi_tasks, self._sizes = tuple(babi_tasks), sizes or BABI_SIZES
        for babi_task in self._babi_tasks:
            check_babi_task(babi_task, self._sizes)
        if not self._babi_tasks:
            raise UserError(
                "no bAbI task is named to generate stories of; name at least one, for example --babi-tasks 1"
            )
        self._seed = seed
        self._cumulative_weights = list(itertools.accumulate(_proportions(self._babi_tasks, weights)))
        self._generate = generate_story
        self._held_out = held_out
        for babi_task in self._babi_tasks if held_out else ():
            if not any(self._filtered(babi_task, index) for index in range(STORIES_TRIED)):
                raise UserError(
                    f"None of {STORIES_TRIED:,} stories of bAbI task {babi_task} has a question outside the held-out "
                    f"combinations, {held_out:.2%} of all; make task.held_out smaller."
                )
        # Resumed streams read stories again; generation costs far more than the cache.
        self._story = lru_cache(maxsize=256)(self._generate_encoded)

    def __getitem__(self, index: int) -> EncodedStory:
        return self._story(index)

    def babi_task(self, index: int) -> int:
        """Return the bAbI task of a story, without generating the story."""
        # A hash is as uniform as the first number of a new generator, at a twentieth of its cost.
        digest = blake2b(f"task of {self._seed}/{index}".encode(), digest_size=6).digest()
        draw = int.from_bytes(digest, "big") / 2**48
        return self._babi_tasks[bisect(self._cumulative_weights, draw * self._cumulative_weights[-1])]

    def _generate_encoded(self, index: int) -> EncodedStory:
        babi_task = self.babi_task(index)
        # A story without any question left is replaced by one with an index of its own.
        for attempt in itertools.count():
            story = self._filtered(babi_task, index + (attempt << 48))
            if story is not None:
                return encode(story)
        raise AssertionError("unreachable")

    def _filtered(self, babi_task: int, index: int) -> Story | None:
        story = self._generate(babi_task, self._seed, index, self._sizes)
        return filter_questions(story, False, self._held_out) if self._held_out else story


def shuffled(items: Sequence[Item], seed: int = 0) -> list[Item]:
    """Return the items in a random order by seed; evaluation reads bAbI tasks in mixed order.

    >>> shuffled("abc") == shuffled("abc"), sorted(shuffled("abc"))
    (True, ['a', 'b', 'c'])
    """
    return [items[position] for position in _permutation(len(items), seed, epoch=0)]


def _permutation(length: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.Generator(np.random.PCG64([seed, epoch])).permutation(length)


def _encoded(stories: Iterable[Story]) -> list[EncodedStory]:
    encoded = [encode(story) for story in stories]
    if not encoded:
        raise UserError("there are no stories to read; name at least one bAbI task, for example --babi-tasks 1")
    return encoded


def _proportions(babi_tasks: Sequence[int], weights: Mapping[int, float] | None) -> list[float]:
    if weights is None:
        return [1.0] * len(babi_tasks)
    if set(weights) != set(babi_tasks):
        babi_task = min(set(weights) ^ set(babi_tasks))
        raise UserError(f"task {babi_task} stands in only one of babi_tasks and weights; give each task a weight")
    if not all(0 <= weight < float("inf") for weight in weights.values()) or not any(weights.values()):
        raise UserError(f"the weights {dict(weights)} are no proportions; give numbers from 0 up, not all 0")
    return [float(weights[babi_task]) for babi_task in babi_tasks]
