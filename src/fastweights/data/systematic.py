"""A systematic split: some combinations of names are never asked about in training, and only they are in evaluation.

Every name is met in training, and so is every pair that is not held out; what is new is the combination (as in the
"sys-bAbI" of later papers). It is a property of questions, hence works on any story, generated or read.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator

from fastweights.data.babi import Question, Statement, Story, words
from fastweights.data.names import NAMES

_NAMES = frozenset(name for names in NAMES.values() for name in names)


def combination(story: Story, question: Question) -> tuple[str, ...]:
    """The names that a question, its answer and its supporting facts speak of, in alphabetical order.

    >>> story = Story(1, (Statement("Mary went to the kitchen."), Question("Where is Mary?", "kitchen", (1,))))
    >>> combination(story, story.lines[1])
    ('kitchen', 'mary')
    """
    lines = (question, *(story.lines[number - 1] for number in question.support))
    said = words(Story(story.babi_task, lines))
    return tuple(sorted(_NAMES.intersection(word for part in said for word in part.split(","))))


def is_held_out(babi_task: int, names: tuple[str, ...], fraction: float) -> bool:
    """Whether a task's combination is among those that training never asks about; the same on every machine."""
    return zlib.crc32("/".join((str(babi_task), *names)).encode()) < fraction * 2**32


def filter_questions(story: Story, held_out: bool, fraction: float) -> Story | None:
    """The story with those questions only whose combination is held out (or is not); None where none is left.

    Args:
        story: any story.
        held_out: keep the questions about combinations that are held out, rather than the others.
        share: how many of all combinations are held out, between 0 and 1.
    """
    lines: list[Statement | Question] = []
    place: dict[int, int] = {}  # of each statement, by its old number
    end = 0
    for number, line in enumerate(story.lines, 1):
        if isinstance(line, Statement):
            lines.append(line)
            place[number] = len(lines)
        elif is_held_out(story.babi_task, combination(story, line), fraction) == held_out:
            lines.append(Question(line.text, line.answer, tuple(place[fact] for fact in line.support)))
            end = len(lines)
    return Story(story.babi_task, tuple(lines[:end])) if end else None


def filter_stories(stories: Iterable[Story], held_out: bool, fraction: float) -> Iterator[Story]:
    """What `part_of` leaves of stories."""
    parts = (filter_questions(story, held_out, fraction) for story in stories)
    return (part for part in parts if part is not None)
