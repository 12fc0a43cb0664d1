"""Sizes of a story, to make bAbI harder or easier than it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from fastweights.data.names import NAMES
from fastweights.errors import UserError

EVERYBODY = tuple(name.capitalize() for name in NAMES["person"])
EVERYWHERE = NAMES["place"]
EVERYTHING = ("apple", "football", "milk", "pajamas", "box", "chest", "container", "suitcase", "chocolate")


@dataclass(frozen=True)
class Setting:
    """How many of what a story has, in the tasks that tell of people who move (1–3, 5–14); None: as in bAbI.

    Args:
        people: who act and are asked about.
        places: where they go.
        objects: what they carry, where the task has objects.
        questions: questions of a story.
        statements: statements told before a question is tried; where none can be asked yet, more follow.
        distractors: statements told between the facts and each question, of people whom no question concerns.
    """

    people: int | None = None
    places: int | None = None
    objects: int | None = None
    questions: int = 5
    statements: int = 2
    distractors: int = 0

    def __post_init__(self) -> None:
        least = {"questions": 1, "statements": 1, "distractors": 0, "people": 1, "places": 2, "objects": 1}
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None and field.default is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < least[field.name]:
                raise UserError(
                    f"{field.name} is {value!r}, but a story needs a whole number of at least {least[field.name]}."
                )


AS_IN_BABI = Setting()


def chosen(what: str, number: int | None, own: Sequence[str], all_of_them: Sequence[str]) -> tuple[str, ...]:
    """The first `number` names, a task's own before any others; its own if None.

    Raises:
        UserError: where bAbI's vocabulary has fewer names.
    """
    if number is None:
        return tuple(own)
    names = (*own, *(name for name in all_of_them if name not in own))
    if number > len(names):
        raise UserError(
            f"{number} {what} are wanted, but bAbI's words name only {len(names)}; give {what} {len(names)} or fewer."
        )
    return names[:number]
