"""What lies where from what: tasks 4 (what is north of it?), 17 (is it above?) and 19 (how does one get there?)."""

from collections.abc import Sequence
from itertools import pairwise
from random import Random

from fastweights.data.babi import Question, Statement, Story
from fastweights.data.generate.randomness import choose, choose_other, shuffled
from fastweights.data.generate.world import PLACES

SHAPES = ("red square", "blue square", "yellow square", "red sphere", "triangle", "pink rectangle")
DIRECTIONS = ("north", "south", "east", "west")
OPPOSITE = {"north": "south", "south": "north", "east": "west", "west": "east"}
# The page hangs on the wall with its north up.
RELATIONS = {"north": "above", "south": "below", "east": "to the right of", "west": "to the left of"}


class Plan:
    """Things on a grid, each one step in some direction away from its neighbours."""

    def __init__(self) -> None:
        self.direction: dict[str, dict[str, str]] = {}  # from a thing to each of its neighbours

    def put(self, thing: str, direction: str, neighbour: str) -> None:
        """Put the thing one step in this direction away from its neighbour, `north` of it."""
        self.direction.setdefault(neighbour, {})[thing] = direction
        self.direction.setdefault(thing, {})[neighbour] = OPPOSITE[direction]

    def walk(self, rng: Random, things: Sequence[str], turns: bool = True) -> None:
        """Put three things in a row, the last of them also round the corner if it turns, never back."""
        start, middle, end = things
        first = choose(rng, DIRECTIONS)
        self.put(middle, first, start)
        self.put(end, choose_other(rng, DIRECTIONS, OPPOSITE[first]) if turns else first, middle)

    def pairs(self, rng: Random) -> list[tuple[str, str]]:
        """Return all pairs of neighbours in a random order, each once, as a random thing and one of its neighbours.

        A thing with few neighbours therefore comes first in its pairs more often, and its pairs come sooner.
        """
        things = list(self.direction)
        neighbours = {thing: list(directions) for thing, directions in self.direction.items()}
        pairs: list[tuple[str, str]] = []
        while len(pairs) < len(things) - 1:  # a tree: one pair fewer than things
            thing = choose(rng, things)
            neighbour = choose(rng, neighbours[thing])
            if (thing, neighbour) not in pairs and (neighbour, thing) not in pairs:
                pairs.append((thing, neighbour))
        return pairs


def lines_of(pairs: Sequence[tuple[str, str]], way: Sequence[str]) -> tuple[int, ...]:
    """Return the lines that tell of the steps of a way, where line n tells of pair n, in either order."""
    lines = {frozenset(pair): line for line, pair in enumerate(pairs, start=1)}
    return tuple(lines[frozenset(step)] for step in pairwise(way))


def what_is_north(rng: Random) -> Story:
    """Task 4: three places in a row; one of the two facts is asked for, as it was told or turned round."""
    plan = Plan()
    plan.walk(rng, shuffled(rng, PLACES)[:3], turns=False)
    pairs = plan.pairs(rng)
    facts = [(place, plan.direction[reference][place], reference) for place, reference in pairs]
    line = choose(rng, (1, 2))
    place, direction, reference = facts[line - 1]
    question = choose(
        rng, (f"What is {direction} of the {reference}?", f"What is the {reference} {OPPOSITE[direction]} of?")
    )
    return Story(4, (*statements_of(facts), Question(question, place, (line,))))


def how_to_go(rng: Random) -> Story:
    """Task 19: two steps between three places, and three more places beside them."""
    plan = Plan()
    places = shuffled(rng, PLACES)
    way, aside = places[:3], places[3:]
    plan.walk(rng, way)
    free = [
        (place, direction)
        for place in way
        for direction in DIRECTIONS
        if direction not in plan.direction[place].values()
    ]
    # Two of the three may come to lie on one spot: nothing told contradicts it.
    for place, (neighbour, direction) in zip(aside, shuffled(rng, free), strict=False):
        plan.put(place, direction, neighbour)
    pairs = plan.pairs(rng)
    start, middle, end = way
    answer = f"{plan.direction[start][middle][0]},{plan.direction[middle][end][0]}"
    question = Question(f"How do you go from the {start} to the {end}?", answer, lines_of(pairs, way))
    return Story(19, (*statements_of([(place, plan.direction[near][place], near) for place, near in pairs]), question))


def statements_of(facts: Sequence[tuple[str, str, str]]) -> list[Statement]:
    """Return `The office is north of the kitchen.` for each fact (office, north, kitchen)."""
    return [Statement(f"The {place} is {direction} of the {reference}.") for place, direction, reference in facts]


def is_it_above(rng: Random) -> Story:
    """Task 17: three shapes, each but the first one step from the one before; the outer two are asked about."""
    plan = Plan()
    way = shuffled(rng, SHAPES)[:3]
    plan.walk(rng, way)
    # Here the thing that is drawn is the one referred to.
    pairs = [(shape, reference) for reference, shape in plan.pairs(rng)]
    lines: list[Statement | Question] = [
        Statement(f"The {shape} is {RELATIONS[plan.direction[reference][shape]]} the {reference}.")
        for shape, reference in pairs
    ]
    for _ in range(8):
        reference, middle, shape = asked = choose(rng, (way, way[::-1]))
        true = (plan.direction[reference][middle], plan.direction[middle][shape])
        answer = choose(rng, ("yes", "no"))
        direction = choose(rng, [direction for direction in DIRECTIONS if (direction in true) == (answer == "yes")])
        text = f"Is the {shape} {RELATIONS[direction]} the {reference}?"
        lines.append(Question(text, answer, lines_of(pairs, asked[::-1])))
    return Story(17, tuple(lines))
