"""Associative retrieval: pairs of keys and values, then keys whose values are asked (Ba et al. 2016, section 4.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

LETTERS, DIGITS = "abcdefghijklmnopqrstuvwxyz", "0123456789"
SPLITS = ("train", "valid", "test")


class Examples(NamedTuple):
    """N examples before they are laid out: keys and values `[N, K]`, asked (pairs) `[N, Q]`, delays `[N]`."""

    keys: np.ndarray
    values: np.ndarray
    asked: np.ndarray
    delays: np.ndarray


class Sequences(NamedTuple):
    """N examples as sequences of tokens, all `[N, L]`: 0 in difficulties where nothing is asked."""

    inputs: np.ndarray
    targets: np.ndarray
    valid: np.ndarray
    difficulties: np.ndarray


@dataclass(frozen=True)
class Form:
    """What the sequences look like.

    keys and values say how many of them there are; tokens are numbered keys first, then values, then "?".
    """

    pairs: int
    queries: int
    keys: int
    values: int
    shortest_delay: int
    longest_delay: int
    keys_first: bool

    @property
    def length(self) -> int:
        """Tokens of the longest sequence."""
        return 2 * self.pairs + 2 + self.longest_delay + self.queries

    def vocabulary(self) -> tuple[str, ...]:
        """The tokens by their number: letters and digits, as far as they go."""
        keys = (LETTERS[i] if i < len(LETTERS) else f"key{i}" for i in range(self.keys))
        values = (DIGITS[i] if i < len(DIGITS) else f"value{i}" for i in range(self.values))
        return (*keys, *values, "?")

    def difficulty_names(self) -> dict[int, str]:
        """What the numbers of the difficulties mean: the place of the asked pair, and the delay where it varies."""
        delays = range(self.shortest_delay, self.longest_delay + 1)
        said = [f"delay {delay}, " if len(delays) > 1 else "" for delay in delays]
        names = [f"{delay}pair {pair} of {self.pairs}" for delay in said for pair in range(1, self.pairs + 1)]
        return dict(enumerate(names, 1))

    def draw(self, count: int, split: str, seed: int = 0) -> Examples:
        """Draw the examples of a split; only the training split depends on the seed of a run."""
        source = [SPLITS.index(split), seed if split == "train" else 0]
        random = np.random.Generator(np.random.PCG64(source))
        keys = random.random((count, self.keys)).argsort(1)[:, : self.pairs]
        values = random.integers(self.values, size=(count, self.pairs))
        asked = random.random((count, self.pairs)).argsort(1)[:, : self.queries]
        return Examples(keys, values, asked, random.integers(self.shortest_delay, self.longest_delay + 1, size=count))

    def lay_out(self, examples: Examples) -> Sequences:
        """Write examples as sequences."""
        keys, values, asked, delays = examples
        shape = (len(keys), self.length)
        inputs = np.full(shape, self.keys + self.values)  # a question mark, unless something else is written over it
        stored = (keys, values + self.keys)
        inputs[:, : 2 * self.pairs] = (np.hstack if self.keys_first else np.dstack)(stored).reshape(len(keys), -1)
        first = 2 * self.pairs + 2 + delays[:, None]
        places = first + np.arange(self.queries)
        np.put_along_axis(inputs, places, np.take_along_axis(keys, asked, 1), 1)
        targets, difficulties = inputs.copy(), np.zeros(shape, dtype=np.int64)
        np.put_along_axis(targets, places, np.take_along_axis(values, asked, 1) + self.keys, 1)
        np.put_along_axis(difficulties, places, 1 + asked + self.pairs * (delays[:, None] - self.shortest_delay), 1)
        return Sequences(inputs, targets, np.arange(self.length) < first + self.queries, difficulties)
