"""Ops whose gradients are written out, as custom operators that torch differentiates, traces and compiles.

A `Definition` names an op's arguments and results; `Definition.implement` makes an implementation differentiable.
Tensors go by name throughout: `x.weight` is an argument, `kept.gates` what the forward pass saved, `d.hiddens` the
gradient of a result (None where there is none), `wanted.memory` whether an input's gradient is needed.
"""

from __future__ import annotations

import inspect
import math
from collections import namedtuple
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

aten = torch.ops.aten  # operators that torch has no function for
Named = Any  # a named tuple of tensors and options, made by a Definition: the fields are its own
Found = TypeVar("Found", bound=tuple[Tensor | None, ...])
# as schemas say it
KINDS = {Tensor: "Tensor", Tensor | None: "Tensor?", float: "float", int: "SymInt", bool: "bool", str: "str"}


class Definition(Generic[Found]):
    """The equations of an op, and the names of its arguments and results.

    Args:
        reference: the equations, a function of tensors first and options last; any number of derivatives.
        inputs: names of the arguments that have gradients, its first.
        results: names of what it returns.
    """

    def __init__(self, reference: Callable[..., Found], inputs: str, results: str):
        parameters = inspect.signature(reference, eval_str=True).parameters
        self.reference = reference
        self.Arguments = _names("Arguments", parameters)
        self.Inputs = _names("Inputs", inputs.split())
        self.Results = _names("Results", results.split())
        self.schema = ", ".join(f"{KINDS[parameter.annotation]} {name}" for name, parameter in parameters.items())
        self.tensors = sum(parameter.annotation in (Tensor, Tensor | None) for parameter in parameters.values())

    def implement(
        self,
        name: str,
        forward: Callable[[Named, bool], dict[str, Tensor]],
        backward: Callable[[Named, Named, Named, Named], Mapping[str, Tensor | None]],
        *,
        saved: str,
        empty: Callable[[Named, bool], dict[str, Tensor]],
        empty_gradients: Callable[[Named], dict[str, Tensor]] | None = None,
    ) -> Callable[..., Found]:
        """Register operators for a forward and a backward pass; return a function of the reference's arguments.

        Args:
            name: of the operator, `fastweights::{name}`; the gradient is `fastweights::{name}_backward`.
            forward: `forward(x, keep)` returns the results and what is saved, by name; `keep` is whether a gradient
                will be needed.
            backward: `backward(x, kept, d, wanted)` returns the gradients of the inputs by name, at least of those
                that are wanted.
            saved: names of what the gradient needs, results among them.
            empty: `empty(x, keep)` allocates what `forward` returns: same names, shapes and strides.
            empty_gradients: the same for `backward`; contiguous tensors of the inputs' shapes by default.
        """
        Arguments, Inputs, Results, tensors = self.Arguments, self.Inputs, self.Results, self.tensors
        Saved = _names("Saved", saved.split())
        outputs = (*Results._fields, *(name for name in Saved._fields if name not in Results._fields))
        places = [outputs.index(name) for name in Saved._fields]
        empty_gradients = empty_gradients or gradients_like
        inputs, results, arguments = (len(names._fields) for names in (Inputs, Results, Arguments))
        without_gradient = [None] * (arguments + 1 - inputs)

        def results_of(function: Callable[[Named, bool], dict[str, Tensor]]) -> Callable[..., tuple[Tensor, ...]]:
            def run(*given: Any) -> tuple[Tensor, ...]:
                found = function(Arguments._make(given[:-1]), given[-1])
                return tuple([found[name] for name in outputs])

            return run

        def wanted_of(found: Mapping[str, Tensor | None], wanted: Iterable[bool]) -> list[Tensor | None]:
            return [found[name] for name, needed in zip(Inputs._fields, wanted, strict=True) if needed]

        def run_backward(*given: Any) -> list[Tensor | None]:
            d, x, kept = given[:results], given[results : results + arguments], given[results + arguments : -1]
            wanted = Inputs._make(given[-1])
            return wanted_of(backward(Arguments._make(x), Saved._make(kept), Results._make(d), wanted), wanted)

        def fake_backward(*given: Any) -> list[Tensor | None]:
            return wanted_of(empty_gradients(Arguments._make(given[results : results + arguments])), given[-1])

        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
            ctx.options = inputs[tensors:-1]
            ctx.set_materialize_grads(False)
            ctx.save_for_backward(*inputs[:tensors], *[output[place] for place in places])

        def gradient(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
            saved = ctx.saved_tensors  # once: under activation checkpointing they cannot be unpacked again
            x, d, wanted = (*saved[:tensors], *ctx.options), gradients[:results], ctx.needs_input_grad[:inputs]
            with without_autocast(saved[0].device.type):
                if torch.is_grad_enabled():  # for second derivatives
                    return (*self._differentiable_gradients(Arguments._make(x), d), *without_gradient)
                found = gradient_operator(*d, *x, *saved[tensors:], wanted)
            if not all(wanted):
                found = iter(found)
                found = [next(found) if needed else None for needed in wanted]
            return (*found, *without_gradient)

        def operator_of(name: str, run: Callable[..., Any], fake: Callable[..., Any], schema: str) -> Any:
            found = torch.library.custom_op(f"fastweights::{name}", run, mutates_args=(), schema=schema)
            found.register_fake(fake)
            return found

        def like_the_reference(x: Named, keep: bool) -> dict[str, Tensor]:
            """As `forward`, which may spread NaN and infinities to what does not depend on them."""
            found = forward(x, keep)
            if _any_non_finite([found[name] for name in Results._fields]):
                with torch.no_grad():
                    for name, y in zip(Results._fields, self.reference(*x), strict=True):
                        if y is not None:
                            found[name].copy_(y)
            return found

        returns = ", ".join(["Tensor"] * len(outputs))
        operator = operator_of(
            name, results_of(like_the_reference), results_of(empty), f"({self.schema}, bool keep) -> ({returns})"
        )
        operator.register_autograd(gradient, setup_context=setup_context)
        of_results = ", ".join(f"Tensor? d_{name}" for name in Results._fields)
        of_saved = ", ".join(f"Tensor saved_{name}" for name in Saved._fields)
        schema = f"({of_results}, {self.schema}, {of_saved}, bool[] wanted) -> Tensor[]"
        gradient_operator = operator_of(f"{name}_backward", run_backward, fake_backward, schema)

        def run(*given: Any) -> Found:
            keep = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in given[:inputs])
            return operator(*given, keep)[:results]

        return run

    def _differentiable_gradients(self, x: Named, d: tuple[Tensor | None, ...]) -> list[Tensor | None]:
        """Gradients of the inputs through the reference, which can be differentiated once more."""
        results = zip(self.reference(*x), d, strict=True)
        pairs = [(y, dy) for y, dy in results if y is not None and dy is not None and y.requires_grad]
        needed = [name for name in self.Inputs._fields if _requires_grad(getattr(x, name))]
        if not pairs:
            return [None for _ in self.Inputs._fields]
        outputs, gradients = zip(*pairs, strict=True)
        inputs = [getattr(x, name) for name in needed]
        found = torch.autograd.grad(outputs, inputs, gradients, create_graph=True, allow_unused=True)
        by_name = dict(zip(needed, found, strict=True))
        return [by_name.get(name) for name in self.Inputs._fields]


def _names(kind: str, names: Iterable[str]) -> Any:
    return namedtuple(kind, names)


def without_autocast(device: str) -> AbstractContextManager:
    """A context in which autocast is off for a type of device; nothing to enter, and no time lost, where it is off."""
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


def gradients_like(x: Named, *in_time: str) -> dict[str, Tensor]:
    """An empty tensor of each argument's shape, contiguous; those named `in_time` lie in the order of time."""
    tensors = {name: a for name, a in x._asdict().items() if isinstance(a, Tensor)}
    return {name: time_first(a) if name in in_time else a.new_empty(a.shape) for name, a in tensors.items()}


def time_first(like: Tensor, *shape: int) -> Tensor:
    """An empty tensor `[B, T, …]` (of the shape of `like` by default) whose steps lie one after another in memory."""
    B, T, *rest = shape or like.shape
    size = math.prod(rest)
    return like.new_empty_strided((B, T, *rest), (size, B * size, *_strides(rest)))


def _strides(shape: list[int]) -> list[int]:
    return [math.prod(shape[place + 1 :]) for place in range(len(shape))]


def _any_non_finite(tensors: list[Tensor]) -> bool:
    """Whether there is a NaN or an infinity, mostly at the cost of their sums (a CUDA graph cannot ask)."""
    if tensors[0].is_cuda and torch.cuda.is_current_stream_capturing():
        return False
    return not math.isfinite(sum(x.sum().item() for x in tensors)) and not all(
        bool(x.isfinite().all()) for x in tensors
    )


def _requires_grad(x: Tensor | None) -> bool:
    return x is not None and x.requires_grad


def unless_full(mask: Tensor | None) -> Tensor | None:
    """The mask, or None where it is True everywhere and can be left out."""
    return None if mask is None or bool(mask.all()) else mask


def states_before(first: Tensor, states: Tensor, resets: Tensor | None, time: int = 1) -> Tensor:
    """The state before each step, from the first one and those after each step; zeros at a reset `[B, T]`.

    Args:
        first: `[B, H]`.
        states: `[B, T, H]`, or `[T, B, H]` where `time` is 0.
    """
    found = torch.cat([first.unsqueeze(time), states.narrow(time, 0, states.shape[time] - 1)], time)
    if resets is not None:
        found *= ~(resets if time else resets.T).unsqueeze(-1)
    return found
