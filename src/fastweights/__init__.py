"""Sequence models with fast weights: networks that write facts into a rapidly changing memory while they read.

>>> import torch, fastweights
>>> layer = fastweights.FastWeightMemory(10, hidden_size=16, memory_size=8)
>>> y, state = layer(torch.randn(2, 5, 10))
"""

from importlib import import_module
from importlib.metadata import version as _version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastweights.cores import (
        LSTM,
        FastWeightLSTM,
        FastWeightMemory,
        FastWeightRNN,
        LayerNormLSTM,
        LSTMStack,
        MetalearnedMemory,
        TransformerXL,
    )
    from fastweights.errors import UserError
    from fastweights.models import TokenModel
    from fastweights.ops.fw_lstm import fast_weight_lstm
    from fastweights.ops.fw_rnn import fast_weight_rnn
    from fastweights.ops.fwm import fast_weight_memory
    from fastweights.ops.lstm import lstm
    from fastweights.ops.mnm import metalearned_memory
    from fastweights.ops.relative_attention import relative_attention
    from fastweights.training.trained import load_model

_HOMES = {
    "FastWeightLSTM": "fastweights.cores",
    "FastWeightMemory": "fastweights.cores",
    "FastWeightRNN": "fastweights.cores",
    "LSTM": "fastweights.cores",
    "LSTMStack": "fastweights.cores",
    "LayerNormLSTM": "fastweights.cores",
    "MetalearnedMemory": "fastweights.cores",
    "TokenModel": "fastweights.models",
    "TransformerXL": "fastweights.cores",
    "UserError": "fastweights.errors",
    "fast_weight_lstm": "fastweights.ops.fw_lstm",
    "fast_weight_memory": "fastweights.ops.fwm",
    "fast_weight_rnn": "fastweights.ops.fw_rnn",
    "load_model": "fastweights.training.trained",
    "lstm": "fastweights.ops.lstm",
    "metalearned_memory": "fastweights.ops.mnm",
    "relative_attention": "fastweights.ops.relative_attention",
}

__all__ = [
    "LSTM", "FastWeightLSTM", "FastWeightMemory", "FastWeightRNN", "LSTMStack", "LayerNormLSTM",
    "MetalearnedMemory", "TokenModel", "TransformerXL", "UserError", "fast_weight_lstm", "fast_weight_memory",
    "fast_weight_rnn", "load_model", "lstm", "metalearned_memory", "relative_attention",
]  # fmt: skip


def __getattr__(name: str) -> object:
    if name == "__version__":
        return _version("fastweights")
    if name not in _HOMES:
        raise AttributeError(f"module 'fastweights' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
