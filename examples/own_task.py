"""A task of your own: repeat a random sequence of letters after a separator.

fastweights train art/fwm --task '{type: examples/own_task.py:Copy, length: 5}' --out runs/copy
fastweights evaluate runs/copy --trust --task.length 8
"""

import zlib
from collections.abc import Iterator
from itertools import islice
from string import ascii_lowercase

import torch

from fastweights.data.vocabulary import Vocabulary
from fastweights.tasks import Batch, GeneratedBatches, SequenceTask


class Copy(SequenceTask):
    """`abc|abc`: the letters behind the separator are the answers.

    Args:
        length: letters of a sequence.
        examples: sequences of the validation and of the test split.
    """

    def __init__(self, *, length: int = 5, examples: int = 500):
        self.length, self.examples = length, examples

    def prepare(self, data: str | None) -> Vocabulary:
        return Vocabulary((*ascii_lowercase, "|"), "characters")

    def describe(self, data: str | None) -> str:
        return f"sequences of {self.length} letters to copy"

    def training_batches(
        self, data: str | None, batch_size: int, seed: int, shard: slice = slice(None)
    ) -> GeneratedBatches:
        return GeneratedBatches(lambda number: self.batch(batch_size, f"{seed} {number}", shard))

    def evaluation_batches(self, data: str | None, split: str, batch_size: int) -> Iterator[Batch]:
        batches = GeneratedBatches(lambda number: self.batch(batch_size, f"{split} {number}"))
        return islice(batches, -(-self.examples // batch_size))

    def evaluation_counts(self, data: str | None, split: str) -> dict[str, int]:
        return {"sequences": self.examples}

    def batch(self, batch_size: int, seed: str, shard: slice = slice(None)) -> Batch:
        generator = torch.Generator().manual_seed(zlib.crc32(seed.encode()))
        letters = torch.randint(26, (batch_size, self.length), generator=generator)[shard]
        text = torch.cat([letters, torch.full_like(letters[:, :1], 26), letters], 1)
        inputs, targets = text[:, :-1], text[:, 1:]
        answers = (torch.arange(inputs.shape[1]) >= self.length).expand_as(inputs)
        return Batch(inputs, targets, answers, torch.ones_like(answers), answers, answers.long())
