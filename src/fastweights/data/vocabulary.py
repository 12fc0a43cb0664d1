"""A vocabulary: free text to token numbers and back."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from fastweights.errors import UserError, nearest

EOS, UNKNOWN = "<eos>", "<unk>"
_TOKENS = {"words": re.compile(r"[.?!]|[^\s.?!]+"), "characters": re.compile(r"\S")}


def split_tokens(text: str) -> list[str]:
    """The words of a text, as they are between its spaces, with `<eos>` for each line feed.

    >>> split_tokens("no it was n't\\n Black Monday")
    ['no', 'it', 'was', "n't", '<eos>', 'Black', 'Monday']
    """
    return text.replace("\n", f" {EOS} ").split()


@dataclass(frozen=True)
class Vocabulary:
    """Words by their number.

    >>> vocabulary = Vocabulary(("<pad>", "mary", "is", "here", "."))
    >>> vocabulary.encode("Mary is here.")
    array([1, 2, 3, 4])
    >>> vocabulary.decode([1, 2])
    ['mary', 'is']

    Args:
        words: all words; none is there twice.
        unit: "words" (lower case, `.`, `?` and `!` apart), "characters" (spaces ignored) or "tokens" (words as they are
            between spaces, `<eos>` for a line feed, `<unk>` for those that are unknown).
    """

    words: tuple[str, ...]
    unit: Literal["words", "characters", "tokens"] = "words"

    def __len__(self) -> int:
        return len(self.words)

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {word: number for number, word in enumerate(self.words)}

    def encode(self, text: str) -> np.ndarray:
        """The token numbers `[T]` int64 of a text.

        Raises:
            UserError: naming the first unknown word, its line and column, unless the unit is "tokens".
        """
        if self.unit == "tokens":
            return self.numbers(split_tokens(text))
        found = []
        for match in _TOKENS[self.unit].finditer(text):
            word = match[0].lower()
            if word not in self._numbers:
                line = text.count("\n", 0, match.start()) + 1
                column = match.start() - text.rfind("\n", 0, match.start())
                raise UserError(
                    f'The word "{match[0]}" (line {line}, column {column}) is not in the vocabulary of '
                    f"{len(self)} words{nearest(word, self.words) or '.'}"
                )
            found.append(self._numbers[word])
        return np.array(found, dtype=np.int64)

    def numbers(self, words: Iterable[str]) -> np.ndarray:
        """The token numbers `[T]` int64 of words, of which unknown ones are `<unk>`."""
        unknown = self._numbers[UNKNOWN]
        return np.fromiter((self._numbers.get(word, unknown) for word in words), dtype=np.int64)

    def decode(self, tokens: Iterable[int]) -> list[str]:
        """The words of token numbers."""
        return [self.words[token] for token in tokens]

    def to_dict(self) -> dict[str, Any]:
        """The vocabulary as plain values: its words in one string, since no word has a space in it."""
        return {"words": " ".join(self.words), "unit": self.unit}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Vocabulary:
        """The vocabulary that `to_dict` made plain."""
        return cls(tuple(values["words"].split(" ")), values["unit"])

    def __iter__(self) -> Iterator[str]:
        return iter(self.words)
