"""The settings of a search: each has a list of values, or a range from which values are drawn."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from fastweights.errors import UserError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

LARGEST = 2**53  # up to which numbers of 64 bits are exact
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_RANGE = re.compile(rf"({_NUMBER})\.\.({_NUMBER})( log)?")


class Values(NamedTuple):
    """A list of values, as texts."""

    texts: Sequence[str]

    @property
    def ends(self) -> Sequence[Any]:
        """All of them."""
        return self.texts

    def __contains__(self, value: object) -> bool:
        return value in self.texts

    def distribution(self) -> BaseDistribution:
        """The values for Optuna."""
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution(self.texts)


class Range(NamedTuple):
    """All numbers from low to high, whole ones where both are; log draws their logarithm uniformly."""

    low: float
    high: float
    log: bool

    @property
    def is_whole(self) -> bool:
        """Whether its values are whole numbers."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def ends(self) -> Sequence[Any]:
        """The lowest and the highest."""
        return (self.low, self.high)

    def __contains__(self, value: object) -> bool:
        return isinstance(value, int if self.is_whole else int | float) and self.low <= value <= self.high

    def distribution(self) -> BaseDistribution:
        """The range for Optuna."""
        from optuna.distributions import FloatDistribution, IntDistribution

        if self.is_whole:
            return IntDistribution(int(self.low), int(self.high), log=self.log)
        return FloatDistribution(self.low, self.high, log=self.log)


Axis = Values | Range


def axis(key: str, texts: Sequence[str]) -> Axis:
    """The values of a setting, from their texts.

    >>> axis("training.learning_rate", ["1e-4..1e-2 log"])
    Range(low=0.0001, high=0.01, log=True)
    >>> axis("training.batch_size", ["64", "128"])
    Values(texts=['64', '128'])

    Raises:
        UserError: where a range has no numbers.
    """
    found = _RANGE.fullmatch(texts[0]) if len(texts) == 1 else None
    if found is None:
        return Values(texts)
    low, high = (_number(text) for text in found.groups()[:2])
    made = Range(low, high, found[3] is not None)
    if not (-LARGEST < low < high < LARGEST and (low > 0 or not made.log)):
        bound = "numbers above 0" if made.log else "numbers"
        raise UserError(f'--over {key} has "{texts[0]}", which is no range of {bound}; write for example 0.1..0.5.')
    return made


def _number(text: str) -> float:
    try:
        return int(text)
    except ValueError:
        return float(text)
