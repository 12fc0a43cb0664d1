"""Associative retrieval: ART, mART and MQAR, generated from a seed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch

from fastweights.data.retrieval import Examples, Form
from fastweights.data.vocabulary import Vocabulary
from fastweights.errors import UserError
from fastweights.specs import Count, Size
from fastweights.tasks.contract import Batch, SequenceTask


class Retrieval(SequenceTask):
    """Remember pairs of a key and a value, then give the values of the queried keys.

        art     c9k8j3f1??c     → 9        pair after pair, one query (Ba et al. 2016)
        mart    ckjf9831??c     → 9        all keys, then all values in the same order (Keller et al. 2018)
        mqar    c9k8j3f1??jcfk  → 3 9 1 8  as art, many queries one after another (Arora et al. 2024)

    The keys of a sequence are all different, values may repeat; each sequence starts from an empty state. The published
    texts do not show a sequence of mART: its form is the likeliest reading.

    Args:
        mode: "art", "mart" or "mqar".
        pairs: K, pairs of a key and a value.
        queries: number of queried keys, all different; 0 means one, or all with "mqar".
        keys: how many keys there are to choose from, the first 26 of them letters.
        values: how many values there are, the first 10 of them digits.
        delay: number of further question marks before the queries, such as 4, or 0-8 for any of these.
        segment_length: tokens of a sequence, shorter ones are padded; 0 means as many as the longest has.
        examples: sequences that training goes through, each epoch in another order.
        validation_examples: sequences of the validation split.
        test_examples: sequences of the test split.
    """

    def __init__(
        self,
        *,
        mode: Literal["art", "mart", "mqar"] = "art",
        pairs: Size = 8,
        queries: Count = 0,
        keys: Size = 26,
        values: Size = 10,
        delay: str | int = "0",
        segment_length: Count = 0,
        examples: Size = 100_000,
        validation_examples: Size = 10_000,
        test_examples: Size = 20_000,
    ):
        self.mode = mode
        self.examples = {"train": examples, "valid": validation_examples, "test": test_examples}
        if pairs > keys:
            raise ValueError(f"{pairs} pairs need {pairs} different keys, and there are {keys}; give more keys")
        queries = queries or (pairs if mode == "mqar" else 1)
        if not 1 <= queries <= pairs:
            raise ValueError(f"queries is {queries}; it must lie between 1 and the number of pairs, {pairs}")
        shortest, longest = _delays(str(delay))
        self.form = Form(pairs, queries, keys, values, shortest, longest, keys_first=mode == "mart")
        self.segment_length = segment_length or self.form.length
        if self.segment_length < self.form.length:
            raise ValueError(
                f"{pairs} pairs, a delay of {longest} and what is asked take {self.form.length} tokens, which do not "
                f"fit into a segment_length of {segment_length}"
            )

    def prepare(self, data: str | None) -> Vocabulary:
        """The vocabulary: keys, values and the question mark."""
        if data is not None:
            raise UserError("Sequences for associative retrieval are generated; leave --data out.")
        words = self.form.vocabulary()
        return Vocabulary(words, "characters" if all(len(word) == 1 for word in words) else "words")

    def group_names(self) -> dict[int, str]:
        """Difficulties of a query: the place of its pair, and the delay."""
        return self.form.difficulty_names()

    def describe(self, data: str | None) -> str:
        asked = "one" if self.form.queries == 1 else self.form.queries
        return f"{self.examples['train']:,} generated sequences ({self.mode}): {self.form.pairs} pairs, {asked} asked"

    def training_batches(
        self, data: str | None, batch_size: int, seed: int, shard: slice = slice(None)
    ) -> SequenceBatches:
        return SequenceBatches(self, self._draw("train", seed), batch_size, seed, shard)

    def evaluation_batches(self, data: str | None, split: str, batch_size: int) -> SequenceBatches:
        return SequenceBatches(self, self._draw(split), batch_size)

    def evaluation_counts(self, data: str | None, split: str) -> dict[str, int]:
        delays = self._draw(split).delays
        shortest = self.form.length - self.form.longest_delay
        return {"sequences": len(delays), "tokens": int(delays.sum()) + shortest * len(delays)}

    def _draw(self, split: str, seed: int = 0) -> Examples:
        return _draw(self.form, self.examples[split], split, seed)


_draw = lru_cache(maxsize=4)(Form.draw)


def _delays(text: str) -> tuple[int, int]:
    """The shortest and the longest delay of "4" or "0-8"."""
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    shortest, longest = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
    if shortest > longest:
        raise ValueError(f'delay is "{text}"; it must be a number such as 4, or a range such as 0-8')
    return shortest, longest


class SequenceBatches:
    """Sequences as batches of tensors: with a seed endlessly, each epoch in another order, without one each once."""

    def __init__(
        self, task: Retrieval, examples: Examples, batch_size: int, seed: int | None = None, shard: slice = slice(None)
    ):
        self._task, self._examples, self._batch_size, self._seed, self._shard = task, examples, batch_size, seed, shard
        self._count = len(examples.keys)
        self._next = 0
        self._order = lru_cache(maxsize=2)(self._order_of)  # a batch may end one epoch and begin the next

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self._seed is None and self._next >= self._count:
            raise StopIteration
        numbers = np.arange(self._next, self._next + self._batch_size)
        self._next += self._batch_size
        exists = np.ones(len(numbers), dtype=bool)
        if self._seed is None:
            exists, numbers = numbers < self._count, numbers.clip(max=self._count - 1)
        else:
            numbers = np.array([self._order(number // self._count)[number % self._count] for number in numbers])
        numbers, exists = numbers[self._shard], exists[self._shard]
        sequences = self._task.form.lay_out(Examples(*(part[numbers] for part in self._examples)))
        padding = ((0, 0), (0, self._task.segment_length - sequences.inputs.shape[1]))
        inputs, targets, mask, groups = (torch.from_numpy(np.pad(part, padding)) for part in sequences)
        mask = mask & torch.from_numpy(exists).unsqueeze(1)
        answer_mask = (groups > 0) & mask
        return Batch(inputs, targets, answer_mask, mask, answer_mask, groups)

    def _order_of(self, epoch: int) -> np.ndarray:
        assert self._seed is not None  # without a seed, each sequence once and in order
        return np.random.Generator(np.random.PCG64([self._seed, epoch])).permutation(self._count)

    def state_dict(self) -> dict[str, Any]:
        return {"next": self._next, "examples": self._count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["examples"] != self._count:
            raise UserError(
                f"the saved cursor is of {state['examples']:,} examples and this run has {self._count:,}; "
                "resume with the task it was saved with"
            )
        self._next = state["next"]
