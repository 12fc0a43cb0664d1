"""Which implementations of an op can run here, which would be chosen, and why."""

from collections.abc import Iterable, Mapping

from fastweights.errors import nearest

PREFERENCE = ("plain", "reference")


def choose(op: str, available: Iterable[str], wanted: str = "auto") -> str:
    """Return the name of the backend to run; an explicit choice is never changed silently.

    >>> choose("fwm", ["reference", "plain"])
    'plain'

    Raises:
        ValueError: where `wanted` is not "auto" and not available.
    """
    available = list(available)
    if wanted == "auto":
        return next(name for name in PREFERENCE if name in available)
    if wanted not in available:
        raise ValueError(f'{op} has no backend "{wanted}"{nearest(wanted, available)} (it has: {", ".join(available)})')
    return wanted


def explain(op: str, available: Mapping[str, object]) -> list[dict]:
    """List an op's backends in the order of preference: name, whether "auto" chooses it, and what it is."""
    chosen = choose(op, available)
    return [
        {"name": name, "chosen": name == chosen, "reason": summary(available[name])}
        for name in PREFERENCE
        if name in available
    ]


def summary(function: object) -> str:
    """The first sentence of a backend's docstring."""
    return (function.__doc__ or "").strip().partition("\n")[0].rstrip(".")
