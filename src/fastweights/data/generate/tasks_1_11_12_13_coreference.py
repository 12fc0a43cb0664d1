"""bAbI tasks 1 (one supporting fact), 11 (basic coreference), 12 (conjunction) and 13 (compound coreference)."""

from collections.abc import Sequence
from typing import ClassVar

from fastweights.data.babi import Question
from fastweights.data.generate.sampling import choose, shuffled
from fastweights.data.generate.story_sizes import StorySizes
from fastweights.data.generate.storyteller import ImmediateStoryteller, move_sentence
from fastweights.errors import UserError

CONNECTIVES = ("After that", "Afterwards", "Following that", "Then")
WOMEN = ("Mary", "Sandra", "Julie", "Gertrude", "Winona", "Jessica", "Emily", "Lily")


class OneSupportingFact(ImmediateStoryteller):
    """Task 1: the last move of a person decides."""

    babi_task = 1
    objects = ()
    group_size: ClassVar[int] = 1
    support_size: ClassVar[int] = 1

    def statement(self) -> str:
        """Simulate a move of one person, or of a group, and return its statement."""
        group, place = self.sample_move()
        return self.move(group, place, " and ".join(group))

    def sample_move(self) -> tuple[list[str], str]:
        """Return a random group of people and a place where none of them is."""
        # Group and place are redrawn together: two people in one place are a little more likely to move.
        while True:
            group = shuffled(self.rng, self.world.people)[: self.group_size]
            place = choose(self.rng, self.world.places)
            if all(self.world.place[person] != place for person in group):
                return group, place

    def move(self, group: Sequence[str], place: str, subject: str) -> str:
        """Move the group to a place, and return the statement with this subject."""
        for person in group:
            self.world.move(person, place, self.next_line)
        return move_sentence(self.rng, subject, place)

    def question(self) -> Question:
        """Ask for the place of a person who has moved recently."""
        person = choose(self.rng, self.recent_events).person
        moves = self.world.moves_by_person[person][-self.support_size :]
        return Question(f"Where is {person}?", moves[-1].place, tuple(move.line for move in moves))


class Conjunction(OneSupportingFact):
    """Task 12: `Mary and John moved to the office.`; the question is about one of the two."""

    babi_task = 12
    group_size = 2
    min_people = 2


class BasicCoreference(OneSupportingFact):
    """Task 11: two statements about one person, the second with a pronoun."""

    babi_task = 11
    support_size = 2

    @classmethod
    def select_entities(cls, sizes: StorySizes) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
        """Return the people and places; check that the statements come in pairs."""
        if sizes.statements % 2:
            raise UserError(
                f"statements is {sizes.statements}, but task {cls.babi_task} has them in pairs; give an even number."
            )
        return super().select_entities(sizes)

    def tell_block(self) -> None:
        """Add pairs of moves, each pair of the same person or the same two people."""
        for _ in range(self.sizes.statements // 2):
            group, place = self.sample_move()
            self.tell(self.move(group, place, " and ".join(group)))
            pronoun = "they" if len(group) > 1 else "she" if group[0] in WOMEN else "he"
            place = self.world.other_place(group[0])
            self.tell(self.move(group, place, f"{choose(self.rng, CONNECTIVES)} {pronoun}"))


class CompoundCoreference(BasicCoreference):
    """Task 13: as task 11 with two persons, `Then they moved to the kitchen.`"""

    babi_task = 13
    group_size = 2
    min_people = 2
