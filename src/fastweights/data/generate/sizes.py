"""What fits into what: task 18."""

from collections.abc import Mapping
from random import Random

from fastweights.data.babi import Question, Statement, Story
from fastweights.data.generate.randomness import choose, choose_other, shuffled

SWEETS = ("chocolate", "box of chocolates")
BOXES = ("box", "chest", "container", "suitcase")
TRIES = 100

Facts = Mapping[int, tuple[str, str]]  # of a line: the bigger thing and the smaller


def does_it_fit(rng: Random) -> Story:
    """Task 18: blocks of five facts, until five questions can be asked after one of them."""
    sizes = (*SWEETS, *shuffled(rng, BOXES))  # from the smallest up
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
        questions = ask(rng, facts)
        lines += questions
    return Story(18, tuple(lines))


def ask(rng: Random, facts: Facts) -> list[Question]:
    """Return up to five questions, fewer where the facts let only few of the tries succeed."""
    # The facts about a thing, in the order told.
    about: dict[str, list[int]] = {}
    for line, pair in facts.items():
        for thing in pair:
            about.setdefault(thing, []).append(line)
    questions: list[Question] = []
    for _ in range(TRIES):
        if len(questions) == 5:
            break
        question = attempt(rng, facts, about)
        if question is not None:
            questions.append(question)
    return questions


def attempt(rng: Random, facts: Facts, about: Mapping[str, list[int]]) -> Question | None:
    """Go from a thing to another and on by the first fact about that one; return a question if it leads on.

    Both steps up, or both down, prove which is the bigger of the two things at the ends.
    """
    line = choose(rng, tuple(facts))
    start, middle = choose(rng, (facts[line], facts[line][::-1]))
    # What has been told more than once is mostly remembered as it was told last.
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
