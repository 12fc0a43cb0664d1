"""catbAbI: stories of bAbI joined into endless streams (Schlag et al. 2021, section 4.1)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch

from fastweights.data import babi
from fastweights.data.generate.story_sizes import BABI_SIZES, StorySizes
from fastweights.data.sources import GeneratedStories, OrderedStories, ShuffledStories, shuffled
from fastweights.data.streams import Streams
from fastweights.data.systematic import filter_stories
from fastweights.data.vocabulary import Vocabulary
from fastweights.errors import UserError
from fastweights.specs import Count, Probability, Size
from fastweights.tasks.contract import Batch, SequenceTask

LARGEST_SPLIT = 3_000_000  # lines that are generated before the first step, in about a minute


class CatBabi(SequenceTask):
    """Answer the questions in a stream of stories; the state is carried from story to story.

    Args:
        mode: "qa" has a loss at the answers alone, "lm" at every next word; metrics are measured at the answers.
        babi_tasks: which of bAbI's twenty tasks, such as "1,2,4-20"; "all" means all twenty.
        segment_length: tokens of a row in each batch (truncated BPTT).
        as_published: reproduce the authors' counts: lose the last story of each file, and count the twenty task
            numbers among the words (V = 200).
        validation_stories: stories of each task in a generated validation or test split.
        held_out: share of the combinations of names (person × place × object …) that no training question concerns;
            all questions of validation and test concern them (systematic generalisation).
        people, places, objects, questions, statements, distractors: sizes of generated stories of tasks 1–3 and 5–14,
            as in bAbI if not given (`data.generate.story_sizes.StorySizes`).
    """

    carries_state = True

    def __init__(
        self,
        *,
        mode: Literal["qa", "lm"] = "qa",
        babi_tasks: str | int = "all",
        segment_length: Size = 200,
        as_published: bool = False,
        validation_stories: Size = 100,
        held_out: Probability = 0.0,
        people: Size | None = None,
        places: Size | None = None,
        objects: Size | None = None,
        questions: Size = 5,
        statements: Size = 2,
        distractors: Count = 0,
    ):
        self.mode, self.segment_length, self.as_published = mode, segment_length, as_published
        self.validation_stories, self.held_out = validation_stories, held_out
        self.sizes = StorySizes(people, places, objects, questions, statements, distractors)
        every = tuple(range(1, babi.BABI_TASK_COUNT + 1))
        self.babi_tasks = every if babi_tasks == "all" else babi.parse_babi_tasks(str(babi_tasks))
        lines = validation_stories * len(self.babi_tasks) * self.sizes.lines
        if lines > LARGEST_SPLIT:
            raise ValueError(
                f"validation would have {lines:,} lines or more, which are generated before the first step; make "
                f"validation_stories smaller, for at most {LARGEST_SPLIT:,} lines"
            )

    def prepare(self, data: str | None) -> Vocabulary:
        """The vocabulary, which is the same for all stories."""
        return Vocabulary(babi.vocabulary(self.as_published))

    def group_names(self) -> dict[int, str]:
        """bAbI's names of its tasks."""
        return dict(enumerate(babi.BABI_TASK_NAMES, 1))

    def files(self, data: str | None) -> list[Path]:
        names = [babi.file_name(task, split) for split in ("train", "valid") for task in self.babi_tasks]
        return [] if data is None else [Path(data) / name for name in names]

    def describe(self, data: str | None) -> str:
        origin = "endless generated stories" if data is None else f"the stories in {data}"
        return f"{origin} of bAbI's tasks {babi.format_babi_tasks(self.babi_tasks)}, {self.mode.upper()} mode"

    def training_batches(
        self, data: str | None, batch_size: int, seed: int, shard: slice = slice(None)
    ) -> StoryBatches:
        source: GeneratedStories | ShuffledStories
        if data is None:
            source = GeneratedStories(self.babi_tasks, seed, self._weights(), self.held_out, self.sizes)
        else:
            if self.sizes != BABI_SIZES:
                raise UserError("Sizes of stories (task.people …) are for generated ones; leave them or --data out.")
            stories = _read(data, "train", self.babi_tasks, self.as_published)
            source = ShuffledStories(self._part(stories, held_out=False), seed)
        return StoryBatches(Streams(source, batch_size, self.segment_length, shard), self.mode)

    def evaluation_batches(self, data: str | None, split: str, batch_size: int) -> StoryBatches:
        stories = shuffled(self.evaluation_stories(data, split))
        return StoryBatches(Streams(OrderedStories(stories), batch_size, self.segment_length), self.mode)

    def evaluation_stories(self, data: str | None, split: str) -> list[babi.Story]:
        """The stories of a split, task after task; generated ones are the same each time.

        Raises:
            UserError: where files are missing or the split does not exist.
        """
        if data is not None:
            return self._part(_read(data, split, self.babi_tasks, self.as_published), held_out=True)
        from fastweights.data.generate import check_babi_task, generate_story

        for task in self.babi_tasks:
            check_babi_task(task, self.sizes)
        seed = {"valid": -1, "test": -2}.get(split)  # seeds of training are not negative
        if seed is None:
            raise UserError(f'Generated stories have the splits "valid" and "test", not "{split}"; choose one of them.')
        count = range(self.validation_stories)
        stories = [generate_story(task, seed, index, self.sizes) for task in self.babi_tasks for index in count]
        return self._part(stories, held_out=True)

    def _weights(self) -> dict[int, float]:
        """Weights of the tasks in the stream: equally many questions of each, as in bAbI's files."""
        from fastweights.data.generate import questions_per_story

        return {task: 1 / questions_per_story(task, self.sizes) for task in self.babi_tasks}

    def evaluation_counts(self, data: str | None, split: str) -> dict[str, int]:
        stories = self.evaluation_stories(data, split)
        return {"stories": len(stories), "tokens": sum(len(babi.words(story)) + 1 for story in stories)}

    def _part(self, stories: list[babi.Story], held_out: bool) -> list[babi.Story]:
        if not self.held_out:
            return stories
        part = list(filter_stories(stories, held_out, self.held_out))
        if not part:
            kind, change = ("held-out", "larger") if held_out else ("other", "smaller")
            raise UserError(
                f"No question of these {len(stories):,} stories concerns {kind} combinations of names; make "
                f"task.held_out {change}, or give more stories."
            )
        return part


@lru_cache(maxsize=4)
def _read(data: str, split: str, tasks: tuple[int, ...], as_published: bool) -> list[babi.Story]:
    return babi.read_split(data, split, tasks, as_published)


class StoryBatches:
    """Segments of the streams as batches of tensors; the groups are bAbI's tasks."""

    def __init__(self, streams: Streams, mode: str):
        self._streams, self._mode = streams, mode

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        inputs, targets, tasks = (torch.from_numpy(array) for array in next(self._streams))
        mask, answer_mask = inputs != babi.PAD, inputs == babi.QUESTION_MARK
        return Batch(inputs, targets, answer_mask if self._mode == "qa" else mask, mask, answer_mask, tasks)

    def state_dict(self) -> dict[str, Any]:
        return self._streams.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._streams.load_state_dict(state)
