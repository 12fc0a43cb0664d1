"""People who move and handle objects.

Tasks 2 (where is an object?), 3 (where was it?), 6 (is somebody there?), 7 and 8 (how many objects, and
which, does somebody carry?).
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from fastweights.data.babi import Question
from fastweights.data.generate.randomness import choose, choose_other
from fastweights.data.generate.telling import ALWAYS_THERE, SELDOM_THERE, SteadyStoryteller, wording
from fastweights.data.generate.world import OBJECTS, Event

NUMBERS = ("none", "one", "two", "three")


class HandlingStoryteller(SteadyStoryteller):
    """Tells of people who move, take and drop."""

    kinds: ClassVar[Sequence[str]] = ("move", "take", "drop")
    there_after_taking: ClassVar[Sequence[str]] = ALWAYS_THERE

    def statement(self) -> str:
        """Let somebody do something."""
        return wording(self.rng, self.world.happen(self.kinds, self.line), self.there_after_taking)


class WhereIsTheObject(HandlingStoryteller):
    """Task 2: who handled it last, and where did he go?"""

    number = 2

    def question(self) -> Question | None:
        """Ask about an object handled lately whose place the text determines."""
        candidates = [
            (event.thing, arrival)
            for event in self.window
            if event.thing is not None and (arrival := self.arrival(event.thing)) is not None
        ]
        if not candidates:
            return None
        thing, arrival = choose(self.rng, candidates)
        handling = self.world.handlings[thing][-1]
        return Question(f"Where is the {thing}?", arrival.place, (handling.line, arrival.line))

    def arrival(self, thing: str) -> Event | None:
        """Return the move that brought the thing to its place, or its dropper there, None if untold."""
        handling = self.world.handlings[thing][-1]
        moves = self.world.arrivals[handling.person]
        if handling.kind == "drop":
            return moves[handling.moved - 1] if handling.moved else None
        return moves[-1] if len(moves) > handling.moved else None


class WhereWasTheObject(HandlingStoryteller):
    """Task 3: the places along which an object was last carried."""

    number = 3
    there_after_taking = SELDOM_THERE

    def question(self) -> Question | None:
        """Ask where an object was before one of the places to which its last carrier took it."""
        candidates = [
            (handling, moves)
            for event in self.window
            if event.thing is not None
            for handling, moves in (self.carrying(event.thing),)
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

    def carrying(self, thing: str) -> tuple[Event, list[Event]]:
        """Return the latest handling of a thing, and the moves of its last carrier while he held it."""
        handlings = self.world.handlings[thing]
        latest = handlings[-1]
        moves = self.world.arrivals[latest.person]
        if latest.kind == "take":
            return latest, moves[latest.moved :]
        return latest, moves[handlings[-2].moved : latest.moved]


class IsThePersonThere(HandlingStoryteller):
    """Task 6: the last move decides; takes and drops are noise."""

    number = 6

    def question(self) -> Question | None:
        """Ask whether somebody who has moved lately is in a place, where he is half of the time."""
        moves = [event for event in self.window if event.kind == "move"]
        if not moves:
            return None
        arrival = self.world.arrivals[choose(self.rng, moves).person][-1]
        answer = choose(self.rng, ("yes", "no"))
        place = arrival.place if answer == "yes" else choose_other(self.rng, self.world.places, arrival.place)
        return Question(f"Is {arrival.person} in the {place}?", answer, (arrival.line,))


class CarryingStoryteller(HandlingStoryteller):
    """Asks about what is carried by somebody who has handled a thing lately."""

    most_objects = len(OBJECTS)  # "three", and lists of these three

    def question(self) -> Question | None:
        """Ask about somebody who has taken, dropped or given lately."""
        handlings = [event for event in self.window if event.kind != "move"]
        return self.question_about(choose(self.rng, handlings).person) if handlings else None

    @abstractmethod
    def question_about(self, person: str) -> Question:
        """Ask about what the person carries."""


class HowManyAreCarried(CarryingStoryteller):
    """Task 7: how many objects somebody carries, with giving."""

    number = 7
    people = ("John", "Mary", "Sandra", "Daniel")  # in the order in which they are given things
    kinds = ("move", "take", "drop", "give")

    def question_about(self, person: str) -> Question:
        """Ask how many objects the person carries."""
        return Question(
            f"How many objects is {person} carrying?",
            NUMBERS[len(self.world.carried_by(person))],
            tuple(event.line for event in self.world.doings[person]),
        )


class WhatIsCarried(CarryingStoryteller):
    """Task 8: which objects somebody carries, in the order in which he first took them."""

    number = 8

    def question_about(self, person: str) -> Question:
        """Ask which objects the person carries."""
        handlings: dict[str, list[int]] = {}
        for event in self.world.doings[person]:
            handlings.setdefault(event.thing, []).append(event.line)
        carried = [thing for thing in handlings if self.world.holder.get(thing) == person]
        return Question(
            f"What is {person} carrying?",
            ",".join(carried) or "nothing",
            tuple(line for lines in handlings.values() for line in lines),
        )
