"""From kinds of animals to persons: tasks 15 (basic deduction) and 16 (basic induction)."""

from random import Random

from fastweights.data.babi import Question, Statement, Story
from fastweights.data.generate.randomness import choose, choose_other

PLURALS = {"mouse": "mice", "sheep": "sheep", "wolf": "wolves", "cat": "cats"}
FEARFUL = ("Gertrude", "Winona", "Jessica", "Emily")

KINDS = ("swan", "lion", "frog", "rhino")
COLOURS = ("gray", "white", "yellow", "green")
COLOURFUL = ("Lily", "Bernhard", "Greg", "Julius", "Brian")


def what_is_feared(rng: Random) -> Story:
    """Task 15: each kind fears another; a person is told to be of a kind once its fear has been told."""
    animals = tuple(PLURALS)
    lines: list[Statement | Question] = []
    feared: dict[str, tuple[str, int]] = {}  # of a kind: the kind it fears, and the line
    kind_of: dict[str, tuple[str, int]] = {}  # of a person: his kind, and the line
    while len(lines) < len(animals) + len(FEARFUL):
        kind, person = choose(rng, animals), choose(rng, FEARFUL)
        line = len(lines) + 1
        if kind not in feared:
            feared[kind] = choose_other(rng, animals, kind), line
            lines.append(Statement(f"{PLURALS[kind].capitalize()} are afraid of {PLURALS[feared[kind][0]]}."))
        elif person not in kind_of:
            kind_of[person] = kind, line
            lines.append(Statement(f"{person} is a {kind}."))
    for _ in range(4):
        person = choose(rng, FEARFUL)
        kind, kind_line = kind_of[person]
        answer, fear_line = feared[kind]
        lines.append(Question(f"What is {person.lower()} afraid of?", answer, (kind_line, fear_line)))
    return Story(15, tuple(lines))


def what_color(rng: Random) -> Story:
    """Task 16: the colour of one person is not told, and concluded from another's of his kind."""
    order = persons_told_of(rng)
    asked = next(person for person in COLOURFUL if order.count(person) == 1)
    kind_of = kinds_of_persons(rng, asked)
    lines: list[Statement | Question] = []
    kind_line: dict[str, int] = {}
    colour_of: dict[str, tuple[str, int]] = {}  # of a person: his colour, and the line
    fur: dict[str, str] = {}  # the colour of a kind
    for line, person in enumerate(order, start=1):
        kind = kind_of[person]
        if person not in kind_line:
            kind_line[person] = line
            # A new member may change how the kind looks: like animals do not always agree, as in the original.
            fur.pop(kind, None)
            lines.append(Statement(f"{person} is a {kind}."))
        else:
            if kind not in fur:
                fur[kind] = choose(rng, COLOURS)
            colour_of[person] = fur[kind], line
            lines.append(Statement(f"{person} is {fur[kind]}."))
    latest = max((person for person in colour_of if kind_of[person] == kind_of[asked]), key=kind_line.__getitem__)
    colour, colour_line = colour_of[latest]
    support = (kind_line[asked], kind_line[latest], colour_line)
    return Story(16, (*lines, Question(f"What color is {asked}?", colour, support)))


def persons_told_of(rng: Random) -> list[str]:
    """Return whom each of nine lines tells of: everybody once for his kind and, but for one, again for his colour."""
    order: list[str] = []
    colours = 0
    while len(order) < 9:
        person = choose(rng, COLOURFUL)
        told = order.count(person)
        if told == 0 or (told == 1 and colours < 4):
            order.append(person)
            colours += told
    return order


def kinds_of_persons(rng: Random, asked: str) -> dict[str, str]:
    """Return a random kind for every person, such that the asked one has one, three or four of his kind."""
    while True:
        kind_of = {person: choose(rng, KINDS) for person in COLOURFUL}
        alike = sum(kind == kind_of[asked] for kind in kind_of.values()) - 1
        # Never two: none of the original's stories has the asked one in a group of three.
        if alike in (1, 3, 4):
            return kind_of
