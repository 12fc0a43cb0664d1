"""Solvers of bAbI tasks that know the text alone: rules of reading, nothing of how stories are made.

A solver reads a story and returns, for each of its questions in turn, the answer and the supporting lines.
"""

import re
from collections.abc import Callable, Iterator

from fastweights.data.babi import Question, Story

Solution = tuple[str, tuple[int, ...]]

MOVE = re.compile(r"(.+?) (?:moved|went back|went|travelled|journeyed) to the (\w+)\.")
TAKE = re.compile(r"(\w+) (?:picked up|got|took|grabbed) the (\w+)(?: there)?\.")
DROP = re.compile(r"(\w+) (?:left|dropped|put down|discarded) the (\w+)(?: there)?\.")
GIVE = re.compile(r"(\w+) (?:gave|passed|handed) the (\w+) to (\w+)\.")
FOLLOW_UP = re.compile(r"(?:After that|Afterwards|Following that|Then) (he|she|they)")
MEANT = {"he": {"John", "Daniel"}, "she": {"Mary", "Sandra"}}


def numbered(story: Story) -> Iterator[tuple[int, str, str, tuple[str, ...]]]:
    """Yield for each line its number, its text, its kind and the words that matter."""
    for number, line in enumerate(story.lines, start=1):
        if isinstance(line, Question):
            yield number, line.text, "question", ()
            continue
        for kind, pattern in (("move", MOVE), ("take", TAKE), ("drop", DROP), ("give", GIVE)):
            if match := pattern.fullmatch(line.text):
                yield number, line.text, kind, match.groups()
                break
        else:
            yield number, line.text, "other", ()


def where_is_the_person(story: Story) -> list[Solution]:
    """Solve tasks 1, 11, 12 and 13: the last move; a pronoun adds its line to that of the name before it."""
    told: dict[str, Solution] = {}
    named: list[str] = []
    solutions = []
    for number, text, kind, found in numbered(story):
        if kind == "question":
            solutions.append(told[re.fullmatch(r"Where is (\w+)\?", text)[1]])
        elif follow_up := FOLLOW_UP.fullmatch(found[0]):
            pronoun = follow_up[1]
            assert len(named) == 2 if pronoun == "they" else set(named) <= MEANT[pronoun]
            for person in named:
                told[person] = (found[1], (*told[person][1], number))
        else:
            named = found[0].split(" and ")
            for person in named:
                told[person] = (found[1], (number,))
    return solutions


def is_the_person_there(story: Story) -> list[Solution]:
    """Solve tasks 6 and 9: the last statement of where somebody is, or is not."""
    told: dict[str, tuple[bool, str, int]] = {}
    solutions = []
    for number, text, kind, found in numbered(story):
        if kind == "question":
            person, asked = re.fullmatch(r"Is (\w+) in the (\w+)\?", text).groups()
            is_there, place, line = told[person]
            known = is_there or asked == place
            answer = ("yes" if is_there and asked == place else "no") if known else "unknown"
            solutions.append((answer, (line,)))
        elif kind == "move":
            told[found[0]] = (True, found[1], number)
        elif kind == "other":
            person, state, place = re.fullmatch(r"(\w+) is (in|not in|no longer in) the (\w+)\.", text).groups()
            told[person] = (state == "in", place, number)
    return solutions


def where_is_the_object(story: Story) -> list[Solution]:
    """Solve task 2: an object lies where it was dropped, or is where its carrier is."""
    place: dict[str, tuple[str, int]] = {}
    handled: dict[str, tuple[str | None, int, tuple[str, int] | None]] = {}
    solutions = []
    for number, text, kind, found in numbered(story):
        if kind == "move":
            place[found[0]] = (found[1], number)
        elif kind == "take":
            handled[found[1]] = (found[0], number, None)
        elif kind == "drop":
            handled[found[1]] = (None, number, place.get(found[0]))
        else:
            carrier, line, lies = handled[re.fullmatch(r"Where is the (\w+)\?", text)[1]]
            where, arrival = place[carrier] if carrier else lies
            solutions.append((where, (line, arrival)))
    return solutions


def where_was_the_object(story: Story) -> list[Solution]:
    """Solve task 3: follow every object through all places where it has been."""
    place: dict[str, str] = {}
    carried: dict[str, set[str]] = {}
    handled: dict[str, int] = {}
    journey: dict[str, list[tuple[str, int]]] = {}
    solutions = []
    for number, text, kind, found in numbered(story):
        if kind == "move":
            person, place[person] = found
            for thing in carried.get(person, ()):
                journey[thing].append((found[1], number))
        elif kind == "take":
            person, thing = found
            handled[thing] = number
            carried.setdefault(person, set()).add(thing)
            journey.setdefault(thing, [])
        elif kind == "drop":
            handled[found[1]] = number
            carried[found[0]].remove(found[1])
        else:
            thing, asked = re.fullmatch(r"Where was the (\w+) before the (\w+)\?", text).groups()
            stays = journey[thing]
            latest = max(index for index, (where, _) in enumerate(stays) if where == asked)
            before, arrival = stays[latest - 1]
            solutions.append((before, (handled[thing], stays[latest][1], arrival)))
    return solutions


def hands(story: Story) -> Iterator[tuple[str, dict[str, list[str]], dict[str, list[tuple[int, str]]]]]:
    """Yield at each question what everybody carries, and the numbered things that went through his hands."""
    carried: dict[str, list[str]] = {}
    touched: dict[str, list[tuple[int, str]]] = {}
    for number, text, kind, found in numbered(story):
        if kind == "question":
            yield text, carried, touched
        elif kind != "move":
            thing = found[1]
            if kind in ("drop", "give"):
                carried[found[0]].remove(thing)
            if kind in ("take", "give"):
                carried.setdefault(found[-1] if kind == "give" else found[0], []).append(thing)
            for person in {found[0], found[-1]} - {thing}:
                touched.setdefault(person, []).append((number, thing))


def how_many_are_carried(story: Story) -> list[Solution]:
    """Solve task 7: count."""
    solutions = []
    for text, carried, touched in hands(story):
        person = re.fullmatch(r"How many objects is (\w+) carrying\?", text)[1]
        count = ("none", "one", "two", "three")[len(carried.get(person, ()))]
        solutions.append((count, tuple(number for number, _ in touched[person])))
    return solutions


def what_is_carried(story: Story) -> list[Solution]:
    """Solve task 8: list the things in the order in which they were first touched."""
    solutions = []
    for text, carried, touched in hands(story):
        person = re.fullmatch(r"What is (\w+) carrying\?", text)[1]
        order = list(dict.fromkeys(thing for _, thing in touched[person]))
        held = [thing for thing in order if thing in carried.get(person, ())]
        support = sorted(touched[person], key=lambda line: (order.index(line[1]), line[0]))
        solutions.append((",".join(held) or "nothing", tuple(number for number, _ in support)))
    return solutions


SOLVERS: dict[int, Callable[[Story], list[Solution]]] = {
    1: where_is_the_person,
    2: where_is_the_object,
    3: where_was_the_object,
    6: is_the_person_there,
    7: how_many_are_carried,
    8: what_is_carried,
    9: is_the_person_there,
    11: where_is_the_person,
    12: where_is_the_person,
    13: where_is_the_person,
}
