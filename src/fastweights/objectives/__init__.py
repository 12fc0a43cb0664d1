"""Objectives: loss, metrics and evaluation of a training. A new one is a file here and a line in `OBJECTIVES`."""

from __future__ import annotations

from fastweights.objectives.a2c import A2C
from fastweights.objectives.answers import Answers
from fastweights.objectives.contract import Metric, Objective, Step, Sums
from fastweights.objectives.language import LanguageModel
from fastweights.objectives.tokens import NextToken
from fastweights.specs import Registry

__all__ = ["A2C", "OBJECTIVES", "Answers", "LanguageModel", "Metric", "NextToken", "Objective", "Step", "Sums"]

OBJECTIVES: Registry[Objective] = Registry(
    "objective", Objective, {"answers": Answers, "language-model": LanguageModel, "a2c": A2C}
)
