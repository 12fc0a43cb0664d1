"""bAbI tasks 4 (two argument relations), 17 (positional reasoning) and 19 (path finding)."""

from collections.abc import Sequence
from itertools import pairwise
from random import Random

from fastweights.data.babi import Question, Statement, Story
from fastweights.data.generate.sampling import choose, choose_other, shuffled
from fastweights.data.generate.world import PLACES

SHAPES = ("red square", "blue square", "yellow square", "red sphere", "triangle", "pink rectangle")
DIRECTIONS = ("north", "south", "east", "west")
OPPOSITE = {"north": "south", "south": "north", "east": "west", "west": "east"}
# Directions on a page with north up.
RELATIONS = {"north": "above", "south": "below", "east": "to the right of", "west": "to the left of"}


class Layout:
    """Things on a grid, each one step away from its neighbours."""

    def __init__(self) -> None:
        self.direction: dict[str, dict[str, str]] = {}  # from each thing to its neighbours

    def put(self, thing: str, direction: str, neighbour: str) -> None:
        """Put the thing one step away from its neighbour, in this direction of it."""
        self.direction.setdefault(neighbour, {})[thing] = direction
        self.direction.setdefault(thing, {})[neighbour] = OPPOSITE[direction]

    def place_path(self, rng: Random, things: Sequence[str], turns: bool = True) -> None:
        """Put three things on a path: straight, or with a random turn at the second, never back."""
        start, middle, end = things
        first = choose(rng, DIRECTIONS)
        self.put(middle, first, start)
        self.put(end, choose_other(rng, DIRECTIONS, OPPOSITE[first]) if turns else first, middle)

    def neighbour_pairs(self, rng: Random) -> list[tuple[str, str]]:
        """Return all pairs of neighbours once, in random order, each as a random thing and one of its neighbours.

        For this reason a thing with few neighbours is more often the first of its pairs, and its pairs come sooner.
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


def path_lines(pairs: Sequence[tuple[str, str]], path: Sequence[str]) -> tuple[int, ...]:
    """Return the lines of the steps of a path, if line n states pair n, in either order."""
    lines = {frozenset(pair): line for line, pair in enumerate(pairs, start=1)}
    return tuple(lines[frozenset(step)] for step in pairwise(path))


def two_argument_relations(rng: Random) -> Story:
    """Task 4: three places in a row; the question is about one of the two facts, as stated or inverted."""
    layout = Layout()
    layout.place_path(rng, shuffled(rng, PLACES)[:3], turns=False)
    pairs = layout.neighbour_pairs(rng)
    facts = [(place, layout.direction[reference][place], reference) for place, reference in pairs]
    line = choose(rng, (1, 2))
    place, direction, reference = facts[line - 1]
    question = choose(
        rng, (f"What is {direction} of the {reference}?", f"What is the {reference} {OPPOSITE[direction]} of?")
    )
    return Story(4, (*direction_statements(facts), Question(question, place, (line,))))


def path_finding(rng: Random) -> Story:
    """Task 19: a path of two steps between three places, and three more places beside it."""
    layout = Layout()
    places = shuffled(rng, PLACES)
    path, aside = places[:3], places[3:]
    layout.place_path(rng, path)
    free = [
        (place, direction)
        for place in path
        for direction in DIRECTIONS
        if direction not in layout.direction[place].values()
    ]
    # Two of the three may share a position: no statement contradicts this.
    for place, (neighbour, direction) in zip(aside, shuffled(rng, free), strict=False):
        layout.put(place, direction, neighbour)
    pairs = layout.neighbour_pairs(rng)
    start, middle, end = path
    answer = f"{layout.direction[start][middle][0]},{layout.direction[middle][end][0]}"
    question = Question(f"How do you go from the {start} to the {end}?", answer, path_lines(pairs, path))
    return Story(
        19, (*direction_statements([(place, layout.direction[near][place], near) for place, near in pairs]), question)
    )


def direction_statements(facts: Sequence[tuple[str, str, str]]) -> list[Statement]:
    """Return `The office is north of the kitchen.` for each fact (office, north, kitchen)."""
    return [Statement(f"The {place} is {direction} of the {reference}.") for place, direction, reference in facts]


def positional_reasoning(rng: Random) -> Story:
    """Task 17: three shapes on a path; the questions are about its two ends."""
    layout = Layout()
    path = shuffled(rng, SHAPES)[:3]
    layout.place_path(rng, path)
    # Here the first of a pair is the reference.
    pairs = [(shape, reference) for reference, shape in layout.neighbour_pairs(rng)]
    lines: list[Statement | Question] = [
        Statement(f"The {shape} is {RELATIONS[layout.direction[reference][shape]]} the {reference}.")
        for shape, reference in pairs
    ]
    for _ in range(8):
        reference, middle, shape = ends = choose(rng, (path, path[::-1]))
        true = (layout.direction[reference][middle], layout.direction[middle][shape])
        answer = choose(rng, ("yes", "no"))
        direction = choose(rng, [direction for direction in DIRECTIONS if (direction in true) == (answer == "yes")])
        text = f"Is the {shape} {RELATIONS[direction]} the {reference}?"
        lines.append(Question(text, answer, path_lines(pairs, ends[::-1])))
    return Story(17, tuple(lines))
