"""Cores: recurrent sequence layers under one contract. A new one is a file here and a line in `CORES`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastweights.cores.awd_lstm import AWDLSTM
from fastweights.cores.contract import Core, CoreSpec, Losses, as_core, map_state, state_size
from fastweights.cores.fw_lstm import FastWeightLSTM, LayerNormLSTM
from fastweights.cores.fw_rnn import FastWeightRNN
from fastweights.cores.fwm import FastWeightMemory
from fastweights.cores.lstm import LSTM, LSTMStack
from fastweights.cores.mnm import MetalearnedMemory
from fastweights.cores.transformer_xl import TransformerXL
from fastweights.specs import Registry

__all__ = [
    "AWDLSTM", "CORES", "LSTM", "Core", "CoreSpec", "FastWeightLSTM", "FastWeightMemory", "FastWeightRNN", "LSTMStack",
    "LayerNormLSTM", "Losses", "MetalearnedMemory", "TransformerXL", "as_core", "build", "map_state", "state_size",
]  # fmt: skip

CORES = Registry(
    "core",
    Core,
    {
        "fwm": FastWeightMemory,
        "lstm": LSTM,
        "lstm-stack": LSTMStack,
        "awd-lstm": AWDLSTM,
        "ln-lstm": LayerNormLSTM,
        "fw-lstm": FastWeightLSTM,
        "fw-rnn": FastWeightRNN,
        "mnm": MetalearnedMemory,
        "transformer-xl": TransformerXL,
    },
)


def build(spec: Mapping[str, Any] | str, input_size: int) -> Core:
    """Build a core from its spec in a recipe: `type` names it, the rest are its options.

    >>> build({"type": "fwm", "hidden_size": 16, "memory_size": 8}, input_size=10).output_size
    16

    Raises:
        UserError: where the type or an option does not exist, or a value is of the wrong kind.
    """
    return CORES.build(spec, input_size)
