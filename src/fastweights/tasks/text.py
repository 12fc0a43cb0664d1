"""Texts, word by word: Penn Treebank, WikiText-2, or any text file."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastweights.data import text
from fastweights.data.vocabulary import EOS, UNKNOWN, Vocabulary
from fastweights.errors import UserError
from fastweights.specs import Probability, Size, VocabularySize
from fastweights.tasks.contract import Batch, Interface, SequenceTask, describe


class Text(SequenceTask):
    """Predict each next word of a text; the state is carried from segment to segment, and reset at each epoch.

    A directory has train.txt, valid.txt and test.txt; of one file, the last words are for validation and test. Each
    line ends with `<eos>`; validation and test begin from the initial state.

    Args:
        segment_length: tokens of a row in each batch (truncated BPTT).
        random_length: draw each training segment's length around segment_length (Merity et al. 2018). The learning rate
            is always multiplied by length / segment_length.
        min_count: occurrences in the training text that a word needs; all others are `<unk>`.
        vocabulary_size: the largest vocabulary, `<eos>` and `<unk>` included; it has the most frequent words.
        validation_share: share of one file's words that is for validation, behind those of training.
        test_share: share of one file's words that is for test, at its end.
    """

    objective = "language-model"
    carries_state = True
    required_arguments = ("mask", "resets")

    def __init__(
        self,
        *,
        segment_length: Size = 70,
        random_length: bool = False,
        min_count: Size = 1,
        vocabulary_size: VocabularySize = 50_000,
        validation_share: Probability = 0.05,
        test_share: Probability = 0.05,
    ):
        if vocabulary_size < 3:
            raise ValueError(
                f"vocabulary_size is {vocabulary_size}, so there is no word beside {EOS} and {UNKNOWN}; give at least 3"
            )
        if validation_share + test_share >= 1:
            raise ValueError(
                f"validation_share {validation_share:g} and test_share {test_share:g} leave nothing for training; make "
                "them smaller"
            )
        self.segment_length, self.random_length = segment_length, random_length
        self.min_count, self.vocabulary_size = min_count, vocabulary_size
        self.shares = text.Shares(validation_share, test_share)
        self._restored: Vocabulary | None = None
        self._made = lru_cache(maxsize=1)(self._make_vocabulary)
        self._tokens = lru_cache(maxsize=3)(self._encode)  # of each split

    def prepare(self, data: str | None) -> Vocabulary:
        """The vocabulary of the training text."""
        return self._made(data)

    def largest_interface(self) -> Vocabulary:
        return Vocabulary(tuple(map(str, range(self.vocabulary_size))), "tokens")

    def restore(self, interface: Interface) -> None:
        """Read texts with the vocabulary of a trained model."""
        if not isinstance(interface, Vocabulary) or not {EOS, UNKNOWN} <= {*interface.words}:
            raise UserError(
                f"The model was trained with {describe(interface)}, which is of no text; choose another checkpoint, or "
                "the task that it was trained on."
            )
        self._restored = Vocabulary(interface.words, "tokens")
        self._tokens.cache_clear()

    def files(self, data: str | None) -> list[Path]:
        return [] if data is None else text.files(data)

    def describe(self, data: str | None) -> str:
        counts = {split: f"{len(self._tokens(data, split)):,} tokens" for split in ("train", "valid")}
        if data is not None and Path(data).is_file():
            valid, test = self.shares
            counts["train"] = f"the first {1 - valid - test:.1%} ({counts['train']})"
            counts["valid"] = f"the next {valid:.1%} ({counts['valid']})"
            kept = f" and the last {test:.1%} for test"
        else:
            kept = ""
        vocabulary = f"a vocabulary of {len(self._restored or self._made(data)):,} words"
        return f"{data}: {counts['train']} for training, {counts['valid']} for validation{kept}, {vocabulary}"

    def training_batches(self, data: str | None, batch_size: int, seed: int, shard: slice = slice(None)) -> TextBatches:
        tokens, seed_of_lengths = self._tokens(data, "train"), seed if self.random_length else None
        segments = text.TextSegments(tokens, batch_size, self.segment_length, seed=seed_of_lengths, shard=shard)
        return TextBatches(segments, self.segment_length)

    def evaluation_batches(self, data: str | None, split: str, batch_size: int) -> TextBatches:
        segments = text.TextSegments(self._tokens(data, split), batch_size, self.segment_length, epochs=1)
        return TextBatches(segments, self.segment_length)

    def evaluation_counts(self, data: str | None, split: str) -> dict[str, int]:
        """The number of tokens that are predicted: all but the first."""
        return {"tokens": len(self._tokens(data, split)) - 1}

    def _make_vocabulary(self, data: str | None) -> Vocabulary:
        return text.make_vocabulary(self._read(data, "train"), self.min_count, self.vocabulary_size)

    def _encode(self, data: str | None, split: str) -> np.ndarray:
        return (self._restored or self._made(data)).numbers(self._read(data, split))

    def _read(self, data: str | None, split: str) -> list[str]:
        if data is None:
            raise UserError(
                "The text task reads files; give --data with a directory that has train.txt, valid.txt and test.txt, "
                "with one text file, or with a corpus that `fastweights data download ptb` (or wikitext-2) fetches."
            )
        return text.read_split(data, split, self.shares)


class TextBatches:
    """Segments of a text as batches of tensors."""

    def __init__(self, segments: text.TextSegments, segment_length: int):
        self._segments, self._segment_length = segments, segment_length

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        segment = next(self._segments)
        inputs, targets, mask = (torch.from_numpy(array) for array in segment[:3])
        resets = torch.zeros_like(mask)
        resets[:, 0] = True
        return Batch(
            inputs, targets, mask, mask, mask, torch.zeros_like(inputs), resets if segment.starts else None,
            inputs.shape[1] / self._segment_length,
        )  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        return self._segments.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._segments.load_state_dict(state)
