"""Multi-query associative recall (MQAR), the generator of Zoology (Arora, Eyuboglu et al. 2024, ICLR).

Pairs of a key and a value come first, then each key once more as a query; the distances follow a power law. Source:
`zoology/data/multiquery_ar.py` of github.com/HazyResearch/zoology, with equal distributions but other random numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fastweights.data.retrieval import SPLITS, Sequences

CHUNK = 1024  # examples per random number generator


class MQARExamples(NamedTuple):
    """N examples of D pairs in T tokens: keys, values and gaps `[N, D]`, filler `[N, T]`; unsigned integers."""

    keys: np.ndarray
    values: np.ndarray
    gaps: np.ndarray
    filler: np.ndarray


@dataclass(frozen=True)
class MQARForm:
    """The form of MQAR sequences.

    With V tokens in the vocabulary, keys are 1 … V/2 - 1 and values V/2 … V - 1, both different within a sequence. The
    pairs take the first 2·D positions, and the query of a key with gap g is at position 2·D + 2·g, with the key's value
    as the target: each key is queried once. The gaps of a sequence are different, with probabilities proportional to
    (g + 1)^(power_a - 1). All other positions are filler: random tokens of the whole vocabulary (keys and values of the
    sequence included), or 0.

    The paper's figure 2 has (T, D) = (64, 4), (128, 8), (256, 16), (512, 64), filler 0, 100,000 examples for training
    and 3,000 for test.

    Args:
        vocabulary_size: V (Zoology: vocab_size).
        length: T, tokens of a sequence, an even number (input_seq_len).
        pairs: D, pairs of a key and a value (num_kv_pairs).
        power_a: exponent of the power law; 1.0 is uniform.
        random_non_queries: whether filler is random tokens, or 0.

    Raises:
        ValueError: unless V > T ≥ 4·D, T is even and power_a is positive.
    """

    vocabulary_size: int = 8192
    length: int = 64
    pairs: int = 8
    power_a: float = 0.01
    random_non_queries: bool = True

    def __post_init__(self) -> None:
        if self.pairs < 1:
            raise ValueError(f"pairs is {self.pairs}; it must be at least 1")
        if self.length % 2 or self.length < 4 * self.pairs:
            raise ValueError(
                f"length is {self.length}; {self.pairs} pairs and their queries need an even number of at least "
                f"{4 * self.pairs} tokens"
            )
        if self.vocabulary_size <= self.length:
            raise ValueError(
                f"vocabulary_size is {self.vocabulary_size}; it must be larger than the length, {self.length}"
            )
        if self.power_a <= 0:
            raise ValueError(f"power_a is {self.power_a}; it must be positive")

    @property
    def slots(self) -> int:
        """Number of possible gaps."""
        return self.length // 2 - self.pairs

    def vocabulary(self) -> tuple[str, ...]:
        """Return the tokens by number: blank, keys, values."""
        first_value = self.vocabulary_size // 2
        keys = (f"key{i}" for i in range(1, first_value))
        return ("<blank>", *keys, *(f"value{i}" for i in range(first_value, self.vocabulary_size)))

    def difficulty_names(self) -> dict[int, str]:
        """Return the names of the groups: ranges of gaps, 0, 1, 2–3, 4–7, …"""
        names = {1: "gap 0"}
        for group in range(2, (self.slots - 1).bit_length() + 2):
            low, high = 2 ** (group - 2), min(2 ** (group - 1), self.slots) - 1
            names[group] = f"gap {low}" if low == high else f"gap {low}-{high}"
        return names

    def gap_probabilities(self) -> np.ndarray:
        """Return the probability of each gap for the first key drawn, `[slots]`."""
        weights = np.arange(1, self.slots + 1) ** (self.power_a - 1)
        return weights / weights.sum()

    def draw(self, count: int, split: str, seed: int = 0) -> MQARExamples:
        """Draw the first `count` examples of a split; the seed matters for training only.

        An example depends on split, seed and its number, not on `count`.
        """
        chunks = [self._draw_chunk(split, seed, chunk) for chunk in range(max(1, -(-count // CHUNK)))]
        return MQARExamples(*(np.concatenate(parts)[:count] for parts in zip(*chunks, strict=True)))

    def _draw_chunk(self, split: str, seed: int, chunk: int) -> MQARExamples:
        source = [SPLITS.index(split), seed if split == "train" else 0, chunk]
        rng = np.random.Generator(np.random.PCG64(source))
        first_value = self.vocabulary_size // 2
        keys = _draw_distinct(rng, 1, first_value, (CHUNK, self.pairs))
        values = _draw_distinct(rng, first_value, self.vocabulary_size, (CHUNK, self.pairs))
        # The order of arrival times with rates p is a weighted draw without replacement, as by numpy's `choice`.
        times = rng.standard_exponential((CHUNK, self.slots)) / self.gap_probabilities()
        gaps = times.argsort(1)[:, : self.pairs]
        filler = np.zeros((CHUNK, self.length), np.int64)
        if self.random_non_queries:
            filler = rng.integers(self.vocabulary_size, size=filler.shape)
        dtype = np.min_scalar_type(self.vocabulary_size - 1)
        return MQARExamples(*(part.astype(dtype) for part in (keys, values, gaps, filler)))

    def lay_out(self, examples: MQARExamples) -> Sequences:
        """Return the sequences of examples; the output mask is true at queries, the padding mask everywhere.

        Targets are -100 without a query in Zoology, and equal to the inputs here: only `output_mask` counts.
        """
        keys, values, gaps = (part.astype(np.int64) for part in examples[:3])
        inputs = examples.filler.astype(np.int64)
        inputs[:, : 2 * self.pairs] = np.dstack((keys, values)).reshape(len(keys), -1)
        queries = 2 * self.pairs + 2 * gaps
        np.put_along_axis(inputs, queries, keys, 1)
        targets, groups = inputs.copy(), np.zeros_like(inputs)
        np.put_along_axis(targets, queries, values, 1)
        np.put_along_axis(groups, queries, 1 + np.frexp(gaps)[1], 1)  # 1 + bit length
        return Sequences(inputs, targets, np.ones(inputs.shape, dtype=bool), groups)

    def token_count(self, examples: MQARExamples) -> int:
        """Return the number of tokens in examples, without padding."""
        return len(examples.keys) * self.length

    def memory(self, count: int) -> int:
        """Return the bytes that `draw` takes at least for so many examples: all tokens, and the times of a chunk."""
        return count * self.length * np.min_scalar_type(self.vocabulary_size - 1).itemsize + CHUNK * self.slots * 16


def _draw_distinct(rng: np.random.Generator, low: int, high: int, shape: tuple[int, int]) -> np.ndarray:
    """Draw integers from low to high - 1 that are different within an example, by redraws of duplicates."""
    drawn = rng.integers(low, high, shape)
    while True:
        order = drawn.argsort(1, kind="stable")
        ranked = np.take_along_axis(drawn, order, 1)
        duplicate = np.zeros(shape, dtype=bool)
        np.put_along_axis(duplicate, order[:, 1:], ranked[:, 1:] == ranked[:, :-1], 1)
        if not duplicate.any():
            return drawn
        drawn[duplicate] = rng.integers(low, high, duplicate.sum())
