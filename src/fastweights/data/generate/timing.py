"""Where somebody was before: task 14, a day of four times, told out of order."""

from random import Random
from typing import NamedTuple

from fastweights.data.babi import Question
from fastweights.data.generate.randomness import choose, choose_other, cycled
from fastweights.data.generate.telling import TOWN, TOWNSPEOPLE, BlockStoryteller, moving

TIMES = ("yesterday", "this morning", "this afternoon", "this evening")


class Stay(NamedTuple):
    """Where a person was at a time of the day, 0 to 3."""

    person: str
    time: int
    place: str


class WhereWasThePersonBefore(BlockStoryteller):
    """Task 14: everybody lives through the day, from time to time in another place."""

    number = 14
    people = TOWNSPEOPLE
    places = TOWN
    objects = ()

    def __init__(self, rng: Random) -> None:
        super().__init__(rng)
        self.stays: list[Stay] = []
        self.untold: list[Stay] = []
        self.day: dict[str, list[str]] = {person: [] for person in self.people}  # his places, time after time
        self.line_of: dict[tuple[str, int], int] = {}  # of a person and a time

    def block(self) -> None:
        """Let two times pass for somebody; what happened is told before the next question."""
        for _ in range(2):
            person = choose(self.rng, [person for person in self.people if len(self.day[person]) < len(TIMES)])
            day = self.day[person]
            place = choose_other(self.rng, self.places, day[-1]) if day else choose(self.rng, self.places)
            stay = Stay(person, len(day), place)
            day.append(place)
            self.stays.append(stay)
            self.untold.append(stay)

    def question(self) -> Question | None:
        """Ask where somebody was before a stay of lately, which is not his first; the latest one there counts."""
        candidates = [stay for stay in self.stays[-5:] if stay.time > 0]
        if not candidates:
            return None
        self.tell_stays()
        person, _, place = choose(self.rng, candidates)
        day = self.day[person]
        time = max(time for time, visited in enumerate(day) if visited == place)
        support = (self.line_of[person, time], self.line_of[person, time - 1])
        return Question(f"Where was {person} before the {place}?", day[time - 1], support)

    def tell_stays(self) -> None:
        """Tell what is untold, out of order."""
        for person, time, place in cycled(self.rng, self.untold):
            self.line_of[person, time] = self.line
            move, when = moving(self.rng, person, place), TIMES[time]
            at_the_end = choose(self.rng, (True, False))
            self.tell(f"{move[:-1]} {when}." if at_the_end else f"{when.capitalize()} {move}")
        self.untold.clear()
