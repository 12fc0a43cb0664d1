"""Texts as one long stream of words: files, vocabulary, and segments for truncated BPTT.

A text is a directory with `train.txt`, `valid.txt` and `test.txt`, such as Penn Treebank, or any one file, of which the
first words are for training and the last for validation and test. Words stand between spaces, and each line ends with
`<eos>`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastweights.data.vocabulary import EOS, UNKNOWN, Vocabulary, split_tokens
from fastweights.errors import UserError, nearest

SPLITS = ("train", "valid", "test")
_USE = "give a directory with train.txt, valid.txt and test.txt, or one text file"


class Shares(NamedTuple):
    """The shares of one file's words that are for validation, and behind them for test."""

    valid: float
    test: float


def files(data: str | Path) -> list[Path]:
    """The files of training and validation.

    Raises:
        UserError: where there is neither a directory with them nor a file.
    """
    data = Path(data)
    if data.is_file():
        return [data]
    return [_split_file(data, split) for split in ("train", "valid")]


def read_split(data: str | Path, split: str, shares: Shares) -> list[str]:
    """The words of a split, with `<eos>` at the end of each line.

    Args:
        data: a directory or a file.
        split: "train", "valid" or "test".
        shares: those of the splits, for one file.

    Raises:
        UserError: where it is missing, empty or no text, or has no two words.
    """
    if split not in SPLITS:
        raise UserError(f'there is no split "{split}"{nearest(split, SPLITS)}; the splits are {", ".join(SPLITS)}')
    data = Path(data)
    if data.is_file():
        words = read_file(data)
        # one place for each word, whatever the rounding of the shares
        end = len(words) - round(len(words) * shares.test)
        begin = end - round(len(words) * shares.valid)
        part = {"train": words[:begin], "valid": words[begin:end], "test": words[end:]}[split]
        change = ", or larger shares (task.validation_share, task.test_share)" if split != "train" else ""
    else:
        part, change = read_file(_split_file(data, split)), ""
    if len(part) < 2:
        raise UserError(
            f"{data} has too few words: the {split} split has {len(part)}, and must have 2; give a longer text{change}"
        )
    return part


def read_file(path: Path) -> list[str]:
    """The words of a file, with `<eos>` at the end of each line.

    Raises:
        UserError: where it cannot be read, is no text in UTF-8, or is empty.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); {_USE}") from None
    try:
        text = content.decode("utf-8-sig")
        place = text.find("\0")
    except UnicodeDecodeError as error:
        place = error.start
    if place >= 0:
        line = content.count(b"\n", 0, place) + 1
        raise UserError(f"{path}:{line} is not text (it is no UTF-8); save it as a text file in UTF-8")
    if not text.strip():
        raise UserError(f"{path} is empty; {_USE}")
    return split_tokens(text if text.endswith("\n") else text + "\n")


def _split_file(data: Path, split: str) -> Path:
    path = data / f"{split}.txt"
    if not data.exists():
        raise UserError(
            f"There is no {data}; {_USE}, or fetch a corpus with `fastweights data download ptb` (or wikitext-2) and "
            "give its name."
        )
    if not path.is_file():
        raise UserError(f"{data} does not hold {path.name}; {_USE}")
    return path


def make_vocabulary(words: Iterable[str], min_count: int, size: int) -> Vocabulary:
    """`<eos>`, `<unk>`, and the words of a text from the most frequent on; of equally frequent ones the first.

    >>> make_vocabulary("a rose is a rose <eos>".split(), min_count=2, size=10).words
    ('<eos>', '<unk>', 'a', 'rose')

    Args:
        words: of training.
        min_count: occurrences that a word needs.
        size: the largest size of the vocabulary.

    Raises:
        UserError: where no word is left.
    """
    counts = Counter(words)
    kept = [word for word, count in counts.most_common() if count >= min_count and word not in (EOS, UNKNOWN)]
    if not kept:
        raise UserError(
            f"no word of the training text occurs {min_count:,} times, so the vocabulary would be empty; make "
            "task.min_count smaller"
        )
    return Vocabulary((EOS, UNKNOWN, *kept[: size - 2]), "tokens")


class Segment(NamedTuple):
    """The next tokens of each row `[B, T]`: inputs and targets int64, mask False behind the end of the text.

    starts says whether an epoch starts here.
    """

    inputs: np.ndarray
    targets: np.ndarray
    mask: np.ndarray
    starts: bool


class TextSegments:
    """B rows of equal length, contiguous pieces of one text, cut into segments of T tokens.

    Each token but the first is predicted once in an epoch: a row's last target is the next row's first input, and the
    last row may be shorter.

    Args:
        tokens: the text.
        batch_size: rows B of a whole batch.
        segment_length: tokens of a row in each segment.
        seed: where given, segments have the random lengths of `random_length`.
        epochs: after so many epochs, there is no further segment; None: endless.
        shard: rows of each segment, for one of several data-parallel processes; all of them keep the same cursor.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        batch_size: int,
        segment_length: int,
        *,
        seed: int | None = None,
        epochs: int | None = None,
        shard: slice = slice(None),
    ) -> None:
        self._count = len(tokens)
        self._row_length = -(-(self._count - 1) // batch_size)
        size = batch_size * self._row_length
        text = np.zeros(size + 1, dtype=np.int64)
        text[: self._count] = tokens
        rows = (text[:-1], text[1:], np.arange(size) < self._count - 1)
        self._rows = [row.reshape(batch_size, self._row_length)[shard] for row in rows]
        self._segment_length, self._seed, self._epochs = segment_length, seed, epochs
        self._epoch = self._position = 0

    def __iter__(self) -> TextSegments:
        return self

    def __next__(self) -> Segment:
        if self._epoch == self._epochs:
            raise StopIteration
        begin = self._position
        end = min(begin + self._next_length(), self._row_length)
        self._position = end % self._row_length
        self._epoch += self._position == 0
        inputs, targets, mask = (row[:, begin:end].copy() for row in self._rows)
        return Segment(inputs, targets, mask, begin == 0)

    def _next_length(self) -> int:
        if self._seed is None:
            return self._segment_length
        rng = np.random.Generator(np.random.PCG64([self._seed, self._epoch, self._position]))
        return random_length(rng, self._segment_length)

    def state_dict(self) -> dict[str, Any]:
        """The cursor: epoch and position in the rows, and the length of the text."""
        return {"epoch": self._epoch, "position": self._position, "tokens": self._count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved cursor, with the same segments of the same text.

        Raises:
            UserError: where the text is of another length, or the cursor lies behind it.
        """
        if state["tokens"] != self._count or state["position"] >= self._row_length:
            raise UserError(
                f"the saved cursor is of a text of {state['tokens']:,} tokens and this run's has {self._count:,}; "
                "resume with the same text and batch size"
            )
        self._epoch, self._position = state["epoch"], state["position"]


def random_length(rng: np.random.Generator, mean: int) -> int:
    """The length of a segment as in AWD-LSTM (Merity et al. 2018, section 4.1).

    It is drawn from N(mean, 5), in 5 % of cases from N(mean / 2, 5), and is at least 5 and at most mean + 10.
    """
    drawn = int(rng.normal(mean if rng.random() < 0.95 else mean / 2, 5))
    return min(max(5, drawn), mean + 10)
