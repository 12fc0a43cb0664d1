"""Solvers of bAbI tasks that know the text alone: rules of reading, nothing of how stories are made.

A solver reads a story and returns, for each of its questions in turn, the answer and the supporting lines; a list of
such pairs where the text allows more than one.
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
WOMEN = {"Mary", "Sandra", "Julie", "Gertrude", "Winona", "Jessica", "Emily", "Lily"}


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
            assert pronoun == ("they" if len(named) == 2 else "she" if named[0] in WOMEN else "he")
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


OPPOSITE = {"north": "south", "south": "north", "east": "west", "west": "east"}


def what_lies_there(story: Story) -> list[Solution]:
    """Solve task 4: read each fact in both directions."""
    beside: dict[tuple[str, str], Solution] = {}  # of a direction and a place: what lies there, and who says so
    solutions = []
    for number, text, kind, _ in numbered(story):
        if kind != "question":
            one, direction, other = re.fullmatch(r"The (\w+) is (\w+) of the (\w+)\.", text).groups()
            for key, place in (((direction, other), one), ((OPPOSITE[direction], one), other)):
                assert key not in beside, text
                beside[key] = (place, (number,))
        elif found := re.fullmatch(r"What is (\w+) of the (\w+)\?", text):
            solutions.append(beside[found.groups()])
        else:
            place, direction = re.fullmatch(r"What is the (\w+) (\w+) of\?", text).groups()
            solutions.append(beside[OPPOSITE[direction], place])
    return solutions


GIVING_QUESTIONS = (
    (r"What did (?P<giver>\w+) give to (?P<receiver>\w+)\?", "thing"),
    (r"Who gave the (?P<thing>\w+)\?", "giver"),
    (r"Who gave the (?P<thing>\w+) to (?P<receiver>\w+)\?", "giver"),
    (r"Who received the (?P<thing>\w+)\?", "receiver"),
    (r"Who did (?P<giver>\w+) give the (?P<thing>\w+) to\?", "receiver"),
)


def who_gave_what(story: Story) -> list[list[Solution]]:
    """Solve task 5: the latest giving of a thing; of several things that fit, the text prefers none."""
    latest: dict[str, dict[str, str | int]] = {}
    solutions = []
    for number, text, kind, found in numbered(story):
        if kind == "give":
            giver, thing, receiver = found
            latest[thing] = {"giver": giver, "thing": thing, "receiver": receiver, "line": number}
        elif kind == "question":
            (given, asked), *others = [
                (match.groupdict(), asked)
                for pattern, asked in GIVING_QUESTIONS
                if (match := re.fullmatch(pattern, text))
            ]
            assert not others
            fitting = [giving for giving in latest.values() if given.items() <= giving.items()]
            solutions.append([(giving[asked], (giving["line"],)) for giving in fitting])
    return solutions


def is_the_person_perhaps_there(story: Story) -> list[Solution]:
    """Solve task 10: one place named means there, two mean perhaps."""
    named: dict[str, tuple[tuple[str, ...], int]] = {}
    solutions = []
    for number, text, kind, found in numbered(story):
        if kind == "question":
            person, asked = re.fullmatch(r"Is (\w+) in the (\w+)\?", text).groups()
            places, line = named[person]
            solutions.append((("yes" if len(places) == 1 else "maybe") if asked in places else "no", (line,)))
        elif kind == "move":
            named[found[0]] = (found[1:], number)
        else:
            sure = re.fullmatch(r"(\w+) is in the (\w+)\.", text)
            person, *places = (sure or re.fullmatch(r"(\w+) is either in the (\w+) or the (\w+)\.", text)).groups()
            named[person] = (tuple(places), number)
    return solutions


DAY = ["yesterday", "this morning", "this afternoon", "this evening"]
TIME = "|".join(DAY)


def where_was_the_person(story: Story) -> list[Solution]:
    """Solve task 14: put each person's stays in the order of the day."""
    stays: dict[str, dict[int, tuple[str, int]]] = {}
    solutions = []
    for number, text, kind, _ in numbered(story):
        if kind == "question":
            person, asked = re.fullmatch(r"Where was (\w+) before the (\w+)\?", text).groups()
            course = [stay for _, stay in sorted(stays[person].items())]
            latest = max(index for index, (place, _) in enumerate(course) if place == asked)
            before, line = course[latest - 1]
            assert latest > 0
            solutions.append((before, (course[latest][1], line)))
        else:
            found = re.fullmatch(rf"({TIME})? ?(\w+ .+ to the \w+?)(?: ({TIME}))?\.", text, re.IGNORECASE)
            first, what, last = found.groups()
            assert (first is None) != (last is None), text
            person, place = MOVE.fullmatch(what + ".").groups()
            time = DAY.index((first or last).lower())
            course = stays.setdefault(person, {})
            assert time not in course, text
            assert all(course[near][0] != place for near in (time - 1, time + 1) if near in course), text
            course[time] = (place, number)
    return solutions


SINGULAR = {"mice": "mouse", "sheep": "sheep", "wolves": "wolf", "cats": "cat"}


def what_is_feared(story: Story) -> list[Solution]:
    """Solve task 15: from a person to his kind, from the kind to its fear."""
    kinds: dict[str, tuple[str, int]] = {}
    fears: dict[str, tuple[str, int]] = {}
    solutions = []
    for number, text, kind, _ in numbered(story):
        if kind == "question":
            animal, line = kinds[re.fullmatch(r"What is (\w+) afraid of\?", text)[1]]
            feared, fear_line = fears[animal]
            solutions.append((feared, (line, fear_line)))
        elif found := re.fullmatch(r"(\w+) are afraid of (\w+)\.", text):
            fearful, feared = (SINGULAR[plural.lower()] for plural in found.groups())
            assert fearful != feared and fearful not in fears, text
            fears[fearful] = (feared, number)
        else:
            person, animal = re.fullmatch(r"(\w+) is a (\w+)\.", text).groups()
            assert person.lower() not in kinds, text
            kinds[person.lower()] = (animal, number)
    return solutions


def what_color(story: Story) -> list[Solution]:
    """Solve task 16: the colour of the like animal that was introduced last."""
    kinds: dict[str, tuple[str, int]] = {}
    colours: dict[str, tuple[str, int]] = {}
    solutions = []
    for number, text, kind, _ in numbered(story):
        if kind == "question":
            person = re.fullmatch(r"What color is (\w+)\?", text)[1]
            animal, line = kinds[person]
            assert person not in colours
            like_line, like = max((kinds[other][1], other) for other in colours if kinds[other][0] == animal)
            colour, colour_line = colours[like]
            solutions.append((colour, (line, like_line, colour_line)))
        elif found := re.fullmatch(r"(\w+) is a (\w+)\.", text):
            assert found[1] not in kinds, text
            kinds[found[1]] = (found[2], number)
        else:
            person, colour = re.fullmatch(r"(\w+) is (\w+)\.", text).groups()
            assert person in kinds and person not in colours, text
            colours[person] = (colour, number)
    return solutions


STEPS = {"above": (0, 1), "below": (0, -1), "to the right of": (1, 0), "to the left of": (-1, 0)}
WHERE = "|".join(STEPS)


def is_it_above(story: Story) -> list[Solution]:
    """Solve task 17: two steps on a grid."""
    facts: list[tuple[str, str, str]] = []
    solutions = []
    for _, text, kind, _ in numbered(story):
        if kind == "question":
            one, where, other = re.fullmatch(rf"Is the (.+) ({WHERE}) the (.+)\?", text).groups()
            place = positions(facts)
            away = [a - b for a, b in zip(place[one], place[other], strict=True)]
            assert away != [0, 0], text
            component = sum(a * b for a, b in zip(away, STEPS[where], strict=True))
            support = (1, 2) if one in facts[0] else (2, 1)
            solutions.append(("yes" if component > 0 else "no", support))
        else:
            facts.append(re.fullmatch(rf"The (.+) is ({WHERE}) the (.+)\.", text).groups())
    return solutions


def positions(facts: list[tuple[str, str, str]]) -> dict[str, tuple[int, int]]:
    """Return where everything lies if the first thing lies at (0, 0)."""
    place = {facts[0][0]: (0, 0)}
    while True:
        found = {}
        for one, where, other in facts:
            across, up = STEPS[where]
            if one in place:
                found[other] = (place[one][0] - across, place[one][1] - up)
            if other in place:
                found[one] = (place[other][0] + across, place[other][1] + up)
        assert all(place[thing] == found[thing] for thing in found if thing in place), facts
        if found.keys() <= place.keys():
            return place
        place |= found


def does_it_fit(story: Story) -> list[list[Solution]]:
    """Solve task 18: two facts, one starting from where the other ends; which of several such pairs is open."""
    facts: dict[int, tuple[str, str]] = {}  # of a line: the bigger and the smaller
    solutions = []
    for number, text, kind, _ in numbered(story):
        if kind != "question":
            if found := re.fullmatch(r"The (.+) fits inside the (.+)\.", text):
                smaller, bigger = found.groups()
            else:
                bigger, smaller = re.fullmatch(r"The (.+) is bigger than the (.+)\.", text).groups()
            facts[number] = (bigger, smaller)
            # Nothing may be bigger than itself, however many facts lie between.
            known = set(facts.values())
            while new := {(a, d) for a, b in known for c, d in known if b == c} - known:
                known |= new
            assert all(bigger != smaller for bigger, smaller in known), text
        else:
            if found := re.fullmatch(r"Does the (.+) fit in the (.+)\?", text):
                smaller, bigger = found.groups()
            else:
                bigger, smaller = re.fullmatch(r"Is the (.+) bigger than the (.+)\?", text).groups()
            chains = [
                (facts[one][0], facts[other][1], one, other)
                for one in facts
                for other in facts
                if facts[one][1] == facts[other][0]
            ]
            yes = [("yes", (one, other)) for top, bottom, one, other in chains if (top, bottom) == (bigger, smaller)]
            no = [("no", (other, one)) for top, bottom, one, other in chains if (bottom, top) == (bigger, smaller)]
            solutions.append(yes + no)
    return solutions


def how_to_go(story: Story) -> list[Solution]:
    """Solve task 19: the only way there without coming twice to the same place."""
    ways: dict[str, list[tuple[str, str, int]]] = {}
    solutions = []
    for number, text, kind, _ in numbered(story):
        if kind != "question":
            one, direction, other = re.fullmatch(r"The (\w+) is (\w+) of the (\w+)\.", text).groups()
            ways.setdefault(other, []).append((one, direction, number))
            ways.setdefault(one, []).append((other, OPPOSITE[direction], number))
            continue
        start, end = re.fullmatch(r"How do you go from the (\w+) to the (\w+)\?", text).groups()
        walks = [(start, (start,), (), ())]
        for place, visited, directions, lines in walks:
            walks += [
                (to, (*visited, to), (*directions, direction[0]), (*lines, line))
                for to, direction, line in ways[place]
                if to not in visited
            ]
        ((directions, lines),) = [(directions, lines) for place, _, directions, lines in walks if place == end]
        solutions.append((",".join(directions), lines))
    return solutions


REMEDY = {"hungry": "kitchen apple", "thirsty": "kitchen milk", "bored": "garden football", "tired": "bedroom pajamas"}


def why(story: Story) -> list[Solution]:
    """Solve task 20: a mood explains what follows, and foretells it."""
    moods: dict[str, tuple[str, int]] = {}
    went: dict[str, str] = {}
    taken: dict[str, str] = {}
    solutions = []
    for number, text, kind, found in numbered(story):
        if kind == "question":
            person = re.match(r"(?:Where will|Why did) (\w+) ", text)[1]
            mood, line = moods[person]
            place, thing = REMEDY[mood].split()
            if text == f"Where will {person} go?":
                solutions.append((place, (line,)))
            elif text == f"Why did {person} go to the {place}?":
                assert went[person] == place, text
                solutions.append((mood, (line,)))
            else:
                assert text == f"Why did {person} get the {thing}?"
                assert taken[thing] == person, text
                solutions.append((mood, (line,)))
        elif kind == "move":
            went[found[0].lower()] = found[1]
        elif kind == "take":
            person, thing = found
            assert thing not in taken and person.lower() in went, text
            taken[thing] = person.lower()
        else:
            person, mood = re.fullmatch(r"(\w+) is (\w+)\.", text).groups()
            assert person.lower() not in moods, text
            moods[person.lower()] = (mood, number)
    return solutions


SOLVERS: dict[int, Callable[[Story], list[Solution] | list[list[Solution]]]] = {
    1: where_is_the_person,
    2: where_is_the_object,
    3: where_was_the_object,
    4: what_lies_there,
    5: who_gave_what,
    6: is_the_person_there,
    7: how_many_are_carried,
    8: what_is_carried,
    9: is_the_person_there,
    10: is_the_person_perhaps_there,
    11: where_is_the_person,
    12: where_is_the_person,
    13: where_is_the_person,
    14: where_was_the_person,
    15: what_is_feared,
    16: what_color,
    17: is_it_above,
    18: does_it_fit,
    19: how_to_go,
    20: why,
}
