"""Where stories come from: a source gives the story of every global index 0, 1, 2, ...

The story is a pure function of the index, so a saved index is all it takes to go on where a run stopped.
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
from fastweights.data.systematic import part_of
from fastweights.errors import UserError

if TYPE_CHECKING:
    from fastweights.data.generate.setting import Setting

Item = TypeVar("Item")


class StorySource(Protocol):
    """Stories by global index; a source that ends raises IndexError past its last story, as a list does."""

    @property
    def epoch_length(self) -> int | None:
        """The number of stories in an epoch; None: there are no epochs."""

    def __getitem__(self, index: int) -> EncodedStory:
        """The story of a global index, which goes on counting through the epochs."""


class InOrder:
    """Each story once, in the given order: a source for evaluation."""

    def __init__(self, stories: Iterable[Story]) -> None:
        self._stories = _encoded(stories)
        self.epoch_length = len(self._stories)

    def __getitem__(self, index: int) -> EncodedStory:
        return self._stories[index]


class FileStories:
    """Each story once in every epoch, in an order that only the seed and the epoch's number decide."""

    def __init__(self, stories: Iterable[Story], seed: int) -> None:
        self._stories = _encoded(stories)
        self._seed = seed
        self._epoch = -1
        self.epoch_length = len(self._stories)

    def __getitem__(self, index: int) -> EncodedStory:
        epoch, place = divmod(index, self.epoch_length)
        if epoch != self._epoch:
            self._order = _permutation(self.epoch_length, self._seed, epoch)
            self._epoch = epoch
        return self._stories[self._order[place]]


class GeneratedStories:
    """Endless new stories of the given tasks, each task drawn equally often or in proportion to its weight.

    Weights count stories, not questions: `{1: 1, 4: 5}` draws five stories of task 4 for one of task 1. With a share of
    combinations held out, nothing is asked about these (see `fastweights.data.systematic`). A setting changes the sizes
    of the stories (see `fastweights.data.generate.setting`).
    """

    epoch_length = None

    def __init__(
        self,
        tasks: Sequence[int],
        seed: int,
        weights: Mapping[int, float] | None = None,
        held_out: float = 0.0,
        setting: Setting | None = None,
    ) -> None:
        # Imported here so that reading files does not load the generators.
        from fastweights.data.generate import AS_IN_BABI, check_task, generate_story

        self._tasks, self._setting = tuple(tasks), setting or AS_IN_BABI
        for task in self._tasks:
            check_task(task, self._setting)
        if not self._tasks:
            raise UserError("no task is named to generate stories of; name at least one, for example --babi-tasks 1")
        self._seed = seed
        self._shares = list(itertools.accumulate(_proportions(self._tasks, weights)))
        self._generate = generate_story
        self._held_out = held_out
        # Rows that resume ask for stories they have just read; generating one costs far more than keeping it.
        self._story = lru_cache(maxsize=256)(self._make)

    def __getitem__(self, index: int) -> EncodedStory:
        return self._story(index)

    def task(self, index: int) -> int:
        """Return the task of the story with this index, without making the story."""
        # A hash is as even as a generator's first number, and costs a twentieth of making a generator for each story.
        digest = blake2b(f"task of {self._seed}/{index}".encode(), digest_size=6).digest()
        draw = int.from_bytes(digest, "big") / 2**48
        return self._tasks[bisect(self._shares, draw * self._shares[-1])]

    def _make(self, index: int) -> EncodedStory:
        task = self.task(index)
        # a story of which nothing is left is made anew, from an index that no other story has
        for attempt in itertools.count():
            story = self._generate(task, self._seed, index + (attempt << 48), self._setting)
            kept = part_of(story, False, self._held_out) if self._held_out else story
            if kept is not None:
                return encode(kept)
        raise AssertionError("unreachable")


def shuffled(items: Sequence[Item], seed: int = 0) -> list[Item]:
    """Return the items in an order that only the seed decides, so that evaluation reads the tasks mixed.

    >>> shuffled("abc") == shuffled("abc"), sorted(shuffled("abc"))
    (True, ['a', 'b', 'c'])
    """
    return [items[place] for place in _permutation(len(items), seed, epoch=0)]


def _permutation(length: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.Generator(np.random.PCG64([seed, epoch])).permutation(length)


def _encoded(stories: Iterable[Story]) -> list[EncodedStory]:
    encoded = [encode(story) for story in stories]
    if not encoded:
        raise UserError("there are no stories to read; name at least one task, for example --babi-tasks 1")
    return encoded


def _proportions(tasks: Sequence[int], weights: Mapping[int, float] | None) -> list[float]:
    if weights is None:
        return [1.0] * len(tasks)
    if set(weights) != set(tasks):
        task = min(set(weights) ^ set(tasks))
        raise UserError(f"task {task} stands in only one of task.tasks and task.weights; give each task a weight")
    if not all(0 <= weight < float("inf") for weight in weights.values()) or not any(weights.values()):
        raise UserError(f"the weights of tasks {dict(weights)} are no proportions; give numbers from 0 up, not all 0")
    return [float(weights[task]) for task in tasks]
