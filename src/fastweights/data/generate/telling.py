"""How stories are told: the wording of statements, and the rhythm of statements and questions."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from random import Random
from typing import ClassVar

from fastweights.data.babi import Question, Statement, Story
from fastweights.data.generate.randomness import choose
from fastweights.data.generate.world import OBJECTS, PEOPLE, PLACES, Event, World

# Those of tasks 10 and 14.
TOWNSPEOPLE = ("Fred", "Mary", "Bill", "Julie")
TOWN = ("bedroom", "cinema", "kitchen", "office", "park", "school")

MOVING = ("moved", "went", "went back", "travelled", "journeyed")
TAKING = ("picked up", "got", "took", "grabbed")
DROPPING = ("left", "dropped", "put down", "discarded")
GIVING = ("gave", "passed", "handed")

ALWAYS_THERE = (" there",)
SELDOM_THERE = (" there", "", "", "", "")


def moving(rng: Random, subject: str, place: str) -> str:
    """Return `Mary went back to the kitchen.` in one of its wordings."""
    return f"{subject} {choose(rng, MOVING)} to the {place}."


def taking(rng: Random, person: str, thing: str, there: Sequence[str] = ALWAYS_THERE) -> str:
    """Return `Mary got the milk there.` in one of its wordings."""
    return f"{person} {choose(rng, TAKING)} the {thing}{choose(rng, there)}."


def wording(rng: Random, event: Event, there_after_taking: Sequence[str] = ALWAYS_THERE) -> str:
    """Return a statement that tells the event, `Mary got the milk there.`, in one of its wordings."""
    if event.kind == "move":
        return moving(rng, event.person, event.place)
    if event.kind == "take":
        return taking(rng, event.person, event.thing, there_after_taking)
    if event.kind == "drop":
        return f"{event.person} {choose(rng, DROPPING)} the {event.thing}{choose(rng, SELDOM_THERE)}."
    return f"{event.person} {choose(rng, GIVING)} the {event.thing} to {event.receiver}."


class BlockStoryteller(ABC):
    """Tells a block of statements and asks a question after it if it can, until it has asked five.

    A question starts from one of the last five events, drawn at random: what happens often is asked often.
    """

    number: ClassVar[int]
    people: ClassVar[Sequence[str]] = PEOPLE
    places: ClassVar[Sequence[str]] = PLACES
    objects: ClassVar[Sequence[str]] = OBJECTS

    def __init__(self, rng: Random) -> None:
        self.rng = rng
        self.world = World(rng, self.people, self.places, self.objects)
        self.lines: list[Statement | Question] = []

    @classmethod
    def story(cls, rng: Random) -> Story:
        """Return a random story of this task."""
        teller = cls(rng)
        questions = 0
        while questions < 5:
            teller.block()
            question = teller.question()
            if question is not None:
                teller.lines.append(question)
                questions += 1
        return Story(cls.number, tuple(teller.lines))

    @property
    def line(self) -> int:
        """The number of the line that is told next."""
        return len(self.lines) + 1

    @property
    def window(self) -> list[Event]:
        """The events recent enough to be asked about."""
        return self.world.events[-5:]

    @abstractmethod
    def block(self) -> None:
        """Let two things happen, and tell of them, or keep them to be told before the next question."""

    def tell(self, text: str) -> None:
        """Add a statement to the story."""
        self.lines.append(Statement(text))

    @abstractmethod
    def question(self) -> Question | None:
        """Return a question that the text so far determines, or None if there is none."""


class SteadyStoryteller(BlockStoryteller):
    """Tells each thing as it happens: a block is two statements."""

    def block(self) -> None:
        """Tell two statements."""
        self.tell(self.statement())
        self.tell(self.statement())

    @abstractmethod
    def statement(self) -> str:
        """Let something happen and return the statement that tells it."""
