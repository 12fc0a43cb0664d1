"""The contents of a recipe: a task, a model and its training. The docstring of a field is its help text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le

from fastweights.specs import Count, Positive, Probability, Seed, Size

Spec = Mapping[str, Any] | str
"""A part by its type and options, or by its type alone."""


@dataclass
class EarlyStopping:
    """When training ends before the last step, by the headline metric of the validations."""

    target: float | None = None
    """Value of the headline metric at which training ends, for example 0.999 for an accuracy; null for none."""
    patience: Size | None = None
    """Validations without a new best value after which training ends; null for none."""


@dataclass
class WeightAverage:
    """Averaged weights, which evaluation and the best checkpoint use."""

    decay: Probability | None = None
    """Decay of an exponential moving average; null for the uniform mean."""
    start_step: Count | None = None
    """Step after which weights are averaged; null for the start of training, or for what patience says."""
    patience: Size | None = None
    """Validations without a new best value after which weights are averaged (NT-ASGD, Merity et al. 2018)."""
    optimizer: Spec | None = None
    """Optimizer from then on, for example sgd; null for no change."""
    learning_rate: Positive | None = None
    """Learning rate from then on; null for no change."""


@dataclass
class TrainingOptions:
    """How the model is trained."""

    steps: Size = 50_000
    """Number of optimizer steps."""
    batch_size: Size = 32
    """Batch size: rows of a batch, or environments of a rollout."""
    optimizer: Spec = field(default_factory=lambda: {"type": "adam"})
    """Optimizer of torch.optim and its options (weight decay, momentum …): {type: adamw, weight_decay: 0.01}."""
    learning_rate: Positive = 1e-3
    """Learning rate, at its highest."""
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """Learning-rate schedule after the warm-up: constant, or a decay to 0 at the last step."""
    warmup_steps: Count = 0
    """Steps of linear warm-up of the learning rate from 0."""
    clip_norm: Positive | None = None
    """Gradient clipping: largest norm of the gradient; null for none."""
    accumulate: Annotated[int, Ge(1), Le(10_000), "a step waits for all its batches"] = 1
    """Gradient accumulation: batches of each optimizer step."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Mixed precision: with bfloat16 the forward pass runs under torch.autocast."""
    average: WeightAverage | None = None
    """Averaged weights; null for none."""
    report_every: Size = 50
    """Steps between two records of the training metrics."""
    evaluate_every: Size = 250
    """Steps between two validations."""
    save_every: Size | None = None
    """Steps between two saves of the last checkpoint; null for a save after each validation."""
    eval_batch_size: Size = 128
    """Batch size of a validation."""
    early_stopping: EarlyStopping = field(default_factory=EarlyStopping)
    """When training ends before the last step."""
    seed: Seed = 0
    """Seed of the weights, of the data's order and of dropout."""


@dataclass
class Recipe:
    """A task, a model and its training."""

    description: str = ""
    """One sentence on what is trained and where it comes from."""
    task: Spec = field(default_factory=lambda: {"type": "catbabi"})
    """The task's type and options, for example --task.babi_tasks 1,2,4-20."""
    objective: Spec | None = None
    """The objective's type and options, for example --objective.discount 0.95; without a type, the task's own."""
    model: Mapping[str, Any] = field(default_factory=dict)
    """The model's options, for example --model.embedding_size 128 or --model.core.memory_size 16."""
    training: TrainingOptions = field(default_factory=TrainingOptions)
    """How the model is trained."""

    def to_dict(self) -> dict[str, Any]:
        """The recipe as nested dictionaries of plain values."""
        return asdict(self)
