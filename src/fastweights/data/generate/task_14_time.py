"""bAbI task 14, time reasoning: the places of people at four times of the day, stated out of order."""

from random import Random
from typing import NamedTuple

from fastweights.data.babi import Question
from fastweights.data.generate.sampling import choose, choose_other, cyclic_shuffled, shuffled
from fastweights.data.generate.story_sizes import ALL_PEOPLE, StorySizes
from fastweights.data.generate.storyteller import (
    RECENT_EVENTS,
    TOWN_PEOPLE,
    TOWN_PLACES,
    BlockStoryteller,
    move_sentence,
)
from fastweights.errors import UserError

TIMES = ("yesterday", "this morning", "this afternoon", "this evening")


class Stay(NamedTuple):
    """The place of a person at a time of the day, 0 to 3."""

    person: str
    time: int
    place: str


class TimeReasoning(BlockStoryteller):
    """Task 14: at each time of the day, each person is in another place than before."""

    babi_task = 14
    people = TOWN_PEOPLE
    places = TOWN_PLACES
    objects = ()

    def __init__(self, rng: Random, sizes: StorySizes) -> None:
        super().__init__(rng, sizes)
        self.stays: list[Stay] = []
        self.pending: list[Stay] = []
        self.day: dict[str, list[str]] = {person: [] for person in self.world.people}  # his places by time
        self.pending_bystander: dict[str, list[tuple[int, str]]] = {}  # of a bystander: times and places
        self.line_of: dict[tuple[str, int], int] = {}  # of a person and a time

    @classmethod
    def select_entities(cls, sizes: StorySizes) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
        """Return the people and places; check that the day has enough times for all questions."""
        people, places, objects = super().select_entities(sizes)
        # No question is possible after a block of first stays only; this is the largest number of such blocks.
        beginnings = len(people) // min(sizes.statements, RECENT_EVENTS)
        if sizes.statements * (sizes.questions + beginnings) > len(TIMES) * len(people):
            raise UserError(
                f"In task 14 {len(people)} people live through {len(TIMES) * len(people)} times, too few for "
                f"{sizes.questions} questions after {sizes.statements} statements each; give more people."
            )
        bystanders = len(ALL_PEOPLE) - len(people)
        if sizes.distractors * sizes.questions > len(TIMES) * bystanders:
            raise UserError(
                f"In task 14 {bystanders} other people live through {len(TIMES) * bystanders} times, too few for "
                f"{sizes.distractors} distractors before each of {sizes.questions} questions; give fewer."
            )
        return people, places, objects

    def tell_block(self) -> None:
        """Simulate some stays, to be stated before the next question."""
        for _ in range(self.sizes.statements):
            person = choose(self.rng, [person for person in self.day if len(self.day[person]) < len(TIMES)])
            day = self.day[person]
            place = choose_other(self.rng, self.world.places, day[-1]) if day else choose(self.rng, self.world.places)
            stay = Stay(person, len(day), place)
            day.append(place)
            self.stays.append(stay)
            self.pending.append(stay)

    def question(self) -> Question | None:
        """Ask for the place before a recent stay, not the first; of several stays at the place, the latest counts."""
        candidates = [stay for stay in self.stays[-RECENT_EVENTS:] if stay.time > 0]
        if not candidates:
            return None
        self.tell_pending()
        person, _, place = choose(self.rng, candidates)
        day = self.day[person]
        time = max(time for time, visited in enumerate(day) if visited == place)
        support = (self.line_of[person, time], self.line_of[person, time - 1])
        return Question(f"Where was {person} before the {place}?", day[time - 1], support)

    def tell_pending(self) -> None:
        """State the pending stays, out of order."""
        for person, time, place in cyclic_shuffled(self.rng, self.pending):
            self.line_of[person, time] = self.next_line
            self.tell(self.with_time(move_sentence(self.rng, person, place), time))
        self.pending.clear()

    def with_time(self, move: str, time: int) -> str:
        """Return the statement with the time of the day at the beginning or the end."""
        at_the_end = choose(self.rng, (True, False))
        return f"{move[:-1]} {TIMES[time]}." if at_the_end else f"{TIMES[time].capitalize()} {move}"

    def bystanders(self) -> list[str]:
        """Return the bystanders with times of the day left to state."""
        return [person for person in super().bystanders() if self.pending_bystander.get(person) != []]

    def bystander_statement(self, person: str) -> str:
        """Return a statement about one time of a bystander's day, out of order."""
        if person not in self.pending_bystander:
            places = [choose(self.rng, self.world.places)]
            while len(places) < len(TIMES):
                places.append(choose_other(self.rng, self.world.places, places[-1]))
            self.pending_bystander[person] = shuffled(self.rng, list(enumerate(places)))
        time, place = self.pending_bystander[person].pop()
        return self.with_time(move_sentence(self.rng, person, place), time)
