"""bAbI tasks 15 (basic deduction) and 16 (basic induction): from kinds of animals to individuals and back."""

from random import Random

from fastweights.data.babi import Question, Statement, Story
from fastweights.data.generate.sampling import choose, choose_other

PLURALS = {"mouse": "mice", "sheep": "sheep", "wolf": "wolves", "cat": "cats"}
FEARFUL = ("Gertrude", "Winona", "Jessica", "Emily")

KINDS = ("swan", "lion", "frog", "rhino")
COLOURS = ("gray", "white", "yellow", "green")
COLOURFUL = ("Lily", "Bernhard", "Greg", "Julius", "Brian")


def basic_deduction(rng: Random) -> Story:
    """Task 15: each kind fears another; an individual's kind is stated after the fear of the kind."""
    animals = tuple(PLURALS)
    lines: list[Statement | Question] = []
    feared: dict[str, tuple[str, int]] = {}  # of a kind: the feared kind and the line
    kind_of: dict[str, tuple[str, int]] = {}  # of a person: kind and line
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


def basic_induction(rng: Random) -> Story:
    """Task 16: the colour of one person follows from the colour of another of the same kind."""
    order = statement_order(rng)
    queried = next(person for person in COLOURFUL if order.count(person) == 1)
    kind_of = sample_kinds(rng, queried)
    lines: list[Statement | Question] = []
    kind_line: dict[str, int] = {}
    colour_of: dict[str, tuple[str, int]] = {}  # of a person: colour and line
    fur: dict[str, str] = {}  # the colour of a kind
    for line, person in enumerate(order, start=1):
        kind = kind_of[person]
        if person not in kind_line:
            kind_line[person] = line
            # A new member may change the colour of the kind: as in the original, colours within a kind may differ.
            fur.pop(kind, None)
            lines.append(Statement(f"{person} is a {kind}."))
        else:
            if kind not in fur:
                fur[kind] = choose(rng, COLOURS)
            colour_of[person] = fur[kind], line
            lines.append(Statement(f"{person} is {fur[kind]}."))
    latest = max((person for person in colour_of if kind_of[person] == kind_of[queried]), key=kind_line.__getitem__)
    colour, colour_line = colour_of[latest]
    support = (kind_line[queried], kind_line[latest], colour_line)
    return Story(16, (*lines, Question(f"What color is {queried}?", colour, support)))


def statement_order(rng: Random) -> list[str]:
    """Return the persons of the nine statements: each once for the kind, and all except one again for the colour."""
    order: list[str] = []
    colours = 0
    while len(order) < 9:
        person = choose(rng, COLOURFUL)
        count = order.count(person)
        if count == 0 or (count == 1 and colours < 4):
            order.append(person)
            colours += count
    return order


def sample_kinds(rng: Random, queried: str) -> dict[str, str]:
    """Return a random kind for each person; the queried one shares its kind with one, three or four others."""
    while True:
        kind_of = {person: choose(rng, KINDS) for person in COLOURFUL}
        alike = sum(kind == kind_of[queried] for kind in kind_of.values()) - 1
        # Never two: in no original story is the queried person in a group of three.
        if alike in (1, 3, 4):
            return kind_of
