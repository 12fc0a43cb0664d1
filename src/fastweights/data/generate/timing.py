"""Where somebody was before: task 14, a day of four times, told out of order."""

from random import Random
from typing import NamedTuple

from fastweights.data.babi import Question
from fastweights.data.generate.randomness import choose, choose_other, cycled, shuffled
from fastweights.data.generate.setting import EVERYBODY, Setting
from fastweights.data.generate.telling import RECENT, TOWN, TOWNSPEOPLE, BlockStoryteller, moving
from fastweights.errors import UserError

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

    def __init__(self, rng: Random, setting: Setting) -> None:
        super().__init__(rng, setting)
        self.stays: list[Stay] = []
        self.untold: list[Stay] = []
        self.day: dict[str, list[str]] = {person: [] for person in self.world.people}  # his places, time after time
        self.untold_aside: dict[str, list[tuple[int, str]]] = {}  # of a bystander: times and places
        self.line_of: dict[tuple[str, int], int] = {}  # of a person and a time

    @classmethod
    def cast(cls, setting: Setting) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
        """The people and places of a day that has time for all questions."""
        people, places, objects = super().cast(setting)
        # Nothing can be asked after a block that begins days only; so many such blocks there can be.
        beginnings = len(people) // min(setting.statements, RECENT)
        if setting.statements * (setting.questions + beginnings) > len(TIMES) * len(people):
            raise UserError(
                f"In task 14 {len(people)} people live through {len(TIMES) * len(people)} times, too few for "
                f"{setting.questions} questions after {setting.statements} statements each; give more people."
            )
        bystanders = len(EVERYBODY) - len(people)
        if setting.distractors * setting.questions > len(TIMES) * bystanders:
            raise UserError(
                f"In task 14 {bystanders} other people live through {len(TIMES) * bystanders} times, too few for "
                f"{setting.distractors} distractors before each of {setting.questions} questions; give fewer."
            )
        return people, places, objects

    def block(self) -> None:
        """Let some times pass for somebody; what happened is told before the next question."""
        for _ in range(self.setting.statements):
            person = choose(self.rng, [person for person in self.day if len(self.day[person]) < len(TIMES)])
            day = self.day[person]
            place = choose_other(self.rng, self.world.places, day[-1]) if day else choose(self.rng, self.world.places)
            stay = Stay(person, len(day), place)
            day.append(place)
            self.stays.append(stay)
            self.untold.append(stay)

    def question(self) -> Question | None:
        """Ask where somebody was before a stay of lately, which is not his first; the latest one there counts."""
        candidates = [stay for stay in self.stays[-RECENT:] if stay.time > 0]
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
            self.tell(self.timed(moving(self.rng, person, place), time))
        self.untold.clear()

    def timed(self, move: str, time: int) -> str:
        """Return the statement with the time of the day at one of its ends."""
        at_the_end = choose(self.rng, (True, False))
        return f"{move[:-1]} {TIMES[time]}." if at_the_end else f"{TIMES[time].capitalize()} {move}"

    def bystanders(self) -> list[str]:
        """Those whose day is not yet told whole."""
        return [person for person in super().bystanders() if self.untold_aside.get(person) != []]

    def aside(self, person: str) -> str:
        """Tell one time of a bystander's day, out of order."""
        if person not in self.untold_aside:
            places = [choose(self.rng, self.world.places)]
            while len(places) < len(TIMES):
                places.append(choose_other(self.rng, self.world.places, places[-1]))
            self.untold_aside[person] = shuffled(self.rng, list(enumerate(places)))
        time, place = self.untold_aside[person].pop()
        return self.timed(moving(self.rng, person, place), time)
