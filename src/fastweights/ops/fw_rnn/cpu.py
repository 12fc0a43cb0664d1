"""The compiled kernel of the fast weight RNN (csrc/fw_rnn.cpp), forward and backward, for float32 on the CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastweights.ops import cpu
from fastweights.ops.derivatives import in_full_precision, of_definition
from fastweights.ops.fw_rnn.reference import MEMORY, reference


@torch.library.custom_op("fastweights::fw_rnn_cpu", mutates_args=())
def _forward(
    inputs: Tensor,
    weight: Tensor,
    gain: Tensor,
    bias: Tensor,
    hidden: Tensor,
    memory: Tensor,
    mask: Tensor | None,
    resets: Tensor | None,
    decay: float,
    rate: float,
    inner_steps: int,
    chunk: int,
    keep_for_backward: bool,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """h_1 … h_T `[B, T, H]`, h_T, A_T, and what the gradient needs."""
    inputs = cpu.rows(inputs)
    arguments = _arguments(
        weight, gain, bias, hidden, memory, mask, resets, decay, rate, inner_steps, inputs.shape[1], chunk,
        keep_for_backward,
    )  # fmt: skip
    names = ("hiddens", "last_hidden", "last_memory", *_KEPT)
    shapes = _shapes(inputs, inner_steps, chunk, keep_for_backward)
    everywhere = mask is None or bool(mask.all())
    filled = hidden.new_empty if everywhere else hidden.new_zeros  # padding leaves values unwritten
    outputs = {name: filled(shape) for name, shape in zip(names, shapes, strict=True)}
    arguments.set(inputs=inputs, **outputs)
    arguments.input_row, arguments.input_step = inputs.stride()[:2]
    cpu.call("fw_rnn_forward", arguments)
    kept = [outputs[name] for name in _KEPT] if keep_for_backward else []
    return *(outputs[name] for name in names[:3]), kept


_KEPT = ("sums", "moments", "queries", "keys", "starts")


def _shapes(inputs: Tensor, inner_steps: int, chunk: int, keep: bool) -> list[tuple[int, ...]]:
    """Of the results of `_forward`, and of `_KEPT`."""
    B, T, H = inputs.shape
    S, C, P = inner_steps, min(chunk, T), cpu.padded(H)
    K, N = (T, T) if keep else (1, C)
    starts = (B, (T - 1) // C, H, H) if keep else (0,)
    return [(B, T, H), (B, H), (B, H, H), (K, B, S, P), (K, B, S, 2), (B, K, S, P), (B, N, P), starts]


def _arguments(
    weight, gain, bias, hidden, memory, mask, resets, decay, rate, inner_steps, length, chunk, keep
) -> cpu.FWRNNArguments:
    """What both directions are told."""
    B, H = hidden.shape
    arguments = cpu.FWRNNArguments(B=B, T=length, H=H, chunk=min(chunk, length), threads=torch.get_num_threads())
    arguments.set(keep=int(keep), inner_steps=inner_steps, decay=decay, rate=rate)
    arguments.set(weight=weight.contiguous(), gain=gain.contiguous(), bias=bias.contiguous())
    arguments.set(hidden=hidden.contiguous(), memory=memory.contiguous())
    arguments.set(mask=cpu.contiguous_mask(mask), resets=cpu.contiguous_mask(resets))
    return arguments


@_forward.register_fake
def _(inputs, weight, gain, bias, hidden, memory, mask, resets, decay, rate, inner_steps, chunk, keep_for_backward):
    found = [hidden.new_empty(shape) for shape in _shapes(inputs, inner_steps, chunk, keep_for_backward)]
    return *found[:3], found[3:] if keep_for_backward else []


@torch.library.custom_op("fastweights::fw_rnn_cpu_backward", mutates_args=())
def _backward(
    hiddens_gradient: Tensor | None,
    hidden_gradient: Tensor | None,
    memory_gradient: Tensor | None,
    weight: Tensor,
    gain: Tensor,
    bias: Tensor,
    hidden: Tensor,
    memory: Tensor,
    mask: Tensor | None,
    resets: Tensor | None,
    decay: float,
    rate: float,
    inner_steps: int,
    chunk: int,
    memory_is_wanted: bool,
    kept: list[Tensor],
) -> list[Tensor]:
    """Gradients of the inputs `[B, T, H]`, W, the layer norm, h_0 and, where it is wanted, A_0."""
    kept = dict(zip(_KEPT, kept, strict=True))
    B, T, P = kept["keys"].shape
    H = hidden.shape[-1]
    arguments = _arguments(weight, gain, bias, hidden, memory, mask, resets, decay, rate, inner_steps, T, chunk, True)
    d_inputs, d_hidden = hidden.new_empty(B, T, H), cpu.begun(hidden_gradient, hidden)
    d_norms = hidden.new_empty(B, 2, P)
    goes_on = memory_is_wanted or memory_gradient is not None or chunk < T
    d_memory = cpu.begun(memory_gradient, memory) if goes_on else None
    arguments.set(**kept, d_inputs=d_inputs, d_hidden=d_hidden, d_memory=d_memory, d_norms=d_norms)
    arguments.has_d_last_memory = int(memory_gradient is not None)
    if hiddens_gradient is not None:
        hiddens_gradient = cpu.rows(hiddens_gradient)
        arguments.d_hiddens = hiddens_gradient.data_ptr()
        arguments.d_hiddens_row, arguments.d_hiddens_step = hiddens_gradient.stride()[:2]
    cpu.call("fw_rnn_backward", arguments)
    d_weight = d_inputs.flatten(0, 1).T @ kept["keys"][..., :H].flatten(0, 1)  # the keys are h_{t−1}
    of_norm = [x.clone() for x in d_norms.sum(0)[:, :H]]
    return [d_inputs, d_weight, *of_norm, d_hidden, *([d_memory] if memory_is_wanted else [])]


@_backward.register_fake
def _(hiddens_gradient, hidden_gradient, memory_gradient, weight, gain, bias, hidden, memory, mask, resets, decay,
      rate, inner_steps, chunk, memory_is_wanted, kept):  # fmt: skip
    (B, T, _), H = kept[_KEPT.index("keys")].shape, hidden.shape[-1]
    like = (weight, gain, bias, hidden, *([memory] if memory_is_wanted else []))
    return [hidden.new_empty(B, T, H), *(x.new_empty(x.shape) for x in like)]


def _setup_context(ctx, inputs, output):
    *tensors, ctx.decay, ctx.rate, ctx.inner_steps, ctx.chunk, _ = inputs
    ctx.save_for_backward(*tensors, *output[3])
    ctx.set_materialize_grads(False)


@in_full_precision
def _gradient(ctx, *gradients):
    inputs, (mask, resets, *kept) = ctx.saved_tensors[:6], ctx.saved_tensors[6:]
    options = (mask, resets, ctx.decay, ctx.rate, ctx.inner_steps)
    if torch.is_grad_enabled():  # second derivatives are asked for
        found = of_definition(reference, inputs, options, gradients[:3])
    else:
        wanted = ctx.needs_input_grad[5]
        found = _backward(*gradients[:3], *inputs[1:], *options, ctx.chunk, wanted, kept)
        found += [] if wanted else [None]
    return (*found, *[None] * 7)


_forward.register_autograd(_gradient, setup_context=_setup_context)


def compiled(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Compiled for this processor: float32 on the CPU.

    Arguments as of `reference`.
    """
    keep = torch.is_grad_enabled() and any(x.requires_grad for x in arguments[: MEMORY + 1])
    *found, _ = _forward(*arguments, keep)
    return tuple(found)
