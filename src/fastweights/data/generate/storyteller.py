"""Base classes of the story generators: the wording of statements, and the order of statements and questions."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from random import Random
from typing import ClassVar

from fastweights.data.babi import Question, Statement, Story
from fastweights.data.generate.sampling import choose, choose_other
from fastweights.data.generate.story_sizes import (
    ALL_OBJECTS,
    ALL_PEOPLE,
    ALL_PLACES,
    BABI_SIZES,
    StorySizes,
    select_names,
)
from fastweights.data.generate.world import OBJECTS, PEOPLE, PLACES, Event, World
from fastweights.errors import UserError

# People and places of tasks 10 and 14.
TOWN_PEOPLE = ("Fred", "Mary", "Bill", "Julie")
TOWN_PLACES = ("bedroom", "cinema", "kitchen", "office", "park", "school")

MOVE_VERBS = ("moved", "went", "went back", "travelled", "journeyed")
TAKE_VERBS = ("picked up", "got", "took", "grabbed")
DROP_VERBS = ("left", "dropped", "put down", "discarded")
GIVE_VERBS = ("gave", "passed", "handed")

RECENT_EVENTS = 5

SUFFIX_THERE = (" there",)
SUFFIX_RARELY_THERE = (" there", "", "", "", "")


def move_sentence(rng: Random, subject: str, place: str) -> str:
    """Return `Mary went back to the kitchen.` in one of its wordings."""
    return f"{subject} {choose(rng, MOVE_VERBS)} to the {place}."


def take_sentence(rng: Random, person: str, thing: str, suffixes: Sequence[str] = SUFFIX_THERE) -> str:
    """Return `Mary got the milk there.` in one of its wordings."""
    return f"{person} {choose(rng, TAKE_VERBS)} the {thing}{choose(rng, suffixes)}."


def event_sentence(rng: Random, event: Event, take_suffixes: Sequence[str] = SUFFIX_THERE) -> str:
    """Return a statement about the event, `Mary got the milk there.`, in one of its wordings."""
    if event.kind == "move":
        return move_sentence(rng, event.person, event.place)
    if event.kind == "take":
        return take_sentence(rng, event.person, event.thing, take_suffixes)
    if event.kind == "drop":
        return f"{event.person} {choose(rng, DROP_VERBS)} the {event.thing}{choose(rng, SUFFIX_RARELY_THERE)}."
    return f"{event.person} {choose(rng, GIVE_VERBS)} the {event.thing} to {event.receiver}."


class BlockStoryteller(ABC):
    """Generator of stories in blocks: some statements, then a question if the text determines one (see `StorySizes`).

    A question starts from one of the recent events, drawn at random: frequent events give frequent questions.
    """

    babi_task: ClassVar[int]
    people: ClassVar[Sequence[str]] = PEOPLE
    places: ClassVar[Sequence[str]] = PLACES
    objects: ClassVar[Sequence[str]] = OBJECTS

    min_people: ClassVar[int] = 1
    max_objects: ClassVar[int] = len(ALL_OBJECTS)

    def __init__(self, rng: Random, sizes: StorySizes) -> None:
        self.rng = rng
        self.sizes = sizes
        people, places, objects = self.select_entities(sizes)
        self.world = World(rng, people, places, objects)
        self.last_seen: dict[str, str] = {}  # of each bystander
        self.lines: list[Statement | Question] = []

    @classmethod
    def select_entities(cls, sizes: StorySizes) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
        """Return the people, places and objects of a story.

        Raises:
            UserError: for sizes that this task cannot have.
        """
        people = select_names("people", sizes.people, cls.people, ALL_PEOPLE)
        places = select_names("places", sizes.places, cls.places, ALL_PLACES)
        objects = select_names("objects", sizes.objects, cls.objects, ALL_OBJECTS) if cls.objects else ()
        if len(people) < cls.min_people:
            raise UserError(f"people is {len(people)}, but task {cls.babi_task} needs at least {cls.min_people}.")
        if len(objects) > cls.max_objects:
            raise UserError(
                f"objects is {len(objects)}, but bAbI has words for at most {cls.max_objects} in task {cls.babi_task}."
            )
        if sizes.distractors and len(people) == len(ALL_PEOPLE):
            raise UserError(
                f"All {len(people)} people act in the story, so nobody is left for distractors; give fewer people."
            )
        return people, places, objects

    @classmethod
    def story(cls, rng: Random, sizes: StorySizes = BABI_SIZES) -> Story:
        """Return a random story of this bAbI task."""
        teller = cls(rng, sizes)
        questions = 0
        while questions < sizes.questions:
            teller.tell_block()
            question = teller.question()
            if question is not None:
                teller.tell_distractors()
                teller.lines.append(question)
                questions += 1
        return Story(cls.babi_task, tuple(teller.lines))

    @property
    def next_line(self) -> int:
        """The number of the next line."""
        return len(self.lines) + 1

    @property
    def recent_events(self) -> list[Event]:
        """The last few events, from which questions start."""
        return self.world.events[-RECENT_EVENTS:]

    @abstractmethod
    def tell_block(self) -> None:
        """Simulate some events and state them, now or before the next question."""

    def tell_distractors(self) -> None:
        """Add the distractors: statements about bystanders."""
        for _ in range(self.sizes.distractors):
            self.tell(self.bystander_statement(choose(self.rng, self.bystanders())))

    def bystanders(self) -> list[str]:
        """Return the people outside the story, for distractors."""
        return [person for person in ALL_PEOPLE if person not in self.world.people]

    def bystander_statement(self, person: str) -> str:
        """Simulate an event of a bystander and return its statement."""
        place = choose_other(self.rng, self.world.places, self.last_seen.get(person))
        self.last_seen[person] = place
        return move_sentence(self.rng, person, place)

    def tell(self, text: str) -> None:
        """Add a statement to the story."""
        self.lines.append(Statement(text))

    @abstractmethod
    def question(self) -> Question | None:
        """Return a question whose answer the text determines, or None."""


class ImmediateStoryteller(BlockStoryteller):
    """Generator that states each event at once."""

    def tell_block(self) -> None:
        """Add a block of statements, in bAbI two."""
        for _ in range(self.sizes.statements):
            self.tell(self.statement())

    @abstractmethod
    def statement(self) -> str:
        """Simulate an event and return its statement."""
