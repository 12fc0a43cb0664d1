"""The compiled kernel of the fast weight RNN (csrc/fw_rnn.cpp), forward and backward, for float32 on the CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastweights.ops import cpu
from fastweights.ops.differentiable import Named
from fastweights.ops.fw_rnn.reference import DEFINITION
from fastweights.ops.products import weight_gradient


def _empty(x: Named, keep: bool) -> dict[str, Tensor]:
    """K steps of what the gradient needs, one where there will be none; each row padded to P."""
    (B, T, H), S = x.inputs.shape, x.inner_steps
    C, P = min(x.chunk, T), cpu.padded(H)
    K, N = (T, T) if keep else (1, C)
    shapes = {
        "hiddens": (B, T, H),
        "last_hidden": (B, H),
        "last_memory": (B, H, H),
        "sums": (K, B, S, P),
        "moments": (K, B, S, 2),
        "queries": (B, K, S, P),
        "keys": (B, N, P),
        "starts": (B, (T - 1) // C, H, H) if keep else (0,),
    }
    return {name: x.hidden.new_empty(shape) for name, shape in shapes.items()}


def _arguments(x: Named, keep: bool) -> cpu.FWRNNArguments:
    B, T, H = x.inputs.shape
    arguments = cpu.FWRNNArguments(B=B, T=T, H=H, chunk=min(x.chunk, T), threads=torch.get_num_threads())
    arguments.set(keep=int(keep), inner_steps=x.inner_steps, decay=x.decay, rate=x.rate)
    arguments.set_contiguous(weight=x.weight, gain=x.gain, bias=x.bias, hidden=x.hidden)
    if any(x.memory.stride()) or x.memory[:1, :1, :1].any():  # else one zero, expanded: not to be made or read
        arguments.set_contiguous(memory=x.memory)
    arguments.set_contiguous(mask=x.mask, resets=x.resets)
    return arguments


def _forward(x: Named, keep: bool) -> dict[str, Tensor]:
    return cpu.forward("fw_rnn_forward", _arguments(x, keep), _empty(x, keep), x.mask, inputs=x.inputs)


def _backward(x: Named, kept: Named, d: Named, wanted: Named) -> dict[str, Tensor | None]:
    B, T, H = x.inputs.shape
    d_inputs, d_norms = x.hidden.new_empty(B, T, H), x.hidden.new_empty(B, 2, cpu.padded(H))
    d_hidden = cpu.initial_gradient(d.last_hidden, x.hidden)
    goes_on = wanted.memory or d.last_memory is not None or x.chunk < T
    d_memory = cpu.initial_gradient(d.last_memory, x.memory) if goes_on else None
    arguments = _arguments(x, True)
    arguments.set(**kept._asdict())
    arguments.set(d_inputs=d_inputs, d_hidden=d_hidden, d_memory=d_memory, d_norms=d_norms)
    arguments.set(has_d_last_memory=int(d.last_memory is not None))
    arguments.set_sequence("d_hiddens", d.hiddens)
    cpu.call("fw_rnn_backward", arguments)
    d_gain, d_bias = d_norms.sum(0)[:, :H]
    return {
        "inputs": d_inputs,
        "weight": weight_gradient(d_inputs, kept.keys[..., :H]),  # the keys are h_{t−1}
        "gain": d_gain.clone(),
        "bias": d_bias.clone(),
        "hidden": d_hidden,
        "memory": d_memory,
    }


_fw_rnn = DEFINITION.implement(
    "fw_rnn_cpu", _forward, _backward, saved="sums moments queries keys starts", empty=_empty
)


def compiled(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Compiled for this processor: float32 on the CPU.

    Arguments as of `reference`.
    """
    return _fw_rnn(*arguments)
