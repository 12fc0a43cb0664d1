"""Language modelling: perplexity over all tokens with a loss."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Literal

import torch

from fastweights.errors import UserError
from fastweights.models import Model, TokenModel
from fastweights.objectives.contract import LOSS, Metric, Sums
from fastweights.objectives.tokens import NextToken, added_metrics
from fastweights.specs import Positive
from fastweights.tasks import SequenceTask

TEMPERATURES = [hundredths / 100 for hundredths in range(80, 120)]  # as in the FWM paper's published code
ROWS = 16  # of logits, which stay in the processor's cache for all temperatures


class LanguageModel(NextToken):
    """Next-token loss, measured as perplexity and bits per token.

    Args:
        temperature: of the softmax in evaluations, by which its input is divided; "tuned" for that of the lowest loss
            on the validation split, from 0.80 up in steps of 0.01 to the first rise.
    """

    headline = Metric("perplexity", "perplexity", "{:.3f}")
    progress = (LOSS, headline)
    summary = (LOSS, headline)

    def __init__(self, *, temperature: Positive | Literal["tuned"] = 1.0):
        self.temperature = temperature

    def metrics(self, sums: Sums) -> dict[str, Any]:
        loss = sums.values["loss"].item() / max(sums.values["positions"].item(), 1)
        perplexity = math.exp(min(loss, 700.0))
        return {"loss": loss, "perplexity": perplexity, "bits_per_token": loss / math.log(2), **added_metrics(sums)}

    def evaluate(
        self,
        model: Model,
        task: SequenceTask,
        data: str | None,
        split: str,
        batch_size: int,
        state: Any = None,
        **options: Any,
    ) -> dict[str, Any]:
        if self.temperature == 1:
            return super().evaluate(model, task, data, split, batch_size, state, **options)
        if not isinstance(model, TokenModel):
            raise UserError(
                f"{type(model).__name__} has no temperature of its softmax; leave objective.temperature out."
            )
        temperature = self.temperature
        if isinstance(temperature, str):
            temperature = self.tune_temperature(model, task, data, batch_size, state)
        model.temperature = temperature
        try:
            metrics = super().evaluate(model, task, data, split, batch_size, state, **options)
        finally:
            model.temperature = 1.0
        return metrics | {"temperature": temperature}

    @torch.no_grad()
    def tune_temperature(
        self, model: TokenModel, task: SequenceTask, data: str | None, batch_size: int, state: Any = None
    ) -> float:
        """The temperature of the lowest loss on the validation split, before its first rise; in one pass for all."""
        losses = torch.zeros(len(TEMPERATURES), dtype=torch.float64)
        for _, logits, targets in self.predictions(model, task, data, "valid", batch_size, state):
            for rows, wanted in zip(logits.split(ROWS), targets.split(ROWS), strict=True):
                scaled = (model.at_temperature(rows, temperature) for temperature in TEMPERATURES)
                losses += torch.stack([self.loss(x, wanted).double().sum() for x in scaled]).cpu()
        rises = (index for index, (now, then) in enumerate(pairwise(losses.tolist())) if then > now)
        return TEMPERATURES[next(rises, -1)]

    def table(self, metrics: Mapping[str, Any], task: SequenceTask) -> list[list[str]]:
        names = [name for name in ("loss", "perplexity", "bits_per_token", "temperature") if name in metrics]
        lines = [[name.replace("_", " "), f"{metrics[name]:.3f}"] for name in names]
        return [["metric", "value"], ["tokens", f"{metrics['tokens']:,}"], *lines]
