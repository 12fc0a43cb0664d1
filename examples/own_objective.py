"""An objective of your own: answers among the five most likely words, with label smoothing in the loss.

fastweights train catbabi-qa/fwm-quick --objective '{type: examples/own_objective.py:TopFive}' --out runs/five
fastweights evaluate runs/five --trust
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn.functional import cross_entropy

from fastweights.objectives import Metric, NextToken, Sums
from fastweights.tasks import Batch, SequenceTask


class TopFive(NextToken):
    """Label-smoothed cross-entropy, measured by the share of targets among the five most likely words.

    Args:
        smoothing: probability that the target distribution spreads over all words.
    """

    headline = Metric("top_five", "top five", "{:.1%}", higher_is_better=True)
    progress = summary = (headline,)

    def __init__(self, *, smoothing: float = 0.1):
        self.smoothing = smoothing

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(logits, targets, reduction="none", label_smoothing=self.smoothing)

    def statistics(self, losses: Tensor, logits: Tensor, targets: Tensor, batch: Batch) -> dict[str, Tensor]:
        found = (logits.topk(5).indices == targets[:, None]).any(1).sum()
        return super().statistics(losses, logits, targets, batch) | {"found": found}

    def metrics(self, sums: Sums) -> dict[str, Any]:
        total = {name: value.item() for name, value in sums.values.items()}
        positions = max(total["positions"], 1)
        return {"loss": total["loss"] / positions, "top_five": total["found"] / positions}

    def table(self, metrics: Mapping[str, Any], task: SequenceTask) -> list[list[str]]:
        return [["metric", "value"], ["top five", f"{metrics['top_five']:.1%}"]]
