"""Sizes of a story, to make bAbI harder or easier than it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from fastweights.data.names import NAMES
from fastweights.errors import UserError

ALL_PEOPLE = tuple(name.capitalize() for name in NAMES["person"])
ALL_PLACES = NAMES["place"]
ALL_OBJECTS = ("apple", "football", "milk", "pajamas", "box", "chest", "container", "suitcase", "chocolate")


LONGEST_STORY = 2_000  # lines


@dataclass(frozen=True)
class StorySizes:
    """Sizes of a generated story of bAbI tasks 1–3 and 5–14; None: the size in bAbI.

    Args:
        people: people in the story.
        places: places in the story.
        objects: objects in the story, for tasks with objects.
        questions: questions per story.
        statements: statements before each question; as many again while the text determines no answer.
        distractors: statements about other people before each question.
    """

    people: int | None = None
    places: int | None = None
    objects: int | None = None
    questions: int = 5
    statements: int = 2
    distractors: int = 0

    def __post_init__(self) -> None:
        minimum = {"questions": 1, "statements": 1, "distractors": 0, "people": 1, "places": 2, "objects": 1}
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None and field.default is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < minimum[field.name]:
                raise UserError(
                    f"{field.name} is {value!r}, but a story needs a whole number of at least {minimum[field.name]}."
                )
        if self.lines > LONGEST_STORY:
            raise UserError(
                f"A story would have {self.lines:,} lines or more, and every row of a batch holds one from the first "
                f"step on; make questions, statements or distractors smaller, for at most {LONGEST_STORY:,} lines."
            )

    @property
    def lines(self) -> int:
        """The least number of lines of a story of these sizes."""
        return self.questions * (self.statements + self.distractors + 1)


BABI_SIZES = StorySizes()


def select_names(kind: str, count: int | None, defaults: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """Return `count` names of a kind, a task's defaults before other known names; None: the defaults.

    Raises:
        UserError: if bAbI's vocabulary has fewer names.
    """
    if count is None:
        return tuple(defaults)
    names = (*defaults, *(name for name in known if name not in defaults))
    if count > len(names):
        raise UserError(
            f"{count} {kind} are too many: bAbI's vocabulary names {len(names)}; give {kind} {len(names)} or fewer."
        )
    return names[:count]
