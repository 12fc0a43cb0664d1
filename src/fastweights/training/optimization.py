"""The optimizer of a training with its schedule, gradient clipping and averaged weights, and all of their state."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn, get_swa_multi_avg_fn

from fastweights import specs
from fastweights.errors import UserError, reason
from fastweights.recipes.options import TrainingOptions
from fastweights.specs import Registry

_NEED_MORE = {"Optimizer", "LBFGS", "SparseAdam"}  # a closure, sparse gradients

OPTIMIZERS = Registry(
    "optimizer",
    torch.optim.Optimizer,
    {
        name.lower(): optimizer
        for name, optimizer in vars(torch.optim).items()
        if inspect.isclass(optimizer) and issubclass(optimizer, torch.optim.Optimizer) and name not in _NEED_MORE
    },
)


def learning_rate(options: TrainingOptions, step: int) -> float:
    """The learning rate of a step, counted from 0.

    >>> learning_rate(TrainingOptions(steps=100, learning_rate=1.0, schedule="cosine"), 50)
    0.5
    """
    rate = options.learning_rate * min(1.0, (step + 1) / max(1, options.warmup_steps))
    if options.schedule == "cosine":
        rate *= (1 + math.cos(math.pi * step / options.steps)) / 2
    elif options.schedule == "linear":
        rate *= 1 - step / options.steps
    return rate


class Optimization:
    """Optimizer steps on a model's parameters.

    Args:
        model: the model.
        options: of the recipe.

    Raises:
        UserError: where the optimizer or one of its options does not exist.
    """

    def __init__(self, model: nn.Module, options: TrainingOptions):
        self.options = options
        self.names = [name for name, _ in model.named_parameters()]
        self.parameters: list[Tensor] = list(model.parameters())
        self.spec: Mapping[str, Any] | str = options.optimizer  # of the optimizer at work
        self.optimizer = self._build(self.spec, self.parameters)
        if options.average is not None and options.average.optimizer is not None:
            self._build(options.average.optimizer, self.parameters)  # refused now, not in the middle of a training
        self.average: list[Tensor] | None = None
        self.averaged_steps = 0
        self.validations_since_best = 0

    def _build(self, spec: Mapping[str, Any] | str, parameters: list[Tensor]) -> torch.optim.Optimizer:
        settings: dict[str, Any] = {"type": spec} if isinstance(spec, str) else {"type": "adam", **spec}
        if "lr" in settings:
            raise UserError("training.optimizer has lr; set training.learning_rate instead.")
        if settings.get("maximize"):
            raise UserError("training.optimizer has maximize, and a loss is made small; leave it out.")
        known = specs.options_of(OPTIMIZERS.find(settings.get("type")), skip=1)
        if "lr" in known:
            settings["lr"] = self.options.learning_rate
        if "fused" in known and not (settings.get("foreach") or settings.get("differentiable")):
            settings.setdefault("fused", True)
        trial = nn.Parameter(torch.zeros(2, 2))
        trial.grad = torch.zeros_like(trial)
        try:
            OPTIMIZERS.build(settings, [trial]).step()  # some options are checked only here
        except (ArithmeticError, AssertionError, RuntimeError, TypeError, ValueError) as error:
            raise UserError(f"training.optimizer cannot make a step ({reason(error)}); change its options.") from error
        return OPTIMIZERS.build(settings, parameters)

    def step(self, step: int, lr_scale: float = 1.0) -> Tensor:
        """Clip the accumulated gradients, make the optimizer's step, counted from 0, and clear them.

        Returns:
            The norm of the gradient; where it is not finite, nothing is changed.
        """
        norm = nn.utils.clip_grad_norm_(self.parameters, self.options.clip_norm or math.inf, foreach=True)
        if math.isfinite(norm.item()):
            if self._averages_from(step):
                self._start_average()
            for group in self.optimizer.param_groups:
                group["lr"] = self._learning_rate(step) * lr_scale
            self.optimizer.step()
            self._update_average()
        self.optimizer.zero_grad()
        return norm

    def _averages_from(self, step: int) -> bool:
        """Whether averaging, and with it another optimizer, begins with a step, not with a validation."""
        options = self.options.average
        if options is None or options.patience is not None or self.average is not None:
            return False
        return step >= (options.start_step or 0)

    def _learning_rate(self, step: int) -> float:
        options = self.options.average
        if self.average is not None and options is not None and options.learning_rate is not None:
            return options.learning_rate
        return learning_rate(self.options, step)

    def _update_average(self) -> None:
        options = self.options.average
        if options is None or self.average is None:
            return
        update = get_swa_multi_avg_fn() if options.decay is None else get_ema_multi_avg_fn(options.decay)
        with torch.no_grad():
            if self.averaged_steps == 0:
                torch._foreach_copy_(self.average, self.parameters)
            else:
                update(self.average, self.parameters, torch.tensor(self.averaged_steps))
        self.averaged_steps += 1

    def _start_average(self) -> None:
        self.average = [parameter.detach().clone() for parameter in self.parameters]
        if self.options.average is not None and self.options.average.optimizer is not None:
            self.spec = self.options.average.optimizer
            self.optimizer = self._build(self.spec, self.parameters)

    def after_validation(self, is_best: bool) -> None:
        """Start averaging where a recipe's patience has ended without a new best validation."""
        self.validations_since_best = 0 if is_best else self.validations_since_best + 1
        options = self.options.average
        if options is None or options.patience is None or self.average is not None:
            return
        if self.validations_since_best >= options.patience:
            self._start_average()

    @contextmanager
    def evaluation_weights(self) -> Iterator[None]:
        """Put the averaged weights, where there are any, into the model."""
        if self.average is None or not self.averaged_steps:
            yield
            return
        current = [parameter.detach().clone() for parameter in self.parameters]
        try:
            with torch.no_grad():
                torch._foreach_copy_(self.parameters, self.average)
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self.parameters, current)

    def state_dict(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The state as tensors and as plain values, by the names of the parameters."""
        state = {self.names[index]: values for index, values in self.optimizer.state_dict()["state"].items()}
        tensors = {
            name: {key: value for key, value in values.items() if isinstance(value, Tensor)}
            for name, values in state.items()
        }
        plain = {
            name: {key: value for key, value in values.items() if not isinstance(value, Tensor)}
            for name, values in state.items()
        }
        average = {} if self.average is None else dict(zip(self.names, self.average, strict=True))
        return {"optimizer": tensors, "average": average}, {
            "optimizer": {name: values for name, values in plain.items() if values},
            "averaged_steps": self.averaged_steps,
            "averages": self.average is not None,
            "validations_since_best": self.validations_since_best,
        }

    def load_state_dict(self, tensors: Mapping[str, Any], plain: Mapping[str, Any]) -> None:
        """Restore the state; tensors go to the device of their parameter.

        Raises:
            KeyError: where a part is missing.
            ValueError: where a part is of another shape or kind.
        """
        self.averaged_steps = specs.check("averaged_steps", plain["averaged_steps"], specs.Count)
        self.validations_since_best = specs.check("its validations", plain["validations_since_best"], specs.Count)
        if specs.check("averages", plain["averages"], bool):
            self._start_average()
            assert self.average is not None
            for mean, name in zip(self.average, self.names, strict=True):
                mean.copy_(tensors["average"][name])
        moments = tensors.get("optimizer", {})
        state = {
            index: {**moments.get(name, {}), **plain["optimizer"].get(name, {})}
            for index, name in enumerate(self.names)
            if name in moments or name in plain["optimizer"]
        }
        expected = self._state_after_a_step()
        for index, values in state.items():
            if _kinds(values) != _kinds(expected[index]):  # torch checks no shape, and reads beyond the end
                raise ValueError(f"the optimizer's state of {self.names[index]} is of another shape or kind")
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})

    def _state_after_a_step(self) -> dict[int, dict[str, Any]]:
        parameters = [torch.zeros_like(parameter, device="cpu") for parameter in self.parameters]
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        trial = self._build(self.spec, parameters)
        trial.step()
        return trial.state_dict()["state"]


def _kinds(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: (x.shape, x.dtype) if isinstance(x, Tensor) else type(x) for key, x in values.items()}
