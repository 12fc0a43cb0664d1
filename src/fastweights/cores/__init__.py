"""Cores: what reads a sequence and carries a state. A new one is a file here and a line in `CORES`."""

from __future__ import annotations

import inspect
from typing import Any

from fastweights.cores.contract import Core, map_state, state_size
from fastweights.cores.fwm import FastWeightMemory
from fastweights.cores.lstm import LSTM, LSTMStack
from fastweights.errors import UserError, nearest

__all__ = ["CORES", "LSTM", "Core", "FastWeightMemory", "LSTMStack", "build", "map_state", "state_size"]

CORES: dict[str, type[Core]] = {
    "fwm": FastWeightMemory,
    "lstm": LSTM,
    "lstm-stack": LSTMStack,
}


def build(spec: dict[str, Any], input_size: int) -> Core:
    """Build a core from a recipe's words: `type` names it, the rest are its arguments; `slow` may be a core itself.

    >>> build({"type": "fwm", "hidden_size": 16, "memory_size": 8}, input_size=10).output_size
    16

    Raises:
        UserError: where the type or an argument does not exist, or a value is of the wrong kind.
    """
    options = dict(spec)
    name = options.pop("type", None)
    if name not in CORES:
        raise UserError(
            f'There is no core "{name}"{nearest(str(name), CORES)} Set model.core.type to one of {", ".join(CORES)}.'
        )
    known = {key: p for key, p in inspect.signature(CORES[name]).parameters.items() if key != "input_size"}
    for key, value in options.items():
        if key not in known:
            raise UserError(
                f'The core "{name}" has no option "{key}"{nearest(key, known)} It has: {", ".join(known)}.'
            )
        default = known[key].default
        wanted = int | float if isinstance(default, float) else type(default)
        if default is not None and (not isinstance(value, wanted) or isinstance(value, bool) != (default is True or default is False)):
            raise UserError(f'model.core.{key} is {value!r}; it must be like {default!r}.')
    if isinstance(options.get("slow"), dict):
        options["slow"] = build(options["slow"], input_size)
    try:
        return CORES[name](input_size, **options)
    except (ValueError, TypeError, RuntimeError) as error:
        raise UserError(f'The core "{name}" cannot be built: {error}.') from error
