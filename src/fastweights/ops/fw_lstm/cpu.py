"""The compiled kernel of the fast weight LSTM (csrc/fw_lstm.cpp), forward and backward, for float32 on the CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastweights.ops import cpu
from fastweights.ops.derivatives import in_full_precision, of_definition
from fastweights.ops.fw_lstm.reference import MEMORY, reference


@torch.library.custom_op("fastweights::fw_lstm_cpu", mutates_args=())
def _forward(
    gate_inputs: Tensor,
    weight: Tensor,
    gates_gain: Tensor,
    gates_bias: Tensor,
    cell_gain: Tensor,
    cell_bias: Tensor,
    hidden: Tensor,
    cell: Tensor,
    memory: Tensor | None,
    mask: Tensor | None,
    resets: Tensor | None,
    decay: float,
    rate: float,
    chunk: int,
    keep_for_backward: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, list[Tensor]]:
    """h_1 … h_T `[B, T, H]`, h_T, c_T, A_T, and what the gradient needs."""
    gate_inputs = cpu.rows(gate_inputs)
    arguments = _arguments(
        weight, gates_gain, gates_bias, cell_gain, cell_bias, hidden, cell, memory, mask, resets, decay, rate,
        gate_inputs.shape[1], chunk, keep_for_backward,
    )  # fmt: skip
    names = ("hiddens", "last_hidden", "last_cell", "last_memory", *_KEPT)
    shapes = _shapes(gate_inputs, memory, chunk, keep_for_backward)
    everywhere = mask is None or bool(mask.all())
    filled = hidden.new_empty if everywhere else hidden.new_zeros  # padding leaves values unwritten
    outputs = {name: filled(shape) for name, shape in zip(names, shapes, strict=True)}
    arguments.set(gate_inputs=gate_inputs, **outputs)
    arguments.input_row, arguments.input_step = gate_inputs.stride()[:2]
    cpu.call("fw_lstm_forward", arguments)
    *results, last_memory = [outputs[name] for name in names[:4]]
    return *results, last_memory, [outputs[name] for name in _KEPT] if keep_for_backward else []


_KEPT = ("before", "gates", "moments", "totals", "candidates", "cells", "keys", "starts")


def _shapes(gate_inputs: Tensor, memory: Tensor | None, chunk: int, keep: bool) -> list[tuple[int, ...]]:
    """Of the results of `_forward`, and of `_KEPT`."""
    B, T, wide = gate_inputs.shape
    H, C = wide // 4, min(chunk, T)
    P, K, N = cpu.padded(H), T if keep else 1, T if keep else C
    results = [(B, T, H), (B, H), (B, H), (0,) if memory is None else (B, H, H)]
    starts = (0,) if memory is None or not keep else (B, (T - 1) // C, H, H)
    return [*results, *[(K, B, 4 * P)] * 2, (K, B, 4), *[(K, B, P)] * 3, (B, N, P), starts]


def _arguments(
    weight, gates_gain, gates_bias, cell_gain, cell_bias, hidden, cell, memory, mask, resets, decay, rate, length,
    chunk, keep,
) -> cpu.FWLSTMArguments:  # fmt: skip
    """What both directions are told."""
    B, H = hidden.shape
    arguments = cpu.FWLSTMArguments(B=B, T=length, H=H, chunk=min(chunk, length), threads=torch.get_num_threads())
    arguments.set(
        keep=int(keep), decay=decay, rate=rate, mask=cpu.contiguous_mask(mask), resets=cpu.contiguous_mask(resets)
    )
    arguments.set(weight=weight.contiguous(), hidden=hidden.contiguous(), cell=cell.contiguous())
    arguments.set(gates_gain=gates_gain.contiguous(), gates_bias=gates_bias.contiguous())
    arguments.set(cell_gain=cell_gain.contiguous(), cell_bias=cell_bias.contiguous())
    arguments.set(memory=None if memory is None else memory.contiguous())
    return arguments


@_forward.register_fake
def _(gate_inputs, weight, gates_gain, gates_bias, cell_gain, cell_bias, hidden, cell, memory, mask, resets, decay,
      rate, chunk, keep_for_backward):  # fmt: skip
    found = [hidden.new_empty(shape) for shape in _shapes(gate_inputs, memory, chunk, keep_for_backward)]
    return *found[:4], found[4:] if keep_for_backward else []


@torch.library.custom_op("fastweights::fw_lstm_cpu_backward", mutates_args=())
def _backward(
    hiddens_gradient: Tensor | None,
    hidden_gradient: Tensor | None,
    cell_gradient: Tensor | None,
    memory_gradient: Tensor | None,
    weight: Tensor,
    gates_gain: Tensor,
    gates_bias: Tensor,
    cell_gain: Tensor,
    cell_bias: Tensor,
    hidden: Tensor,
    cell: Tensor,
    memory: Tensor | None,
    mask: Tensor | None,
    resets: Tensor | None,
    decay: float,
    rate: float,
    chunk: int,
    memory_is_wanted: bool,
    hiddens: Tensor,
    kept: list[Tensor],
) -> list[Tensor]:
    """Gradients of the gates' inputs `[B, T, 4·H]`, W, the layer norms, h_0, c_0 and, where it is wanted, A_0."""
    B, T, H = hiddens.shape
    arguments = _arguments(
        weight, gates_gain, gates_bias, cell_gain, cell_bias, hidden, cell, memory, mask, resets, decay, rate, T,
        chunk, True,
    )  # fmt: skip
    d_inputs = hidden.new_empty(B, T, 4 * H)
    d_hidden, d_cell = cpu.begun(hidden_gradient, hidden), cpu.begun(cell_gradient, cell)
    d_norms = hidden.new_empty(B, 10, cpu.padded(H))
    goes_on = memory is not None and (memory_is_wanted or memory_gradient is not None or chunk < T)
    d_memory = cpu.begun(memory_gradient, memory) if goes_on else None
    arguments.set(
        **dict(zip(_KEPT, kept, strict=True)),
        d_gate_inputs=d_inputs,
        d_hidden=d_hidden,
        d_cell=d_cell,
        d_memory=d_memory,
        d_norms=d_norms,
    )
    arguments.has_d_last_memory = int(memory_gradient is not None)
    if hiddens_gradient is not None:
        hiddens_gradient = cpu.rows(hiddens_gradient)
        arguments.d_hiddens = hiddens_gradient.data_ptr()
        arguments.d_hiddens_row, arguments.d_hiddens_step = hiddens_gradient.stride()[:2]
    cpu.call("fw_lstm_backward", arguments)
    previous = torch.cat([hidden.unsqueeze(1), hiddens[:, :-1]], 1)
    if resets is not None:
        previous *= ~resets.unsqueeze(-1)
    d_weight = d_inputs.flatten(0, 1).T @ previous.flatten(0, 1)
    of_norms = [x.flatten().clone() for x in d_norms.sum(0)[:, :H].split([4, 4, 1, 1])]
    return [d_inputs, d_weight, *of_norms, d_hidden, d_cell, *([d_memory] if memory_is_wanted else [])]


@_backward.register_fake
def _(hiddens_gradient, hidden_gradient, cell_gradient, memory_gradient, weight, gates_gain, gates_bias, cell_gain,
      cell_bias, hidden, cell, memory, mask, resets, decay, rate, chunk, memory_is_wanted, hiddens, kept):  # fmt: skip
    B, T, H = hiddens.shape
    like = [weight, gates_gain, gates_bias, cell_gain, cell_bias, hidden, cell]
    like += [memory] if memory_is_wanted else []
    return [hidden.new_empty(B, T, 4 * H), *(x.new_empty(x.shape) for x in like)]


def _setup_context(ctx, inputs, output):
    *tensors, ctx.decay, ctx.rate, ctx.chunk, _ = inputs
    ctx.save_for_backward(*tensors, output[0], *output[4])
    ctx.set_materialize_grads(False)


@in_full_precision
def _gradient(ctx, *gradients):
    saved = ctx.saved_tensors
    inputs, (mask, resets, hiddens), kept = saved[:9], saved[9:12], saved[12:]
    options = (mask, resets, ctx.decay, ctx.rate)
    if torch.is_grad_enabled():  # second derivatives are asked for
        found = of_definition(reference, inputs, options, gradients[:4])
    else:
        wanted = ctx.needs_input_grad[8]
        found = _backward(*gradients[:4], *inputs[1:], *options, ctx.chunk, wanted, hiddens, list(kept))
        found += [] if wanted else [None]
    return (*found, *[None] * 6)


_forward.register_autograd(_gradient, setup_context=_setup_context)


def compiled(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Compiled for this processor: float32 on the CPU, any size.

    Arguments as of `reference`.
    """
    differentiable = arguments[: MEMORY + 1]
    keep = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in differentiable)
    y, hidden, cell, last_memory, _ = _forward(*arguments, keep)
    return y, hidden, cell, None if arguments[MEMORY] is None else last_memory
