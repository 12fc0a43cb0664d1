"""A task of your own: repeat a random sequence of letters after a separator.

fastweights train art/fwm --task '{type: examples/own_task.py:Copy, length: 5}' --out runs/copy
fastweights evaluate runs/copy --trust --task.length 8
"""

from collections.abc import Iterator
from itertools import islice
from string import ascii_lowercase

import torch

from fastweights.data.vocabulary import Vocabulary
from fastweights.tasks import Batch, SequenceTask


class Copy(SequenceTask):
    """`abc|abc`: the letters behind the separator are the answers; `examples` sequences in validation and test."""

    def __init__(self, *, length: int = 5, examples: int = 500):
        self.length, self.examples = length, examples

    def prepare(self, data: str | None) -> Vocabulary:
        return Vocabulary((*ascii_lowercase, "|"), "characters")

    def describe(self, data: str | None) -> str:
        return f"sequences of {self.length} letters to copy"

    def training_batches(self, data: str | None, batch_size: int, seed: int, shard: slice = slice(None)) -> "Batches":
        return Batches(self, batch_size, seed, shard)

    def evaluation_batches(self, data: str | None, split: str, batch_size: int) -> Iterator[Batch]:
        batches = Batches(self, batch_size, {"valid": 1 << 32, "test": 1 << 33}[split])
        return islice(batches, -(-self.examples // batch_size))

    def evaluation_counts(self, data: str | None, split: str) -> dict[str, int]:
        return {"sequences": self.examples}


class Batches:
    """Endless batches; the cursor is the number of the next one."""

    def __init__(self, task: Copy, batch_size: int, seed: int, shard: slice = slice(None)):
        self.task, self.batch_size, self.seed, self.shard, self.next = task, batch_size, seed, shard, 0

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> Batch:
        generator = torch.Generator().manual_seed(self.seed + self.next)
        self.next += 1
        letters = torch.randint(26, (self.batch_size, self.task.length), generator=generator)[self.shard]
        text = torch.cat([letters, torch.full_like(letters[:, :1], 26), letters], 1)
        inputs, targets = text[:, :-1], text[:, 1:]
        answers = (torch.arange(inputs.shape[1]) >= self.task.length).expand_as(inputs)
        return Batch(inputs, targets, answers, torch.ones_like(answers), answers, answers.long())

    def state_dict(self) -> dict[str, int]:
        return {"next": self.next}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.next = state["next"]
