"""A systematic split: training has no questions about held-out combinations of names, evaluation no others.

Every single name occurs in training, only the held-out combinations do not (compare the "sys-bAbI" of later papers).
The split is by question, for stories from generators and from files.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator

from fastweights.data.babi import Question, Statement, Story, words
from fastweights.data.names import NAMES

_NAMES = frozenset(name for names in NAMES.values() for name in names)


def combination(story: Story, question: Question) -> tuple[str, ...]:
    """Return the names in a question, its answer and its supporting facts, in alphabetical order.

    >>> story = Story(1, (Statement("Mary went to the kitchen."), Question("Where is Mary?", "kitchen", (1,))))
    >>> combination(story, story.lines[1])
    ('kitchen', 'mary')
    """
    lines = (question, *(story.lines[number - 1] for number in question.support))
    text = words(Story(story.babi_task, lines))
    return tuple(sorted(_NAMES.intersection(word for part in text for word in part.split(","))))


def is_held_out(babi_task: int, names: tuple[str, ...], fraction: float) -> bool:
    """Return whether a bAbI task's combination is held out; equal on every machine."""
    return zlib.crc32("/".join((str(babi_task), *names)).encode()) < fraction * 2**32


def filter_questions(story: Story, held_out: bool, fraction: float) -> Story | None:
    """Return the story with only the held-out (or only the other) questions; None if no question is left.

    Args:
        story: any story.
        held_out: whether to select the questions about held-out combinations, or the others.
        fraction: held-out fraction of all combinations, between 0 and 1.
    """
    lines: list[Statement | Question] = []
    new_number: dict[int, int] = {}  # of each statement, by its old number
    end = 0
    for number, line in enumerate(story.lines, 1):
        if isinstance(line, Statement):
            lines.append(line)
            new_number[number] = len(lines)
        elif is_held_out(story.babi_task, combination(story, line), fraction) == held_out:
            lines.append(Question(line.text, line.answer, tuple(new_number[fact] for fact in line.support)))
            end = len(lines)
    return Story(story.babi_task, tuple(lines[:end])) if end else None


def filter_stories(stories: Iterable[Story], held_out: bool, fraction: float) -> Iterator[Story]:
    """Yield the stories after `filter_questions`, without the empty ones."""
    parts = (filter_questions(story, held_out, fraction) for story in stories)
    return (part for part in parts if part is not None)
