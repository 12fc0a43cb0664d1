"""Where is a person? Tasks 1 (one mover), 11 (pronouns), 12 (two movers together) and 13 (both)."""

from collections.abc import Sequence
from typing import ClassVar

from fastweights.data.babi import Question
from fastweights.data.generate.randomness import choose, shuffled
from fastweights.data.generate.setting import Setting
from fastweights.data.generate.telling import SteadyStoryteller, moving
from fastweights.errors import UserError

FOLLOWING = ("After that", "Afterwards", "Following that", "Then")
WOMEN = ("Mary", "Sandra", "Julie", "Gertrude", "Winona", "Jessica", "Emily", "Lily")


class WhereIsThePerson(SteadyStoryteller):
    """Task 1: the last move decides."""

    number = 1
    objects = ()
    party_size: ClassVar[int] = 1
    moves_in_proof: ClassVar[int] = 1

    def statement(self) -> str:
        """Let one person move, or some together."""
        party, place = self.outing()
        return self.move(party, place, " and ".join(party))

    def outing(self) -> tuple[list[str], str]:
        """Return who moves next and where to, a place where none of them is."""
        # Drawn anew together: two people who stand at one place are therefore a little more likely to go.
        while True:
            party = shuffled(self.rng, self.world.people)[: self.party_size]
            place = choose(self.rng, self.world.places)
            if all(self.world.place[person] != place for person in party):
                return party, place

    def move(self, party: Sequence[str], place: str, subject: str) -> str:
        """Let the party move to a place, and return the statement that tells it of `subject`."""
        for person in party:
            self.world.move(person, place, self.line)
        return moving(self.rng, subject, place)

    def question(self) -> Question:
        """Ask where somebody is who has moved lately."""
        person = choose(self.rng, self.window).person
        moves = self.world.arrivals[person][-self.moves_in_proof :]
        return Question(f"Where is {person}?", moves[-1].place, tuple(move.line for move in moves))


class WhereAreTheTwo(WhereIsThePerson):
    """Task 12: `Mary and John moved to the office.`; one of the two is asked about."""

    number = 12
    party_size = 2
    fewest_people = 2


class WhereIsHe(WhereIsThePerson):
    """Task 11: a block tells of one person, whom its second statement names by a pronoun."""

    number = 11
    moves_in_proof = 2

    @classmethod
    def cast(cls, setting: Setting) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
        """The people and places of a story told in pairs of statements."""
        if setting.statements % 2:
            raise UserError(
                f"statements is {setting.statements}, but task {cls.number} tells them in pairs; give an even number."
            )
        return super().cast(setting)

    def block(self) -> None:
        """Let the same person, or the same two, move twice; in longer blocks, then others."""
        for _ in range(self.setting.statements // 2):
            party, place = self.outing()
            self.tell(self.move(party, place, " and ".join(party)))
            pronoun = "they" if len(party) > 1 else "she" if party[0] in WOMEN else "he"
            place = self.world.elsewhere(party[0])
            self.tell(self.move(party, place, f"{choose(self.rng, FOLLOWING)} {pronoun}"))


class WhereAreThey(WhereIsHe):
    """Task 13: as task 11 with two persons, `Then they moved to the kitchen.`"""

    number = 13
    party_size = 2
    fewest_people = 2
