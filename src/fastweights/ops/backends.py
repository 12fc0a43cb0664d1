"""Which implementations of an op can run here, which would be chosen, and why."""

from collections.abc import Iterable

from fastweights.errors import nearest

PREFERENCE = ("plain", "reference")
REASONS = {
    "plain": "the exact chunkwise form in plain torch: any device, any dtype, no compiler needed",
    "reference": "the paper's equations step by step: slow, for tests and for second derivatives",
}


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
        raise ValueError(f'{op} has no backend "{wanted}"{nearest(wanted, available)} (there are: {", ".join(available)})')
    return wanted


def explain(available: Iterable[str]) -> list[dict]:
    """List every backend: its name, whether it would be chosen, and the reason in words."""
    available = list(available)
    chosen = choose("", available)
    return [{"name": name, "chosen": name == chosen, "reason": REASONS[name]} for name in PREFERENCE if name in available]
