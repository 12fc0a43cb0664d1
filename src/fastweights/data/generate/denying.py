"""Where somebody is no longer: task 9."""

from random import Random
from typing import NamedTuple

from fastweights.data.babi import Question
from fastweights.data.generate.randomness import choose, choose_other
from fastweights.data.generate.telling import BlockStoryteller, moving


class Knowledge(NamedTuple):
    """What the text last told of a person: that he is in a place, or that he is not in it."""

    is_there: bool
    place: str
    line: int


class IsThePersonStillThere(BlockStoryteller):
    """Task 9: every statement hides a move and tells where it led or only where it began."""

    number = 9
    objects = ()

    def __init__(self, rng: Random) -> None:
        super().__init__(rng)
        self.known: dict[str, Knowledge] = {}

    def statement(self) -> str:
        """Let one person move, and tell it as a move, as his being there or as his having left."""
        person = choose(self.rng, self.world.people)
        left = self.world.place[person]
        reached = self.world.elsewhere(person)
        self.world.move(person, reached, self.line)
        form = choose(self.rng, ("move", "move", "arrival", "departure"))
        if form == "departure":
            self.known[person] = Knowledge(False, left, self.line)
            return f"{person} {choose(self.rng, ('is not', 'is no longer'))} in the {left}."
        self.known[person] = Knowledge(True, reached, self.line)
        return moving(self.rng, person, reached) if form == "move" else f"{person} is in the {reached}."

    def question(self) -> Question:
        """Ask whether somebody told of lately is in a place: after a departure, in the place he left."""
        person = choose(self.rng, self.window).person
        is_there, place, line = self.known[person]
        answer = choose(self.rng, ("yes", "no")) if is_there else "no"
        asked = choose_other(self.rng, self.world.places, place) if is_there and answer == "no" else place
        return Question(f"Is {person} in the {asked}?", answer, (line,))
