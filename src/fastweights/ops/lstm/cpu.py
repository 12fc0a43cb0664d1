"""The LSTM's compiled kernel (csrc/lstm.cpp), forward and backward, for float32 on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastweights.ops import cpu
from fastweights.ops.differentiable import Named, gradients_like, states_before, time_first
from fastweights.ops.lstm.reference import DEFINITION
from fastweights.ops.products import weight_gradient


def _empty(x: Named, keep: bool) -> dict[str, Tensor]:
    (B, H), new = x.hidden.shape, x.hidden.new_empty
    T = (x.gate_inputs if x.tokens is None else x.tokens).shape[1]
    K = T if keep else 0
    return {
        "hiddens": time_first(x.hidden, B, T, H),
        "last_hidden": new(B, H),
        "last_cell": new(B, H),
        "cells": new(K, B, H),
        "gates": new(K, B, 4 * H),
    }


def _arguments(x: Named, hiddens: Tensor) -> cpu.LSTMArguments:
    B, T, H = hiddens.shape
    arguments = cpu.LSTMArguments(B=B, T=T, H=H, threads=torch.get_num_threads(), bfloat16=x.bfloat16)
    arguments.set_contiguous(weight=x.weight, hidden=x.hidden, cell=x.cell, mask=x.mask, resets=x.resets)
    return arguments


def _forward(x: Named, keep: bool) -> dict[str, Tensor]:
    found = _empty(x, keep)
    arguments = _arguments(x, found["hiddens"])
    arguments.set(**found)
    if x.tokens is None:
        arguments.set_sequence("gate_inputs", x.gate_inputs)
    else:
        table = cpu.rows(x.gate_inputs)
        arguments.set(gate_inputs=table, gate_inputs_row=table.stride(0))
        arguments.set(tokens=x.tokens, tokens_row=x.tokens.stride(0), tokens_step=x.tokens.stride(1))
    cpu.call("lstm_forward", arguments)
    return found


def _backward(x: Named, kept: Named, d: Named, wanted: Named) -> dict[str, Tensor]:
    d_inputs = torch.empty_like(kept.gates)
    d_hidden, d_cell = cpu.initial_gradient(d.last_hidden, x.hidden), cpu.initial_gradient(d.last_cell, x.cell)
    arguments = _arguments(x, kept.hiddens)
    arguments.set(cells=kept.cells, gates=kept.gates, d_gate_inputs=d_inputs, d_hidden=d_hidden, d_cell=d_cell)
    arguments.set_sequence("d_hiddens", d.hiddens)
    cpu.call("lstm_backward", arguments)
    previous = states_before(x.hidden, kept.hiddens.transpose(0, 1), x.resets, time=0)
    d_weight = weight_gradient(d_inputs, previous, x.bfloat16)
    d_inputs = d_inputs.transpose(0, 1) if x.tokens is None else _summed_by_token(x, d_inputs)
    return {"gate_inputs": d_inputs, "weight": d_weight, "hidden": d_hidden, "cell": d_cell}


def _summed_by_token(x: Named, gradient: Tensor) -> Tensor:
    """The gradient of the table `[V, 4·H]` from that of its rows `[T, B, 4·H]`."""
    T, B, columns = gradient.shape
    table, tokens = gradient.new_zeros(x.gate_inputs.shape), x.tokens.T.contiguous()
    arguments = cpu.GatherArguments(positions=T * B, columns=columns, threads=torch.get_num_threads())
    arguments.set(tokens=tokens, gradient=gradient, table=table)
    cpu.call("gather_backward", arguments)
    return table


_lstm = DEFINITION.implement(
    "lstm_cpu",
    _forward,
    _backward,
    saved="hiddens cells gates",
    empty=_empty,
    empty_gradients=lambda x: gradients_like(x, "gate_inputs" if x.tokens is None else ""),
)


def compiled(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Compiled for this processor: float32 on the CPU, with products in bfloat16 under autocast where it has them.

    Arguments as of `reference`.
    """
    *tensors, bfloat16 = arguments
    return _lstm(*tensors, bfloat16 and cpu.has_bfloat16())


def unsupported_reason(device: str, tensors: Sequence[Tensor] = ()) -> str | None:
    """Why the kernel cannot run on a device (with gate_inputs, weight, hidden, cell), or None where it can."""
    return cpu.unsupported_reason(device, tensors)
