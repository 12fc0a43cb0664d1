"""Cores: what reads a sequence and carries a state. A new one is a file here and a line in `CORES`."""

from __future__ import annotations

from typing import Any

from fastweights import specs
from fastweights.cores.contract import Core, map_state, state_size
from fastweights.cores.fw_lstm import FastWeightLSTM, LayerNormLSTM
from fastweights.cores.fw_rnn import FastWeightRNN
from fastweights.cores.fwm import FastWeightMemory
from fastweights.cores.lstm import LSTM, LSTMStack

__all__ = [
    "CORES", "LSTM", "Core", "FastWeightLSTM", "FastWeightMemory", "FastWeightRNN", "LSTMStack", "LayerNormLSTM",
    "build", "map_state", "state_size",
]  # fmt: skip

CORES: dict[str, type[Core]] = {
    "fwm": FastWeightMemory,
    "lstm": LSTM,
    "lstm-stack": LSTMStack,
    "ln-lstm": LayerNormLSTM,
    "fw-lstm": FastWeightLSTM,
    "fw-rnn": FastWeightRNN,
}


def build(spec: dict[str, Any], input_size: int) -> Core:
    """Build a core from a recipe's words: `type` names it, the rest are its arguments; `slow` may be a core itself.

    >>> build({"type": "fwm", "hidden_size": 16, "memory_size": 8}, input_size=10).output_size
    16

    Raises:
        UserError: where the type or an argument does not exist, or a value is of the wrong kind.
    """
    spec = dict(spec)
    if isinstance(spec.get("slow"), dict):
        spec["slow"] = build(spec["slow"], input_size)
    return specs.build("core", CORES, spec, input_size)
