"""The simulated world of the stories: people who move, and take, drop and give objects.

The state of the world (`place`, `resting_places`, `holder`) decides which events are possible. Questions come from the
events in the text alone (`events`, `moves_by_person`, `events_by_object`, `events_by_person`): the text never states
the initial places.
"""

from collections.abc import Sequence
from random import Random
from typing import NamedTuple

from fastweights.data.generate.sampling import choose, choose_other

PEOPLE = ("Mary", "John", "Daniel", "Sandra")
PLACES = ("bathroom", "bedroom", "garden", "hallway", "kitchen", "office")
OBJECTS = ("apple", "football", "milk")


class Event(NamedTuple):
    """An action of a person, stated in line `line` of the story."""

    line: int
    kind: str  # "move", "take", "drop" or "give"
    person: str
    place: str  # of a move, the destination
    thing: str = ""
    receiver: str = ""
    moves_before: int = 0  # number of earlier moves of the person


class World:
    """People and objects, at first in hidden random places, and the events since."""

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
        self.resting_places = {thing: choose(rng, places) for thing in objects}  # of objects that nobody holds
        self.holder: dict[str, str] = {}
        self.events: list[Event] = []
        self.moves_by_person: dict[str, list[Event]] = {person: [] for person in people}
        self.events_by_object: dict[str, list[Event]] = {thing: [] for thing in objects}
        # Takes, drops and gifts, both given and received.
        self.events_by_person: dict[str, list[Event]] = {person: [] for person in people}

    def other_place(self, person: str) -> str:
        """Return a random place other than the person's."""
        return choose_other(self.rng, self.places, self.place[person])

    def carried_by(self, person: str) -> list[str]:
        """Return the objects in the person's hands."""
        return [thing for thing, holder in self.holder.items() if holder == person]

    def random_event(self, kinds: Sequence[str], line: int) -> Event:
        """Simulate a random possible event; a kind that is listed twice is drawn twice as often.

        >>> World(Random(0)).random_event(("move",), line=1)
        Event(line=1, kind='move', person='John', place='hallway', thing='', receiver='', moves_before=0)
        """
        while True:
            event = self._attempt(choose(self.rng, kinds), choose(self.rng, self.people), line)
            if event is not None:
                return event

    def _attempt(self, kind: str, person: str, line: int) -> Event | None:
        here = self.place[person]
        if kind == "move":
            # One place in six is his own; that attempt fails, so moves are a little rarer.
            place = choose(self.rng, self.places)
            return self.move(person, place, line) if place != here else None
        if kind == "take":
            within_reach = [thing for thing, place in self.resting_places.items() if place == here]
            return self.take(person, choose(self.rng, within_reach), line) if within_reach else None
        if kind == "drop":
            carried = self.carried_by(person)
            return self.drop(person, choose(self.rng, carried), line) if carried else None
        return self._give_first(line)

    def _give_first(self, line: int) -> Event | None:
        # Not random, as in the original: the first possible object goes to the first person beside its holder.
        # For this reason objects are often handed back, and the first objects change hands most.
        for thing in [thing for thing in self.events_by_object if thing in self.holder]:
            holder = self.holder[thing]
            for person in self.people:
                if person != holder and self.place[person] == self.place[holder]:
                    return self.give(holder, thing, person, line)
        return None

    def move(self, person: str, place: str, line: int) -> Event:
        """Move the person to a place, with all carried objects."""
        self.place[person] = place
        event = Event(line, "move", person, place, moves_before=len(self.moves_by_person[person]))
        self.moves_by_person[person].append(event)
        self.events.append(event)
        return event

    def take(self, person: str, thing: str, line: int) -> Event:
        """Let the person take an object in the same place."""
        del self.resting_places[thing]
        self.holder[thing] = person
        return self._handle("take", person, thing, line)

    def drop(self, person: str, thing: str, line: int) -> Event:
        """Let the person drop an object."""
        del self.holder[thing]
        self.resting_places[thing] = self.place[person]
        return self._handle("drop", person, thing, line)

    def give(self, person: str, thing: str, receiver: str, line: int) -> Event:
        """Let the person give an object to another person in the same place."""
        self.holder[thing] = receiver
        event = self._handle("give", person, thing, line, receiver)
        self.events_by_person[receiver].append(event)
        return event

    def _handle(self, kind: str, person: str, thing: str, line: int, receiver: str = "") -> Event:
        event = Event(line, kind, person, self.place[person], thing, receiver, len(self.moves_by_person[person]))
        self.events_by_object[thing].append(event)
        self.events_by_person[person].append(event)
        self.events.append(event)
        return event
