"""Distances between the statistics of real and generated stories, beside a noise floor.

Each measure counts items in a story: words, sentences, positions of questions, distances of supporting facts. The
distance of two sets of stories is the total variation between the distributions of the items: 0 if they are equal, 1 if
they are disjoint. The noise floor is the distance between random halves of the real stories: a smaller distance is
not significant.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fastweights.data.babi import BABI_TASK_COUNT, Question, Story, file_name, read_split, words
from fastweights.data.names import NAMES, PRONOUNS
from fastweights.errors import UserError

# The slots of sentence templates.
_SLOT = {name: f"<{kind}>" for kind, names in {**NAMES, "pronoun": PRONOUNS}.items() for name in names}


class Comparison(NamedTuple):
    """The distance between real and generated stories, and the noise floor: between halves of the real ones."""

    distance: float
    floor: float

    @property
    def ratio(self) -> float:
        """The distance divided by the floor; 0 or infinite if the floor is 0."""
        if self.distance == 0:
            return 0.0
        return self.distance / self.floor if self.floor else float("inf")


def template(sentence: str) -> str:
    """Return the sentence with its names replaced by their kinds.

    >>> template("Is Mary in the kitchen?")
    'is <person> in the <place> ?'
    """
    sentence_words = [*sentence[:-1].lower().split(), sentence[-1]]
    return " ".join(_SLOT.get(word, word) for word in sentence_words)


def _templates(story: Story) -> list[str]:
    return [template(line.text) for line in story.lines]


def _mentions(story: Story) -> list[int]:
    """Return the lines since the last mention of each name; 0 at the first mention."""
    mentioned: dict[str, int] = {}
    ago: list[int] = []
    for number, line in enumerate(story.lines, start=1):
        names = [word for word in line.text[:-1].lower().split() if word in _SLOT]
        ago += [number - mentioned.get(name, number) for name in names]
        mentioned.update(dict.fromkeys(names, number))
    return ago


def _questions(story: Story) -> list[tuple[int, Question]]:
    return [(number, line) for number, line in enumerate(story.lines, start=1) if isinstance(line, Question)]


def _distances(story: Story) -> list[list[int]]:
    return [[number - line for line in question.support] for number, question in _questions(story)]


MEASURES: dict[str, Callable[[Story], Iterable]] = {
    "words": words,
    "sentences": lambda story: [line.text for line in story.lines],
    "templates": _templates,
    "template bigrams": lambda story: pairwise(_templates(story)),
    "lines since a name's last mention": _mentions,
    "words per story": lambda story: [len(words(story))],
    "lines per story": lambda story: [len(story.lines)],
    "questions per story": lambda story: [len(_questions(story))],
    "positions of questions": lambda story: [number for number, _ in _questions(story)],
    "answers": lambda story: [question.answer for _, question in _questions(story)],
    "number of facts": lambda story: [len(question.support) for _, question in _questions(story)],
    "distance of facts": lambda story: [away for facts in _distances(story) for away in facts],
    "distance of the nearest fact": lambda story: [min(facts) for facts in _distances(story)],
    "distance of the farthest fact": lambda story: [max(facts) for facts in _distances(story)],
    "repeated questions": lambda story: [one.text == two.text for (_, one), (_, two) in pairwise(_questions(story))],
}


def compare(
    real: Sequence[Story], generated: Sequence[Story], halvings: int = 20, seed: int = 0
) -> dict[str, Comparison]:
    """Return the comparison of real and generated stories of a bAbI task, by measure.

    The noise floor is the 95th percentile of the distance between the two halves of the real stories, over `halvings`
    random splits by `seed`. Give about as many generated as real stories: the distance of a smaller sample is larger.

    Raises:
        UserError: for fewer than two real stories or no generated one.
    """
    if len(real) < 2 or not generated:
        raise UserError(
            f"{len(real)} real and {len(generated)} generated stories are too few to compare; give two real ones "
            "at least and one generated"
        )
    half = np.arange(len(real)) < len(real) // 2
    rng = np.random.default_rng(seed)
    halves = np.array([rng.permutation(half) for _ in range(halvings)], dtype=np.float64)
    return {name: _compare(measure, real, generated, halves) for name, measure in MEASURES.items()}


def compare_directories(
    real: str | Path, generated: str | Path, split: str = "train", babi_tasks: Sequence[int] | None = None
) -> Iterator[tuple[int, dict[str, Comparison]]]:
    """Yield the comparisons of two directories of bAbI files, by bAbI task; None: all tasks in both.

    Raises:
        UserError: for a missing file, or no bAbI task of the split in common.
    """
    if babi_tasks is None:
        present = [
            {
                babi_task
                for babi_task in range(1, BABI_TASK_COUNT + 1)
                if (Path(d) / file_name(babi_task, split)).exists()
            }
            for d in (real, generated)
        ]
        babi_tasks = sorted(present[0] & present[1])
    if not babi_tasks:
        raise UserError(
            f"{real} and {generated} have no file of the {split} split in common, such as {file_name(1, split)}; "
            "give a directory of bAbI's files, and one from `fastweights data generate`."
        )
    for babi_task in babi_tasks:
        yield babi_task, compare(read_split(real, split, [babi_task]), read_split(generated, split, [babi_task]))


def _compare(
    measure: Callable[[Story], Iterable], real: Sequence[Story], generated: Sequence[Story], halves: np.ndarray
) -> Comparison:
    real_counts = [Counter(measure(story)) for story in real]
    generated_counts = Counter(item for story in generated for item in measure(story))
    column = {
        item: number
        for number, item in enumerate(dict.fromkeys([*(i for c in real_counts for i in c), *generated_counts]))
    }
    counts = np.zeros((len(real), len(column)))
    for story_counts, counter in zip(counts, real_counts, strict=True):
        for item, count in counter.items():
            story_counts[column[item]] = count
    distance = _total_variation(counts.sum(0), np.array([generated_counts[item] for item in column], dtype=np.float64))
    between_halves = _total_variation(halves @ counts, (1 - halves) @ counts)
    return Comparison(float(distance), float(np.percentile(between_halves, 95)))


def _total_variation(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    totals = [np.maximum(counts.sum(-1, keepdims=True), 1) for counts in (one, other)]
    return np.abs(one / totals[0] - other / totals[1]).sum(-1) / 2
