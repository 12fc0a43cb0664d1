"""Language modelling: perplexity over all tokens with a loss."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fastweights.objectives.contract import LOSS, Metric, Sums
from fastweights.objectives.tokens import NextToken, added_metrics
from fastweights.tasks import SequenceTask


class LanguageModel(NextToken):
    """Next-token loss, measured as perplexity and bits per token."""

    headline = Metric("perplexity", "perplexity", "{:.3f}")
    progress = (LOSS, headline)
    summary = (LOSS, headline)

    def metrics(self, sums: Sums) -> dict[str, Any]:
        loss = sums.values["loss"].item() / max(sums.values["positions"].item(), 1)
        perplexity = math.exp(min(loss, 700.0))
        return {"loss": loss, "perplexity": perplexity, "bits_per_token": loss / math.log(2), **added_metrics(sums)}

    def table(self, metrics: Mapping[str, Any], task: SequenceTask) -> list[list[str]]:
        names = ("loss", "perplexity", "bits_per_token")
        lines = [[name.replace("_", " "), f"{metrics[name]:.3f}"] for name in names]
        return [["metric", "value"], ["tokens", f"{metrics['tokens']:,}"], *lines]
