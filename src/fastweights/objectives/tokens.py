"""Next-token prediction: what the objectives on token sequences share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fastweights import specs
from fastweights.cores.contract import Losses, map_state
from fastweights.data.vocabulary import Vocabulary
from fastweights.distributed import Group
from fastweights.errors import UserError
from fastweights.models import Model, token_model
from fastweights.objectives.contract import Objective, Step, Sums
from fastweights.tasks import Batch, SequenceTask, Source


class NextToken(Objective[SequenceTask, Vocabulary, Model]):
    """Cross-entropy of the next token, by truncated BPTT over segments; a subclass says what is measured."""

    task_type = SequenceTask
    unit = "tokens"
    model_builder = staticmethod(token_model)

    def build_model(self, options: Mapping[str, Any], interface: Vocabulary) -> Model:
        return specs.call("model", self.model_builder, options, len(interface))

    def example(self, interface: Vocabulary) -> Tensor:
        return torch.zeros((1, 1), dtype=torch.int64)

    def source(
        self, task: SequenceTask, data: str | None, batch_size: int, seed: int, shard: slice = slice(None)
    ) -> Source:
        return task.training_batches(data, batch_size, seed, shard)

    def check_data(self, task: SequenceTask, data: str | None) -> None:
        super().check_data(task, data)
        task.evaluation_batches(data, "valid", 1)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss of each position `[P]`, from logits `[P, V]` and targets `[P]`."""
        return cross_entropy(logits, targets, reduction="none")

    def statistics(self, losses: Tensor, logits: Tensor, targets: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Additive statistics of a batch, from losses `[P]`, logits `[P, V]` and targets `[P]` at its loss_mask."""
        return {"loss": losses.sum(), "positions": _number(losses.numel()), "tokens": batch.mask.sum()}

    def step(self, model: Model, task: SequenceTask, item: Batch, state: Any, group: Group) -> Step:
        batch = item.to(group.device)
        added = Losses()
        logits, state = model(
            batch.inputs, state, output_mask=batch.loss_mask, mask=batch.mask, resets=batch.resets, losses=added
        )
        targets = batch.targets[batch.loss_mask]
        losses = self.loss(logits, targets)
        (positions,) = group.all_reduce_sum(losses.numel())
        # the gradients of the processes are averaged: times their number
        loss = losses.sum() * group.size / max(1, positions) + added.total()
        sums = self.statistics(losses.detach().double(), logits.detach(), targets, batch)
        sums |= added_sums(added)
        carried = map_state(Tensor.detach, state) if task.carries_state else None
        inputs = {name: x for name, x in batch._asdict().items() if isinstance(x, Tensor)}
        return Step(loss, carried, sums, int(batch.mask.sum()), inputs, batch.lr_scale)

    @torch.no_grad()
    def evaluate(
        self,
        model: Model,
        task: SequenceTask,
        data: str | None,
        split: str,
        batch_size: int,
        state: Any = None,
        *,
        episodes: int | None = None,
        on_progress: Callable[[int], None] = lambda count: None,
    ) -> dict[str, Any]:
        if episodes is not None:
            raise UserError("Episodes are for agents, and this is a token model; leave --episodes out.")
        sums = Sums()
        for batch, logits, targets in self.predictions(model, task, data, split, batch_size, state):
            sums.add(self.statistics(self.loss(logits, targets).double(), logits, targets, batch))
            on_progress(int(batch.mask.sum()))
        return self.evaluation(sums)

    @torch.no_grad()
    def predictions(
        self, model: Model, task: SequenceTask, data: str | None, split: str, batch_size: int, state: Any = None
    ) -> Iterator[tuple[Batch, Tensor, Tensor]]:
        """Each batch of a split, with logits `[P, V]` and targets `[P]` at its loss_mask; see `evaluate`."""
        device = next(model.parameters()).device
        was_training = model.training
        model.eval()
        if state is not None:
            state = map_state(lambda x: x[:1].expand(batch_size, *x.shape[1:]).clone(), state)
        for batch in task.evaluation_batches(data, split, batch_size):
            batch = batch.to(device)
            logits, new_state = model(
                batch.inputs, state, output_mask=batch.loss_mask, mask=batch.mask, resets=batch.resets
            )
            state = new_state if task.carries_state else state
            yield batch, logits.float(), batch.targets[batch.loss_mask]
        model.train(was_training)

    def evaluation(self, sums: Sums) -> dict[str, Any]:
        """The metrics of a split."""
        return self.metrics(sums) | {"tokens": int(sums.values["tokens"])}

    def final_batch_size(self, task: SequenceTask, batch_size: int) -> int:
        return 1 if task.carries_state else batch_size  # one stream of all stories, as the published code has it

    def evaluation_counts(self, task: SequenceTask, data: str | None, split: str) -> dict[str, int]:
        return task.evaluation_counts(data, split)

    def locate(self, inputs: Mapping[str, Tensor]) -> str:
        return f"groups {sorted(set(inputs['groups'][inputs['mask']].tolist()))}"


def added_sums(added: Losses) -> dict[str, Tensor]:
    """The statistics of the terms that cores add to the loss, each with the number of its steps."""
    sums = {f"added/{name}": value.detach() for name, value in added.items()}
    return sums | ({"steps": _number(1)} if added else {})


def added_metrics(sums: Sums) -> dict[str, float]:
    """The mean of each term that cores add to the loss, as `meta_loss` for the term "meta"."""
    names = [name for name in sums.values if name.startswith("added/")]
    return {f"{name.removeprefix('added/')}_loss": (sums.values[name] / sums.values["steps"]).item() for name in names}


def _number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)
