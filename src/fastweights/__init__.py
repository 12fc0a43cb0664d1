"""Sequence models with fast weights: networks that write facts into a rapidly changing memory while they read.

>>> import torch, fastweights
>>> layer = fastweights.FastWeightMemory(10, hidden_size=16, memory_size=8)
>>> y, state = layer(torch.randn(2, 5, 10))
"""

from importlib import import_module
from importlib.metadata import version as _version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastweights.cores import LSTM, FastWeightMemory, LSTMStack
    from fastweights.errors import UserError
    from fastweights.models import TokenModel
    from fastweights.ops.fwm import fast_weight_memory
    from fastweights.ops.lstm import lstm
    from fastweights.training.loop import load_model

_HOMES = {
    "FastWeightMemory": "fastweights.cores",
    "LSTM": "fastweights.cores",
    "LSTMStack": "fastweights.cores",
    "TokenModel": "fastweights.models",
    "UserError": "fastweights.errors",
    "fast_weight_memory": "fastweights.ops.fwm",
    "load_model": "fastweights.training.loop",
    "lstm": "fastweights.ops.lstm",
}

__all__ = [
    "LSTM", "FastWeightMemory", "LSTMStack", "TokenModel", "UserError", "fast_weight_memory", "load_model", "lstm",
]  # fmt: skip


def __getattr__(name: str):
    if name == "__version__":
        return _version("fastweights")
    if name not in _HOMES:
        raise AttributeError(f"module 'fastweights' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
