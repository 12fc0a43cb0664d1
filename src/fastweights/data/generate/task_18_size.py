"""bAbI task 18, size reasoning."""

from collections.abc import Mapping
from random import Random

from fastweights.data.babi import Question, Statement, Story
from fastweights.data.generate.sampling import choose, choose_other, shuffled

SWEETS = ("chocolate", "box of chocolates")
BOXES = ("box", "chest", "container", "suitcase")
MAX_TRIES = 100

Facts = Mapping[int, tuple[str, str]]  # by line: the bigger and the smaller thing


def size_reasoning(rng: Random) -> Story:
    """Task 18: blocks of five facts, until one of them is followed by five questions."""
    sizes = (*SWEETS, *shuffled(rng, BOXES))  # in increasing order
    lines: list[Statement | Question] = []
    facts: dict[int, tuple[str, str]] = {}
    questions: list[Question] = []
    while len(questions) < 5:
        for _ in range(5):
            thing = choose(rng, sizes)
            other = choose_other(rng, sizes, thing)
            smaller, bigger = sorted((thing, other), key=sizes.index)
            lines.append(
                Statement(
                    choose(
                        rng, (f"The {bigger} is bigger than the {smaller}.", f"The {smaller} fits inside the {bigger}.")
                    )
                )
            )
            facts[len(lines)] = (bigger, smaller)
        questions = sample_questions(rng, facts)
        lines += questions
    return Story(18, tuple(lines))


def sample_questions(rng: Random, facts: Facts) -> list[Question]:
    """Return up to five questions; fewer if most tries fail."""
    # The lines about a thing, in order.
    about: dict[str, list[int]] = {}
    for line, pair in facts.items():
        for thing in pair:
            about.setdefault(thing, []).append(line)
    questions: list[Question] = []
    for _ in range(MAX_TRIES):
        if len(questions) == 5:
            break
        question = sample_question(rng, facts, about)
        if question is not None:
            questions.append(question)
    return questions


def sample_question(rng: Random, facts: Facts, about: Mapping[str, list[int]]) -> Question | None:
    """Return a question about the ends of a random chain of two facts, or None if the chain breaks off.

    Two steps up, or two steps down, prove which of the two ends is bigger.
    """
    line = choose(rng, tuple(facts))
    start, middle = choose(rng, (facts[line], facts[line][::-1]))
    # Of a repeated fact, two times in three the latest statement counts.
    latest = max(other for other in about[start] if middle in facts[other])
    line = choose(rng, (line, latest, latest))
    onward = next((other for other in about[middle] if other != line), None)
    if onward is None:
        return None
    falling = facts[line] == (start, middle)
    end = facts[onward][1 if falling else 0]
    if end in (start, middle):
        return None
    answer = "yes" if falling else "no"
    text = choose(rng, (f"Is the {start} bigger than the {end}?", f"Does the {end} fit in the {start}?"))
    return Question(text, answer, (line, onward))
