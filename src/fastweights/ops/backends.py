"""Which implementations of an op can run here, which would be chosen, and why."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from fastweights.errors import nearest

PREFERENCE = ("cpu", "plain", "reference")


class Backend(NamedTuple):
    """An implementation of an op: what runs, and why it cannot run (on given tensors), or None where it can."""

    run: Callable[..., Any]
    refuses: Callable[..., str | None] = lambda *question: None


def choose(op: str, backends: Mapping[str, Backend], wanted: str = "auto", *question: Any) -> str:
    """Return the name of the backend to run; an explicit choice is never changed silently.

    >>> choose("fwm", {"reference": Backend(print), "plain": Backend(print)})
    'plain'

    Args:
        op: the op's name, for messages.
        backends: its backends by name.
        wanted: a name, or "auto" for the first in PREFERENCE that can run.
        question: what is to be run, as the op's backends are asked about it; nothing asks about this machine alone.

    Raises:
        ValueError: where `wanted` is not "auto" and not there, or cannot run.
    """
    if wanted == "auto":
        return next(name for name in PREFERENCE if name in backends and backends[name].refuses(*question) is None)
    if wanted not in backends:
        raise ValueError(f'{op} has no backend "{wanted}"{nearest(wanted, backends)} (it has: {", ".join(backends)})')
    reason = backends[wanted].refuses(*question)
    if reason:
        raise ValueError(f'{op} cannot run with backend "{wanted}": {reason}; "auto" takes the best that can')
    return wanted


def explain(op: str, backends: Mapping[str, Backend]) -> list[dict]:
    """List an op's backends by preference: whether "auto" chooses each, and what it is or why it cannot run."""
    chosen = choose(op, backends)
    return [
        {
            "name": name,
            "available": backends[name].refuses() is None,
            "chosen": name == chosen,
            "reason": backends[name].refuses() or summary(backends[name].run),
        }
        for name in PREFERENCE
        if name in backends
    ]


def summary(function: object) -> str:
    """The first sentence of a function's docstring."""
    return (function.__doc__ or "").strip().partition("\n")[0].rstrip(".")
