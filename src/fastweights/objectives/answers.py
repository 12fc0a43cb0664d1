"""Question answering: accuracy and perplexity at the answers, over all and by group."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fastweights.objectives.contract import LOSS, Metric, Sums, bar
from fastweights.objectives.tokens import NextToken, added_metrics
from fastweights.tasks import Batch, SequenceTask


class Answers(NextToken):
    """Next-token loss, measured at the answers."""

    headline = Metric("answer_accuracy", "answers", "{:.2%}", higher_is_better=True, least=0, most=1)
    progress = (LOSS, Metric("answer_accuracy", "answers", "{:.1%}", higher_is_better=True))
    summary = (headline, Metric("answer_perplexity", "perplexity", "{:.3f}"))

    def statistics(self, losses: Tensor, logits: Tensor, targets: Tensor, batch: Batch) -> dict[str, Tensor]:
        answers = batch.answer_mask[batch.loss_mask]
        correct = (logits.argmax(-1) == targets)[answers]
        groups = batch.groups[batch.loss_mask][answers]
        return super().statistics(losses, logits, targets, batch) | {
            "answer_loss": losses[answers].sum(),
            "questions": answers.sum(),
            "correct": correct.sum(),
            "group_questions": torch.bincount(groups),
            "group_correct": torch.bincount(groups[correct]),
        }

    def metrics(self, sums: Sums) -> dict[str, Any]:
        total = {name: value.item() for name, value in sums.values.items() if value.ndim == 0}
        questions = max(total["questions"], 1)
        return {
            "loss": total["loss"] / max(total["positions"], 1),
            "answer_accuracy": total["correct"] / questions,
            "answer_perplexity": math.exp(min(total["answer_loss"] / questions, 700.0)),
            **added_metrics(sums),
        }

    def evaluation(self, sums: Sums) -> dict[str, Any]:
        counts, correct = sums.values["group_questions"].tolist(), sums.values["group_correct"].tolist()
        correct += [0.0] * (len(counts) - len(correct))
        return super().evaluation(sums) | {
            "questions": int(sums.values["questions"]),
            "groups": {
                str(group): {"accuracy": right / count, "questions": int(count)}
                for group, (right, count) in enumerate(zip(correct, counts, strict=True))
                if count
            },
        }

    def table(self, metrics: Mapping[str, Any], task: SequenceTask) -> list[list[str]]:
        names = task.group_names()
        lines = [["group", "questions", "accuracy", ""]]
        for number, row in metrics["groups"].items():
            name = f"{number:>2} {names.get(int(number), '')}"
            lines.append([name, f"{row['questions']:,}", f"{row['accuracy']:.1%}", bar(row["accuracy"])])
        total = [f"{metrics['questions']:,}", f"{metrics['answer_accuracy']:.2%}"]
        return [*lines, ["all", *total, f"perplexity {metrics['answer_perplexity']:.3f}"]]
