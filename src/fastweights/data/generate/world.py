"""The world behind the stories: people who move, and take, drop and give objects.

Two things are kept apart: the truth (`place`, `resting`, `holder`), which decides what can happen, and what
has been told of it (`events`, `arrivals`, `handlings`, `doings`), from which questions are asked: the text
never says where anybody or anything is at the start.
"""

from collections.abc import Sequence
from random import Random
from typing import NamedTuple

from fastweights.data.generate.randomness import choose, choose_other

PEOPLE = ("Mary", "John", "Daniel", "Sandra")
PLACES = ("bathroom", "bedroom", "garden", "hallway", "kitchen", "office")
OBJECTS = ("apple", "football", "milk")


class Event(NamedTuple):
    """Something a person did, told in line `line` of the story."""

    line: int
    kind: str  # "move", "take", "drop" or "give"
    person: str
    place: str  # for a move the place arrived at
    thing: str | None = None
    receiver: str | None = None
    moved: int = 0  # how many times the person had moved before


class World:
    """People and objects at hidden random places, and all that has happened to them since."""

    def __init__(
        self,
        rng: Random,
        people: Sequence[str] = PEOPLE,
        places: Sequence[str] = PLACES,
        objects: Sequence[str] = OBJECTS,
    ) -> None:
        self.rng = rng
        self.people = people
        self.places = places
        self.place = {person: choose(rng, places) for person in people}
        self.resting = {thing: choose(rng, places) for thing in objects}  # the things nobody holds
        self.holder: dict[str, str] = {}
        self.events: list[Event] = []
        self.arrivals: dict[str, list[Event]] = {person: [] for person in people}
        self.handlings: dict[str, list[Event]] = {thing: [] for thing in objects}
        # What a person has taken, dropped, given and received.
        self.doings: dict[str, list[Event]] = {person: [] for person in people}

    def elsewhere(self, person: str) -> str:
        """Return a random place where the person is not."""
        return choose_other(self.rng, self.places, self.place[person])

    def carried_by(self, person: str) -> list[str]:
        """Return the things the person holds."""
        return [thing for thing, holder in self.holder.items() if holder == person]

    def happen(self, kinds: Sequence[str], line: int) -> Event:
        """Let a random person do something possible of a random kind; one named twice is tried twice as much.

        >>> World(Random(0)).happen(("move",), line=1)
        Event(line=1, kind='move', person='John', place='hallway', thing=None, receiver=None, moved=0)
        """
        while True:
            event = self._attempt(choose(self.rng, kinds), choose(self.rng, self.people), line)
            if event is not None:
                return event

    def _attempt(self, kind: str, person: str, line: int) -> Event | None:
        here = self.place[person]
        if kind == "move":
            # One place in six is where he is already; that attempt fails, which makes moves a little rarer.
            place = choose(self.rng, self.places)
            return self.move(person, place, line) if place != here else None
        if kind == "take":
            within_reach = [thing for thing, place in self.resting.items() if place == here]
            return self.take(person, choose(self.rng, within_reach), line) if within_reach else None
        if kind == "drop":
            carried = self.carried_by(person)
            return self.drop(person, choose(self.rng, carried), line) if carried else None
        return self._give_first(line)

    def _give_first(self, line: int) -> Event | None:
        # No chance here, as in the original: the first thing that can be given goes to the first person beside its
        # holder. That is why things are often handed back, and why the first of them change hands most.
        for thing in self.handlings:
            holder = self.holder.get(thing)
            for person in self.people if holder is not None else ():
                if person != holder and self.place[person] == self.place[holder]:
                    return self.give(holder, thing, person, line)
        return None

    def move(self, person: str, place: str, line: int) -> Event:
        """Let the person go to a place, with all that he carries."""
        self.place[person] = place
        event = Event(line, "move", person, place, moved=len(self.arrivals[person]))
        self.arrivals[person].append(event)
        self.events.append(event)
        return event

    def take(self, person: str, thing: str, line: int) -> Event:
        """Let the person take a thing that rests where he is."""
        del self.resting[thing]
        self.holder[thing] = person
        return self._handle("take", person, thing, line)

    def drop(self, person: str, thing: str, line: int) -> Event:
        """Let the person leave a thing where he is."""
        del self.holder[thing]
        self.resting[thing] = self.place[person]
        return self._handle("drop", person, thing, line)

    def give(self, person: str, thing: str, receiver: str, line: int) -> Event:
        """Let the person hand a thing to another who is at the same place."""
        self.holder[thing] = receiver
        event = self._handle("give", person, thing, line, receiver)
        self.doings[receiver].append(event)
        return event

    def _handle(self, kind: str, person: str, thing: str, line: int, receiver: str | None = None) -> Event:
        event = Event(line, kind, person, self.place[person], thing, receiver, len(self.arrivals[person]))
        self.handlings[thing].append(event)
        self.doings[person].append(event)
        self.events.append(event)
        return event
