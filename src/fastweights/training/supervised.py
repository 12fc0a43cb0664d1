"""The supervised loop: truncated backpropagation through time over streams whose state is carried on, or sequences.

The carried state and the cursor of the streams are in the checkpoint beside what every training keeps.
"""

from __future__ import annotations

import math
from typing import Any

from torch.nn.functional import cross_entropy

from fastweights.cores.contract import map_state, state_from_dict, state_to_dict
from fastweights.tasks.contract import Batch
from fastweights.training.evaluate import Meter, evaluate
from fastweights.training.loop import Progress, Training


class Trainer(Training):
    """A training on batches of tokens.

    >>> with RunFolder.create("runs/mine", config) as run:  # doctest: +SKIP
    ...     Trainer(recipe, run).train()
    """

    sums = Meter
    unit = "tokens"

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        rows = self.options.rows
        self.share = self.group.share_of(rows)
        self.batches = self.task.training_batches(self.data, rows, self.options.seed, self.share)
        self.state: Any = self.model.core.initial_state(rows // self.group.size)

    def describe(self) -> str:
        return self.task.describe(self.data)

    def update(self) -> Progress:
        """Read the next segment of every row."""
        batch = Batch(*(x.to(self.group.device) for x in next(self.batches)))
        logits, state = self.parallel(batch.inputs, self.state, reads=batch.reads, valid=batch.valid)
        targets = batch.targets[batch.reads]
        losses = cross_entropy(logits, targets, reduction="none")
        (positions,) = self.group.total(losses.numel())
        # the processes' gradients will be averaged: hence times their number
        loss = losses.sum() * self.group.size / max(1, positions) + sum(self.model.core.losses.values())
        if not self.descend(loss):
            groups = sorted(set(batch.groups[batch.valid].tolist()))
            forward = lambda: self.model(batch.inputs, self.state, reads=batch.reads, valid=batch.valid)  # noqa: E731
            raise self.explain_non_finite(batch._asdict(), self.state, forward, f"groups {groups}")
        if self.task.carries_state:
            self.state = map_state(lambda tensor: tensor.detach(), state)
        answers = batch.answers[batch.reads]
        right = logits.detach().argmax(-1) == targets
        self.meter.add(losses.detach().double(), right, answers, batch)
        questions = int(answers.sum())
        accuracy = int(right[answers].sum()) / questions if questions else math.nan
        figures = {"loss": loss.item(), "answers": accuracy}
        return Progress(self.step + 1, self.options.steps, figures, int(batch.valid.sum()), self.unit)

    def measure(self) -> tuple[dict[str, Any], float]:
        rows = self.options.evaluation_rows
        batches = self.task.evaluation_batches(self.data, "valid", rows)
        metrics = evaluate(self.model, batches, rows, self.state, carries_state=self.task.carries_state)
        return metrics, metrics["loss"]

    def kept_with_the_best(self) -> dict[str, Any]:
        """The state of the first row, from which evaluations start."""
        return {"state": state_to_dict(map_state(lambda tensor: tensor[:1], self.state))}

    def carried(self) -> tuple[dict[str, Any], dict[str, Any]]:
        state = map_state(self.group.all_rows, self.state)
        return {"state": state_to_dict(state)}, {"cursor": self.batches.state_dict()}

    def take_up(self, tensors: dict[str, Any], metadata: dict[str, Any]) -> None:
        state = state_from_dict(self.state, tensors["state"])
        self.state = map_state(lambda tensor: tensor[self.share].to(self.group.device), state)
        self.batches.load_state_dict(metadata["cursor"])
