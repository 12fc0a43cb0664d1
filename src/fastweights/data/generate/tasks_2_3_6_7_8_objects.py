"""bAbI tasks with people and objects.

Tasks 2 (two supporting facts), 3 (three supporting facts), 6 (yes or no), 7 (counting) and 8 (lists and sets).
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from fastweights.data.babi import Question
from fastweights.data.generate.sampling import choose, choose_other
from fastweights.data.generate.storyteller import (
    SUFFIX_RARELY_THERE,
    SUFFIX_THERE,
    ImmediateStoryteller,
    event_sentence,
)
from fastweights.data.generate.world import OBJECTS, Event

NUMBERS = ("none", "one", "two", "three")


class ObjectStoryteller(ImmediateStoryteller):
    """Generator of stories about people who move, take and drop."""

    kinds: ClassVar[Sequence[str]] = ("move", "take", "drop")
    take_suffixes: ClassVar[Sequence[str]] = SUFFIX_THERE

    def statement(self) -> str:
        """Simulate an event and return its statement."""
        return event_sentence(self.rng, self.world.random_event(self.kinds, self.next_line), self.take_suffixes)


class TwoSupportingFacts(ObjectStoryteller):
    """Task 2: the last handling of an object, and the last move of its carrier or dropper."""

    babi_task = 2

    def question(self) -> Question | None:
        """Ask for the place of a recently handled object, if the text determines it."""
        candidates = [
            (event.thing, arrival)
            for event in self.recent_events
            if event.thing and (arrival := self.arrival(event.thing)) is not None
        ]
        if not candidates:
            return None
        thing, arrival = choose(self.rng, candidates)
        handling = self.world.events_by_object[thing][-1]
        return Question(f"Where is the {thing}?", arrival.place, (handling.line, arrival.line))

    def arrival(self, thing: str) -> Event | None:
        """Return the move that took the object, or its dropper, to its place; None if there was none."""
        handling = self.world.events_by_object[thing][-1]
        moves = self.world.moves_by_person[handling.person]
        if handling.kind == "drop":
            return moves[handling.moves_before - 1] if handling.moves_before else None
        return moves[-1] if len(moves) > handling.moves_before else None


class ThreeSupportingFacts(ObjectStoryteller):
    """Task 3: the places on the last route of an object."""

    babi_task = 3
    take_suffixes = SUFFIX_RARELY_THERE

    def question(self) -> Question | None:
        """Ask for the place of an object before one of the places on its route."""
        candidates = [
            (handling, moves)
            for event in self.recent_events
            if event.thing
            for handling, moves in (self.last_carrying(event.thing),)
            if len(moves) >= 2
        ]
        if not candidates:
            return None
        handling, moves = choose(self.rng, candidates)
        place = choose(self.rng, moves[1:]).place
        stay = max(index for index, move in enumerate(moves) if move.place == place)
        before = moves[stay - 1]
        return Question(
            f"Where was the {handling.thing} before the {place}?",
            before.place,
            (handling.line, moves[stay].line, before.line),
        )

    def last_carrying(self, thing: str) -> tuple[Event, list[Event]]:
        """Return the latest handling of an object, and its carrier's moves with it."""
        handlings = self.world.events_by_object[thing]
        latest = handlings[-1]
        moves = self.world.moves_by_person[latest.person]
        if latest.kind == "take":
            return latest, moves[latest.moves_before :]
        return latest, moves[handlings[-2].moves_before : latest.moves_before]


class YesNoQuestions(ObjectStoryteller):
    """Task 6: the last move of a person decides; takes and drops are noise."""

    babi_task = 6

    def question(self) -> Question | None:
        """Ask whether a person who has moved recently is in a place; half of the time the answer is yes."""
        moves = [event for event in self.recent_events if event.kind == "move"]
        if not moves:
            return None
        arrival = self.world.moves_by_person[choose(self.rng, moves).person][-1]
        answer = choose(self.rng, ("yes", "no"))
        place = arrival.place if answer == "yes" else choose_other(self.rng, self.world.places, arrival.place)
        return Question(f"Is {arrival.person} in the {place}?", answer, (arrival.line,))


class CarriedObjectsStoryteller(ObjectStoryteller):
    """Generator of questions about the objects in a person's hands."""

    max_objects = len(OBJECTS)  # the largest number word is "three"

    def question(self) -> Question | None:
        """Ask about a person who has taken, dropped or given recently."""
        handlings = [event for event in self.recent_events if event.kind != "move"]
        return self.question_about(choose(self.rng, handlings).person) if handlings else None

    @abstractmethod
    def question_about(self, person: str) -> Question:
        """Return the question about this person."""


class Counting(CarriedObjectsStoryteller):
    """Task 7: the number of objects in a person's hands, with gifts."""

    babi_task = 7
    people = ("John", "Mary", "Sandra", "Daniel")  # in the order of gifts
    kinds = ("move", "take", "drop", "give")

    def question_about(self, person: str) -> Question:
        """Return the question about this person."""
        return Question(
            f"How many objects is {person} carrying?",
            NUMBERS[len(self.world.carried_by(person))],
            tuple(event.line for event in self.world.events_by_person[person]),
        )


class ListsAndSets(CarriedObjectsStoryteller):
    """Task 8: the objects in a person's hands, in the order of the first handling."""

    babi_task = 8

    def question_about(self, person: str) -> Question:
        """Return the question about this person."""
        handlings: dict[str, list[int]] = {}
        for event in self.world.events_by_person[person]:
            handlings.setdefault(event.thing, []).append(event.line)
        carried = [thing for thing in handlings if self.world.holder.get(thing) == person]
        return Question(
            f"What is {person} carrying?",
            ",".join(carried) or "nothing",
            tuple(line for lines in handlings.values() for line in lines),
        )
