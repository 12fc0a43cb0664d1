"""The compiled kernel of the fast weight LSTM (csrc/fw_lstm.cpp), forward and backward, for float32 on the CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastweights.ops import cpu
from fastweights.ops.differentiable import Named, states_before
from fastweights.ops.fw_lstm.reference import DEFINITION
from fastweights.ops.products import weight_gradient

SAVED = ("before", "gates", "moments", "totals", "candidates", "cells", "keys", "starts")


def _empty(x: Named, keep: bool) -> dict[str, Tensor]:
    """K steps of what the gradient needs, one where there will be none; each row padded to P."""
    (B, H), T = x.hidden.shape, x.gate_inputs.shape[1]
    C, P = min(x.chunk, T), cpu.padded(H)
    K, N = (T, T) if keep else (1, C)
    shapes = {
        "hiddens": (B, T, H),
        "last_hidden": (B, H),
        "last_cell": (B, H),
        "last_memory": (0,) if x.memory is None else (B, H, H),
        "before": (K, B, 4 * P),
        "gates": (K, B, 4 * P),
        "moments": (K, B, 4),
        "totals": (K, B, P),
        "candidates": (K, B, P),
        "cells": (K, B, P),
        "keys": (B, N, P),
        "starts": (B, (T - 1) // C, H, H) if keep and x.memory is not None else (0,),
    }
    return {name: x.hidden.new_empty(shape) for name, shape in shapes.items()}


def _arguments(x: Named, keep: bool) -> cpu.FWLSTMArguments:
    (B, H), T = x.hidden.shape, x.gate_inputs.shape[1]
    arguments = cpu.FWLSTMArguments(B=B, T=T, H=H, chunk=min(x.chunk, T), threads=torch.get_num_threads())
    arguments.set(keep=int(keep), decay=x.decay, rate=x.rate)
    arguments.set_contiguous(weight=x.weight, hidden=x.hidden, cell=x.cell, memory=x.memory)
    arguments.set_contiguous(gates_gain=x.gates_gain, gates_bias=x.gates_bias)
    arguments.set_contiguous(cell_gain=x.cell_gain, cell_bias=x.cell_bias, mask=x.mask, resets=x.resets)
    return arguments


def _forward(x: Named, keep: bool) -> dict[str, Tensor]:
    return cpu.forward("fw_lstm_forward", _arguments(x, keep), _empty(x, keep), x.mask, gate_inputs=x.gate_inputs)


def _backward(x: Named, kept: Named, d: Named, wanted: Named) -> dict[str, Tensor | None]:
    B, T, H = kept.hiddens.shape
    d_inputs, d_norms = x.hidden.new_empty(B, T, 4 * H), x.hidden.new_empty(B, 10, cpu.padded(H))
    d_hidden, d_cell = cpu.initial_gradient(d.last_hidden, x.hidden), cpu.initial_gradient(d.last_cell, x.cell)
    goes_on = x.memory is not None and (wanted.memory or d.last_memory is not None or x.chunk < T)
    d_memory = cpu.initial_gradient(d.last_memory, x.memory) if goes_on else None
    arguments = _arguments(x, True)
    arguments.set(**{name: getattr(kept, name) for name in SAVED})
    arguments.set(d_gate_inputs=d_inputs, d_hidden=d_hidden, d_cell=d_cell, d_memory=d_memory, d_norms=d_norms)
    arguments.set(has_d_last_memory=int(d.last_memory is not None))
    arguments.set_sequence("d_hiddens", d.hiddens)
    cpu.call("fw_lstm_backward", arguments)
    previous = states_before(x.hidden, kept.hiddens, x.resets)
    norms = d_norms.sum(0)[:, :H].split([4, 4, 1, 1])
    norms = zip(("gates_gain", "gates_bias", "cell_gain", "cell_bias"), norms, strict=True)
    return {
        "gate_inputs": d_inputs,
        "weight": weight_gradient(d_inputs, previous),
        **{name: gradient.flatten().clone() for name, gradient in norms},
        "hidden": d_hidden,
        "cell": d_cell,
        "memory": d_memory,
    }


_fw_lstm = DEFINITION.implement("fw_lstm_cpu", _forward, _backward, saved=f"hiddens {' '.join(SAVED)}", empty=_empty)


def compiled(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Compiled for this processor: float32 on the CPU, any size.

    Arguments as of `reference`.
    """
    return _fw_lstm(*arguments)
