"""How stories are told: the wording of statements, and the rhythm of statements and questions."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from random import Random
from typing import ClassVar

from fastweights.data.babi import Question, Statement, Story
from fastweights.data.generate.randomness import choose, choose_other
from fastweights.data.generate.setting import AS_IN_BABI, EVERYBODY, EVERYTHING, EVERYWHERE, Setting, chosen
from fastweights.data.generate.world import OBJECTS, PEOPLE, PLACES, Event, World
from fastweights.errors import UserError

# Those of tasks 10 and 14.
TOWNSPEOPLE = ("Fred", "Mary", "Bill", "Julie")
TOWN = ("bedroom", "cinema", "kitchen", "office", "park", "school")

MOVING = ("moved", "went", "went back", "travelled", "journeyed")
TAKING = ("picked up", "got", "took", "grabbed")
DROPPING = ("left", "dropped", "put down", "discarded")
GIVING = ("gave", "passed", "handed")

RECENT = 5  # events

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
    """Tells a block of statements and asks a question after it if it can, until it has asked five (see `Setting`).

    A question starts from one of the last few events, drawn at random: what happens often is asked often.
    """

    number: ClassVar[int]
    people: ClassVar[Sequence[str]] = PEOPLE
    places: ClassVar[Sequence[str]] = PLACES
    objects: ClassVar[Sequence[str]] = OBJECTS

    fewest_people: ClassVar[int] = 1
    most_objects: ClassVar[int] = len(EVERYTHING)

    def __init__(self, rng: Random, setting: Setting) -> None:
        self.rng = rng
        self.setting = setting
        people, places, objects = self.cast(setting)
        self.world = World(rng, people, places, objects)
        self.last_seen: dict[str, str] = {}  # of each bystander
        self.lines: list[Statement | Question] = []

    @classmethod
    def cast(cls, setting: Setting) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
        """The people, places and objects of a story.

        Raises:
            UserError: where the setting asks for what this task cannot tell of.
        """
        people = chosen("people", setting.people, cls.people, EVERYBODY)
        places = chosen("places", setting.places, cls.places, EVERYWHERE)
        objects = chosen("objects", setting.objects, cls.objects, EVERYTHING) if cls.objects else ()
        if len(people) < cls.fewest_people:
            raise UserError(f"people is {len(people)}, but task {cls.number} needs at least {cls.fewest_people}.")
        if len(objects) > cls.most_objects:
            raise UserError(
                f"objects is {len(objects)}, but bAbI has words for at most {cls.most_objects} in task {cls.number}."
            )
        if setting.distractors and len(people) == len(EVERYBODY):
            raise UserError(
                f"All {len(people)} people act in the story, so nobody is left for distractors; give fewer people."
            )
        return people, places, objects

    @classmethod
    def story(cls, rng: Random, setting: Setting = AS_IN_BABI) -> Story:
        """Return a random story of this task."""
        teller = cls(rng, setting)
        questions = 0
        while questions < setting.questions:
            teller.block()
            question = teller.question()
            if question is not None:
                teller.distract()
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
        return self.world.events[-RECENT:]

    @abstractmethod
    def block(self) -> None:
        """Let some things happen, and tell of them, or keep them to be told before the next question."""

    def distract(self) -> None:
        """Tell of people whom no question concerns."""
        for _ in range(self.setting.distractors):
            self.tell(self.aside(choose(self.rng, self.bystanders())))

    def bystanders(self) -> list[str]:
        """People who are not in the story, and of whom something can be told."""
        return [person for person in EVERYBODY if person not in self.world.people]

    def aside(self, person: str) -> str:
        """Let a bystander do something and return the statement that tells it."""
        place = choose_other(self.rng, self.world.places, self.last_seen.get(person))
        self.last_seen[person] = place
        return moving(self.rng, person, place)

    def tell(self, text: str) -> None:
        """Add a statement to the story."""
        self.lines.append(Statement(text))

    @abstractmethod
    def question(self) -> Question | None:
        """Return a question that the text so far determines, or None if there is none."""


class SteadyStoryteller(BlockStoryteller):
    """Tells each thing as it happens."""

    def block(self) -> None:
        """Tell some statements, in bAbI two."""
        for _ in range(self.setting.statements):
            self.tell(self.statement())

    @abstractmethod
    def statement(self) -> str:
        """Let something happen and return the statement that tells it."""
