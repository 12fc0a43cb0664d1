"""Associative retrieval: ART, mART, multi-query ART and MQAR, generated from a seed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Le

from fastweights.data.mqar import MQARForm
from fastweights.data.retrieval import ARTForm, Form, take
from fastweights.data.vocabulary import Vocabulary
from fastweights.errors import UserError
from fastweights.specs import Count, Positive, Size, VocabularySize
from fastweights.tasks.contract import Batch, SequenceTask

LONGEST_DELAY = 1_000_000  # tokens of a sequence, far more than memory holds


class RetrievalTask(SequenceTask):
    """The base of tasks on generated sequences of one form, each from the initial state.

    Args:
        form: the form of the sequences.
        examples: sequences of each split.
        segment_length: tokens of a padded sequence.
        description: the form in a few words.
    """

    def __init__(self, form: Form, examples: dict[str, int], segment_length: int, description: str):
        self.form, self.examples, self.segment_length = form, examples, segment_length
        self._description = description

    def prepare(self, data: str | None) -> Vocabulary:
        """The vocabulary of the form."""
        _refuse_data(data)
        words = self.form.vocabulary()
        return Vocabulary(words, "characters" if all(len(word) == 1 for word in words) else "words")

    def describe(self, data: str | None) -> str:
        return f"{self.examples['train']:,} generated sequences {self._description}"

    def group_names(self) -> dict[int, str]:
        """Difficulties of a query."""
        return self.form.difficulty_names()

    def training_batches(
        self, data: str | None, batch_size: int, seed: int, shard: slice = slice(None)
    ) -> SequenceBatches:
        _refuse_data(data)
        return SequenceBatches(self, self._draw("train", seed), batch_size, seed, shard)

    def evaluation_batches(self, data: str | None, split: str, batch_size: int) -> SequenceBatches:
        _refuse_data(data)
        return SequenceBatches(self, self._draw(split), batch_size)

    def evaluation_counts(self, data: str | None, split: str) -> dict[str, int]:
        _refuse_data(data)
        examples = self._draw(split)
        return {"sequences": self.examples[split], "tokens": self.form.token_count(examples)}

    def memory(self) -> int:
        return self.form.memory(max(self.examples.values()))

    def _draw(self, split: str, seed: int = 0) -> Any:
        return _draw(self.form, self.examples[split], split, seed)


@lru_cache(maxsize=4)
def _draw(form: Form, count: int, split: str, seed: int) -> Any:
    return form.draw(count, split, seed)


class Retrieval(RetrievalTask):
    """Recall the values of queried keys from pairs of a key and a value.

        art              c9k8j3f1??c     → 9        pair after pair, one query (Ba et al. 2016)
        mart             ckjf9831??c     → 9        all keys, then all values in the same order (Keller et al. 2018)
        multi-query-art  c9k8j3f1??jcfk  → 3 9 1 8  as art, with one query after another

    The keys of a sequence are different, values may repeat; each sequence starts from the initial state. The published
    texts show no sequence of mART: its form is the likeliest reading.

    Args:
        mode: "art", "mart" or "multi-query-art".
        pairs: K, pairs of a key and a value.
        queries: number of queries; 0 means one, or all keys with "multi-query-art".
        keys: number of keys in the vocabulary, the first 26 of them letters.
        values: number of values in the vocabulary, the first 10 of them digits.
        delay: additional question marks before the queries, such as 4, or 0-8 for a uniform distribution.
        segment_length: tokens of a sequence, with padding; 0 means those of the longest.
        examples: sequences of the training split, in another order each epoch.
        validation_examples: sequences of the validation split.
        test_examples: sequences of the test split.
    """

    def __init__(
        self,
        *,
        mode: Literal["art", "mart", "multi-query-art"] = "art",
        pairs: Size = 8,
        queries: Count = 0,
        keys: VocabularySize = 26,
        values: VocabularySize = 10,
        delay: str | int = "0",
        segment_length: Count = 0,
        examples: Size = 100_000,
        validation_examples: Size = 10_000,
        test_examples: Size = 20_000,
    ):
        self.mode = mode
        if pairs > keys:
            raise ValueError(f"{pairs} pairs need {pairs} different keys, and there are {keys}; give more keys")
        queries = queries or (pairs if mode == "multi-query-art" else 1)
        if not 1 <= queries <= pairs:
            raise ValueError(f"queries is {queries}; it must lie between 1 and the number of pairs, {pairs}")
        shortest, longest = _delays(str(delay))
        form = ARTForm(pairs, queries, keys, values, shortest, longest, keys_first=mode == "mart")
        if segment_length and segment_length < form.length:
            raise ValueError(
                f"{pairs} pairs, a delay of {longest} and the queries take {form.length} tokens, which do not fit into "
                f"a segment_length of {segment_length}; set task.segment_length to at least {form.length}"
            )
        splits = {"train": examples, "valid": validation_examples, "test": test_examples}
        super().__init__(form, splits, segment_length or form.length, f"({mode}): {pairs} pairs, queries: {queries}")


def _refuse_data(data: str | None) -> None:
    if data is not None:
        raise UserError("Sequences for associative retrieval are generated; leave --data out.")


def _delays(text: str) -> tuple[int, int]:
    """The shortest and the longest delay of "4" or "0-8"."""
    match = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", text, re.ASCII)
    shortest, longest = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
    if longest > LONGEST_DELAY:
        raise ValueError(f'delay is "{text}"; it must be at most {LONGEST_DELAY:,} tokens')
    if shortest > longest:
        raise ValueError(f'delay is "{text}"; it must be a number such as 4, or a range such as 0-8')
    return shortest, longest


class MQAR(RetrievalTask):
    """Multi-query associative recall as in Zoology (Arora et al. 2024): pairs, then each key once more among filler.

    The distances between a pair and its query follow a power law; the value is the target at the query.

    Args:
        vocabulary_size: V; the lower half are keys, the upper half values.
        length: T, tokens of a sequence, an even number of at least 4 · pairs.
        pairs: pairs of a key and a value.
        power_a: exponent of the power law of the distances; 1.0 is uniform, above 1 favours long ones.
        random_non_queries: fill the other positions with random tokens, not with token 0.
        examples: sequences of the training split, in another order each epoch.
        validation_examples: sequences of the validation split.
        test_examples: sequences of the test split.
    """

    def __init__(
        self,
        *,
        vocabulary_size: VocabularySize = 8192,
        length: Size = 64,
        pairs: Size = 4,
        power_a: Annotated[Positive, Le(10)] = 0.01,
        random_non_queries: bool = True,
        examples: Size = 100_000,
        validation_examples: Size = 3_000,
        test_examples: Size = 3_000,
    ):
        form = MQARForm(vocabulary_size, length, pairs, power_a, random_non_queries)
        splits = {"train": examples, "valid": validation_examples, "test": test_examples}
        super().__init__(form, splits, length, f"(MQAR): {length} tokens, {pairs} pairs")


class SequenceBatches:
    """Sequences as batches of tensors: with a seed endlessly, each epoch in another order, without one each once."""

    def __init__(
        self, task: RetrievalTask, examples: Any, batch_size: int, seed: int | None = None, shard: slice = slice(None)
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
        sequences = self._task.form.lay_out(take(self._examples, numbers))
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
