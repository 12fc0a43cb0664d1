"""The implementations of an op: which of them can run on a device, which one "auto" chooses, and why."""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, NamedTuple

from torch import Tensor

from fastweights.errors import nearest
from fastweights.ops.checks import in_one_dtype
from fastweights.ops.differentiable import without_autocast

PREFERENCE = ("cpu", "plain", "reference")


class Backend(NamedTuple):
    """An implementation of an op.

    Attributes:
        run: a function, or "module:function" for one whose module is imported at its first use.
        unsupported_reason: `unsupported_reason(device, *arguments)` returns why the backend cannot run on a type of
            device (with an op's arguments), or None where it can.
    """

    run: Callable[..., Any] | str
    unsupported_reason: Callable[..., str | None] = lambda device, *arguments: None

    def load(self) -> Callable[..., Any]:
        """Return the function, its module imported.

        >>> Backend("math:sqrt").load()(4.0)
        2.0
        """
        if not isinstance(self.run, str):
            return self.run
        module, _, name = self.run.partition(":")
        return getattr(import_module(module), name)


def choose(
    op: str, backends: Mapping[str, Backend], backend: str = "auto", *arguments: Any, device: str = "cpu"
) -> str:
    """Return the name of the backend to run; an explicit choice is never changed silently.

    >>> choose("fwm", {"reference": Backend(print), "plain": Backend(print)})
    'plain'

    Args:
        op: the op's name, for messages.
        backends: its backends by name.
        backend: a name, or "auto" for the first in PREFERENCE that can run.
        arguments: the op's arguments, as its backends check them; without any, the device alone decides.
        device: the type of the device that the tensors are on.

    Raises:
        ValueError: if `backend` is unknown or cannot run.
    """
    if backend == "auto":
        names = (name for name in PREFERENCE if name in backends)
        return next(name for name in names if backends[name].unsupported_reason(device, *arguments) is None)
    if backend not in backends:
        raise ValueError(f'{op} has no backend "{backend}"{nearest(backend, backends)} (it has: {", ".join(backends)})')
    reason = backends[backend].unsupported_reason(device, *arguments)
    if reason:
        raise ValueError(f'{op} cannot run with backend "{backend}": {reason}; "auto" takes the best that can')
    return backend


def run(
    op: str, backends: Mapping[str, Backend], backend: str, tensors: Sequence[Tensor | None], *others: Any
) -> tuple[Any, ...]:
    """Run an op with the backend that `choose` gives, on tensors in one dtype and other arguments, without autocast."""
    tensors = in_one_dtype(tensors)
    device = tensors[0].device.type
    function = backends[choose(op, backends, backend, tensors, device=device)].load()
    with without_autocast(device):
        return function(*tensors, *others)


def explain(op: str, backends: Mapping[str, Backend], device: str = "cpu") -> list[dict]:
    """List an op's backends on a type of device, by preference: name, available, chosen, and a reason or summary."""
    chosen = choose(op, backends, device=device)
    reasons = {name: backends[name].unsupported_reason(device) for name in PREFERENCE if name in backends}
    return [
        {
            "name": name,
            "available": reason is None,
            "chosen": name == chosen,
            "reason": reason or summary(backends[name].load()),
        }
        for name, reason in reasons.items()
    ]


def summary(function: object) -> str:
    """The first sentence of a function's docstring."""
    return (function.__doc__ or "").strip().partition("\n")[0].rstrip(".")
