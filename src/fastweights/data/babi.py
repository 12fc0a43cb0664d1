"""bAbI stories: their form, their files, their vocabulary and their counts.

A story is a list of statements and questions about one small world. On disk (bAbI v1.2, Weston et al. 2015) it is a run
of lines `index text`, a question's line ending in `<tab>answer<tab>supporting line numbers`; the index starts again at 1
with each story. For a model it is one sequence of lower-cased words in which the answer follows each question mark
(catbAbI; Learning Associative Inference Using Fast Weight Memory, appendix D).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Statement:
    """A sentence that tells a fact, written as in the file: `Mary moved to the bathroom.`"""

    text: str


@dataclass(frozen=True, slots=True)
class Question:
    """A question, `Where is Mary?`, with its answer and the 1-based numbers of the lines that prove it."""

    text: str
    answer: str
    support: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Story:
    """One story of a task (1 to 20): its lines in order."""

    task: int
    lines: tuple[Statement | Question, ...]
