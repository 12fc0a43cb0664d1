"""Measuring a model on a split: accuracy and token-level perplexity at the answers, over all and per group."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fastweights.cores.contract import map_state
from fastweights.tasks.contract import Batch, Batches
from fastweights.training.distributed import Group


class Meter:
    """Sums over the answers of many batches."""

    def __init__(self) -> None:
        self.loss = self.answer_loss = 0.0
        self.positions = self.questions = self.correct = self.tokens = 0
        self.groups: dict[int, list[int]] = {}  # group → [correct, questions]

    def update(self, logits: Tensor, batch: Batch) -> None:
        """Add a batch, given the logits `[P, V]` at its reads."""
        targets, answers = batch.targets[batch.reads], batch.answers[batch.reads]
        losses = cross_entropy(logits.float(), targets, reduction="none").double()
        self.add(losses, logits.argmax(-1) == targets, answers, batch)

    def add(self, losses: Tensor, right: Tensor, answers: Tensor, batch: Batch) -> None:
        """Add the losses and hits `[P]` of a batch at its reads, of which `answers` `[P]` are answers."""
        right = right[answers]
        self.loss += losses.sum().item()
        self.answer_loss += losses[answers].sum().item()
        self.positions += losses.numel()
        self.questions += right.numel()
        self.correct += int(right.sum())
        self.tokens += int(batch.valid.sum())
        if right.numel():
            groups = batch.groups[batch.reads][answers]
            for group in groups.unique().tolist():
                here = right[groups == group]
                total = self.groups.setdefault(group, [0, 0])
                total[0] += int(here.sum())
                total[1] += here.numel()

    def together(self, group: Group) -> Meter:
        """The sums over all processes of a group."""
        if group.size == 1:
            return self
        groups = range(1 + int(group.largest(max(self.groups, default=0))))
        counts = [count for number in groups for count in self.groups.get(number, (0, 0))]
        own = (self.loss, self.answer_loss, self.positions, self.questions, self.correct, self.tokens)
        sums = group.total(*own, *counts)
        meter = Meter()
        meter.loss, meter.answer_loss = sums[:2]
        meter.positions, meter.questions, meter.correct, meter.tokens, *counts = (int(x) for x in sums[2:])
        pairs = {number: counts[2 * number : 2 * number + 2] for number in groups}
        meter.groups = {number: pair for number, pair in pairs.items() if pair[1]}
        return meter

    @property
    def count(self) -> int:
        """Tokens read."""
        return self.tokens

    def record(self) -> dict[str, float]:
        """What is recorded of a training."""
        found = self.result()
        return {key: found[key] for key in ("loss", "answer_accuracy", "answer_perplexity")}

    def state_dict(self) -> dict[str, Any]:
        return vars(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        groups = {int(group): counts for group, counts in state["groups"].items()}  # JSON knows no numbers as keys
        vars(self).update(state, groups=groups)

    def result(self) -> dict[str, Any]:
        """The metrics; accuracies are fractions, the perplexity is exp of the mean over answers."""
        questions, positions = max(self.questions, 1), max(self.positions, 1)
        return {
            "loss": self.loss / positions,
            "answer_accuracy": self.correct / questions,
            "answer_perplexity": math.exp(min(self.answer_loss / questions, 700.0)),
            "questions": self.questions,
            "tokens": self.tokens,
            "tasks": {
                str(group): {"accuracy": correct / count, "questions": count}
                for group, (correct, count) in sorted(self.groups.items())
            },
        }


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Batches,
    rows: int,
    state: Any = None,
    on_batch: Callable[[Batch], None] = lambda batch: None,
    carries_state: bool = True,
) -> dict[str, Any]:
    """Run a model over evaluation batches and return its metrics.

    Args:
        model: a token model.
        batches: what `Task.evaluation_batches` gives.
        rows: the number of rows of these batches.
        state: the state to start from, of which row 0 is copied to all rows; None starts from zero.
        on_batch: called after each batch, for a progress bar.
        carries_state: whether rows go on from batch to batch (`Task.carries_state`), rather than start afresh in each.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    meter = Meter()
    if state is not None:
        state = map_state(lambda x: x[:1].expand(rows, *x.shape[1:]).clone(), state)
    for batch in batches:
        batch = Batch(*(x.to(device) for x in batch))
        logits, new_state = model(batch.inputs, state, reads=batch.reads, valid=batch.valid)
        state = new_state if carries_state else state
        meter.update(logits, batch)
        on_batch(batch)
    model.train(was_training)
    return meter.result()
