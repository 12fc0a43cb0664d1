"""Associative retrieval (ART): pairs of keys and values, then queries, keys whose values are the targets.

Three modes (Ba et al. 2016, section 4.1; Keller et al. 2018), with one key or several as queries:

    art                c9k8j3f1??c     → 9
    mart               ckjf9831??c     → 9
    multi-query-art    c9k8j3f1??jcfk  → 3 9 1 8

`fastweights.data.mqar` has the MQAR of Zoology, under the same interface.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

LETTERS, DIGITS = "abcdefghijklmnopqrstuvwxyz", "0123456789"
SPLITS = ("train", "valid", "test")

Examples = TypeVar("Examples", bound=tuple)


class Sequences(NamedTuple):
    """N sequences of T tokens: inputs, targets, padding mask (False at padding) and groups, all `[N, T]`.

    Groups are numbers from 1 at queries (`Form.difficulty_names`), 0 elsewhere. Targets count at queries only.
    """

    inputs: np.ndarray
    targets: np.ndarray
    mask: np.ndarray
    groups: np.ndarray

    @property
    def output_mask(self) -> np.ndarray:
        """True at queries `[N, T]`."""
        return self.groups > 0


class Form(Hashable, Protocol):
    """The interface of a form of sequences: `ARTForm` and `fastweights.data.mqar.MQARForm`.

    Examples are a named tuple of arrays `[N, …]`, so `take` selects some for a batch, and `lay_out` makes its tokens.
    """

    @property
    def length(self) -> int:
        """Tokens of the longest sequence."""

    def vocabulary(self) -> tuple[str, ...]:
        """Return the tokens by number."""

    def difficulty_names(self) -> dict[int, str]:
        """Return the names of the groups."""

    def draw(self, count: int, split: str, seed: int = 0) -> Any:
        """Draw `count` examples of a split; the seed matters for training only."""

    def lay_out(self, examples: Any) -> Sequences:
        """Return the sequences of examples."""

    def token_count(self, examples: Any) -> int:
        """Return the number of tokens in examples, without padding."""

    def memory(self, count: int) -> int:
        """Return the bytes that `draw` takes at least for so many examples."""


def take(examples: Examples, numbers: np.ndarray) -> Examples:
    """Return the examples with these numbers `[B]`.

    >>> take(ARTExamples(*np.arange(8).reshape(4, 2)), np.array([1])).keys
    array([1])
    """
    return type(examples)(*(part[numbers] for part in examples))


class ARTExamples(NamedTuple):
    """N examples: keys and values `[N, K]`, the pairs of the queries `[N, Q]`, delays `[N]`."""

    keys: np.ndarray
    values: np.ndarray
    queries: np.ndarray
    delays: np.ndarray


@dataclass(frozen=True)
class ARTForm:
    """The form of ART, mART and multi-query ART sequences.

    Tokens are numbered: first the keys, then the values, then "?". The keys of a sequence are different, and so are its
    queries; values may repeat.

    Args:
        pairs: K, pairs of a key and a value.
        queries: Q, different keys after the question marks; their values are the targets.
        keys: number of keys in the vocabulary.
        values: number of values in the vocabulary.
        shortest_delay, longest_delay: question marks besides the usual two, uniformly distributed.
        keys_first: all keys before all values, as in mART.
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
        """Return the tokens by number: letters and digits, as far as they go."""
        keys = (LETTERS[i] if i < len(LETTERS) else f"key{i}" for i in range(self.keys))
        values = (DIGITS[i] if i < len(DIGITS) else f"value{i}" for i in range(self.values))
        return (*keys, *values, "?")

    def difficulty_names(self) -> dict[int, str]:
        """Return the names of the groups: the position of the query's pair, and the delay if it varies."""
        delays = range(self.shortest_delay, self.longest_delay + 1)
        prefixes = [f"delay {delay}, " if len(delays) > 1 else "" for delay in delays]
        names = [f"{prefix}pair {pair} of {self.pairs}" for prefix in prefixes for pair in range(1, self.pairs + 1)]
        return dict(enumerate(names, 1))

    def draw(self, count: int, split: str, seed: int = 0) -> ARTExamples:
        """Draw `count` examples of a split; the seed matters for training only."""
        source = [SPLITS.index(split), seed if split == "train" else 0]
        rng = np.random.Generator(np.random.PCG64(source))
        keys = rng.random((count, self.keys)).argsort(1)[:, : self.pairs]
        values = rng.integers(self.values, size=(count, self.pairs))
        queries = rng.random((count, self.pairs)).argsort(1)[:, : self.queries]
        delays = rng.integers(self.shortest_delay, self.longest_delay + 1, size=count)
        return ARTExamples(keys, values, queries, delays)

    def lay_out(self, examples: ARTExamples) -> Sequences:
        """Return the sequences of examples; after the last query they are padded with question marks."""
        keys, values, queries, delays = examples
        shape = (len(keys), self.length)
        inputs = np.full(shape, self.keys + self.values)  # question marks, partly overwritten below
        pairs = (keys, values + self.keys)
        inputs[:, : 2 * self.pairs] = (np.hstack if self.keys_first else np.dstack)(pairs).reshape(len(keys), -1)
        first = 2 * self.pairs + 2 + delays[:, None]
        positions = first + np.arange(self.queries)
        np.put_along_axis(inputs, positions, np.take_along_axis(keys, queries, 1), 1)
        targets, groups = inputs.copy(), np.zeros(shape, dtype=np.int64)
        np.put_along_axis(targets, positions, np.take_along_axis(values, queries, 1) + self.keys, 1)
        np.put_along_axis(groups, positions, 1 + queries + self.pairs * (delays[:, None] - self.shortest_delay), 1)
        return Sequences(inputs, targets, np.arange(self.length) < first + self.queries, groups)

    def token_count(self, examples: ARTExamples) -> int:
        """Return the number of tokens in examples, without padding."""
        return int((2 * self.pairs + 2 + self.queries + examples.delays).sum())

    def memory(self, count: int) -> int:
        """Return the bytes that `draw` takes at least for so many examples: their keys' order and its draws."""
        return count * self.keys * 16
