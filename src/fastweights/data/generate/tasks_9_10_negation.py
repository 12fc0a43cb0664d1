"""bAbI tasks 9 (simple negation) and 10 (indefinite knowledge): partial knowledge of the places of people."""

from abc import abstractmethod
from collections.abc import Sequence
from random import Random
from typing import ClassVar, NamedTuple

from fastweights.data.babi import Question
from fastweights.data.generate.sampling import choose, choose_other, shuffled
from fastweights.data.generate.story_sizes import StorySizes
from fastweights.data.generate.storyteller import TOWN_PEOPLE, TOWN_PLACES, ImmediateStoryteller, move_sentence


class PartialLocationStoryteller(ImmediateStoryteller):
    """Generator with one move per statement, stated in one of several forms; half of them are `move`."""

    objects = ()
    forms: ClassVar[Sequence[str]]

    def statement(self) -> str:
        """Simulate a move and return a statement about it, in a random form."""
        person = choose(self.rng, self.world.people)
        origin = self.world.place[person]
        destination = self.world.other_place(person)
        self.world.move(person, destination, self.next_line)
        return self.location_statement(choose(self.rng, self.forms), person, origin, destination)

    @abstractmethod
    def location_statement(self, form: str, person: str, origin: str, destination: str) -> str:
        """Return the statement of a move in this form, and record the knowledge that it gives."""


class LocationFact(NamedTuple):
    """The last stated place of a person, or a place where the person is not."""

    is_there: bool
    name: str
    line: int


class SimpleNegation(PartialLocationStoryteller):
    """Task 9: a statement names the destination of a move, or negates its origin."""

    babi_task = 9
    forms = ("move", "move", "arrival", "departure")

    def __init__(self, rng: Random, sizes: StorySizes) -> None:
        super().__init__(rng, sizes)
        self.location_facts: dict[str, LocationFact] = {}

    def location_statement(self, form: str, person: str, origin: str, destination: str) -> str:
        """State the move, the arrival at the destination, or the departure from the origin."""
        if form == "departure":
            self.location_facts[person] = LocationFact(False, origin, self.next_line)
            return f"{person} {choose(self.rng, ('is not', 'is no longer'))} in the {origin}."
        self.location_facts[person] = LocationFact(True, destination, self.next_line)
        return move_sentence(self.rng, person, destination) if form == "move" else f"{person} is in the {destination}."

    def question(self) -> Question:
        """Ask whether a recently mentioned person is in a place: after a departure, in its origin."""
        person = choose(self.rng, self.recent_events).person
        is_there, place, line = self.location_facts[person]
        answer = choose(self.rng, ("yes", "no")) if is_there else "no"
        queried = choose_other(self.rng, self.world.places, place) if is_there and answer == "no" else place
        return Question(f"Is {person} in the {queried}?", answer, (line,))


class IndefiniteKnowledge(PartialLocationStoryteller):
    """Task 10: a statement names the destination of a move, or two possible destinations."""

    babi_task = 10
    people = TOWN_PEOPLE
    places = TOWN_PLACES
    forms = ("move", "move", "arrival", "either")

    def __init__(self, rng: Random, sizes: StorySizes) -> None:
        super().__init__(rng, sizes)
        self.possible_places: dict[str, tuple[Sequence[str], int]] = {}  # of a person: the stated places and the line

    def location_statement(self, form: str, person: str, origin: str, destination: str) -> str:
        """State the move, the arrival at the destination, or a choice of two places."""
        if form == "either":
            # The other place may be the same one: `either in the park or the park`, as in the original.
            one, other = shuffled(self.rng, (destination, choose(self.rng, self.world.places)))
            self.possible_places[person] = ((one, other), self.next_line)
            return f"{person} is either in the {one} or the {other}."
        self.possible_places[person] = ((destination,), self.next_line)
        return move_sentence(self.rng, person, destination) if form == "move" else f"{person} is in the {destination}."

    def question(self) -> Question:
        """Ask whether a recently mentioned person is in a place, half of the time the true one."""
        person = choose(self.rng, self.recent_events).person
        places, line = self.possible_places[person]
        here = self.world.place[person]
        queried = here if choose(self.rng, (True, False)) else choose_other(self.rng, self.world.places, here)
        answer = "yes" if len(places) == 1 else "maybe"
        return Question(f"Is {person} in the {queried}?", answer if queried in places else "no", (line,))
