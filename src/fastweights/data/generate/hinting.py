"""Where somebody is, told in part: tasks 9 (where he is no longer) and 10 (in which of two places he may be)."""

from abc import abstractmethod
from collections.abc import Sequence
from random import Random
from typing import ClassVar, NamedTuple

from fastweights.data.babi import Question
from fastweights.data.generate.randomness import choose, choose_other, shuffled
from fastweights.data.generate.setting import Setting
from fastweights.data.generate.telling import TOWN, TOWNSPEOPLE, SteadyStoryteller, moving


class HintingStoryteller(SteadyStoryteller):
    """Every statement hides a move and tells of it in one of several forms, half of them plainly as a move."""

    objects = ()
    forms: ClassVar[Sequence[str]]

    def statement(self) -> str:
        """Let one person move, and tell of it in a random form."""
        person = choose(self.rng, self.world.people)
        left = self.world.place[person]
        reached = self.world.elsewhere(person)
        self.world.move(person, reached, self.line)
        return self.hint(choose(self.rng, self.forms), person, left, reached)

    @abstractmethod
    def hint(self, form: str, person: str, left: str, reached: str) -> str:
        """Return the statement that tells in this form of the person's move, and note what it lets one know."""


class Place(NamedTuple):
    """What the text last told of a person: that he is in a place, or that he is not in it."""

    is_there: bool
    name: str
    line: int


class IsThePersonStillThere(HintingStoryteller):
    """Task 9: a statement tells where a move led or only where it began."""

    number = 9
    forms = ("move", "move", "arrival", "departure")

    def __init__(self, rng: Random, setting: Setting) -> None:
        super().__init__(rng, setting)
        self.known: dict[str, Place] = {}

    def hint(self, form: str, person: str, left: str, reached: str) -> str:
        """Tell the move as a move, as the person's being there or as his having left."""
        if form == "departure":
            self.known[person] = Place(False, left, self.line)
            return f"{person} {choose(self.rng, ('is not', 'is no longer'))} in the {left}."
        self.known[person] = Place(True, reached, self.line)
        return moving(self.rng, person, reached) if form == "move" else f"{person} is in the {reached}."

    def question(self) -> Question:
        """Ask whether somebody told of lately is in a place: after a departure, in the place he left."""
        person = choose(self.rng, self.window).person
        is_there, place, line = self.known[person]
        answer = choose(self.rng, ("yes", "no")) if is_there else "no"
        asked = choose_other(self.rng, self.world.places, place) if is_there and answer == "no" else place
        return Question(f"Is {person} in the {asked}?", answer, (line,))


class IsThePersonPerhapsThere(HintingStoryteller):
    """Task 10: a statement tells where a move led, or two places of which it led to one."""

    number = 10
    people = TOWNSPEOPLE
    places = TOWN
    forms = ("move", "move", "arrival", "either")

    def __init__(self, rng: Random, setting: Setting) -> None:
        super().__init__(rng, setting)
        self.told: dict[str, tuple[Sequence[str], int]] = {}  # of a person: the places named, and the line

    def hint(self, form: str, person: str, left: str, reached: str) -> str:
        """Tell the move as a move, as the person's being there or as his being there or anywhere."""
        if form == "either":
            # The other place may be the same one: `either in the park or the park`, as in the original.
            one, other = shuffled(self.rng, (reached, choose(self.rng, self.world.places)))
            self.told[person] = ((one, other), self.line)
            return f"{person} is either in the {one} or the {other}."
        self.told[person] = ((reached,), self.line)
        return moving(self.rng, person, reached) if form == "move" else f"{person} is in the {reached}."

    def question(self) -> Question:
        """Ask whether somebody told of lately is in a place, half of the time in that where he truly is."""
        person = choose(self.rng, self.window).person
        places, line = self.told[person]
        here = self.world.place[person]
        asked = here if choose(self.rng, (True, False)) else choose_other(self.rng, self.world.places, here)
        named = "yes" if len(places) == 1 else "maybe"
        return Question(f"Is {person} in the {asked}?", named if asked in places else "no", (line,))
