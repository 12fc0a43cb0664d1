"""The fast weight RNN in plain torch, its gradient written out.

As in fastweights.ops.fw_lstm.plain, the fast weights are formed once a chunk of steps, and the gradients of W and of
the layer norm are one product over all steps.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.ops import aten

from fastweights.ops.derivatives import in_full_precision, of_definition
from fastweights.ops.fw_rnn.reference import reference
from fastweights.ops.layer_norm import normalize, normalize_backward, parameters_backward
from fastweights.ops.outer_product.steps import Reads, ReadsBackward
from fastweights.ops.outer_product.weights import chunks


@torch.library.custom_op("fastweights::fw_rnn", mutates_args=())
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
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """h_1 … h_T `[T, B, H]`, h_T, A_T, and what the gradient needs."""
    B, T, H = inputs.shape
    S, C = inner_steps, min(chunk, T)
    if mask is not None and bool(mask.all()):
        mask = None
    transposed = weight.T.contiguous()
    hiddens, sums = hidden.new_empty(T, B, H), hidden.new_empty(T, S, B, H)
    keys, queries = hidden.new_empty(B, T, H), hidden.new_empty(B, T, S, H)
    moments: list[tuple[Tensor, ...]] = []  # of the layer norms, in the order of time
    memories = []  # after each chunk
    h = hidden
    for begin, end, weights in chunks(hidden, T, C, decay, rate, mask, resets):
        within = slice(begin, end)
        reads = Reads(keys[:, within], queries[:, within], memory, weights)
        for t in range(begin, end):
            if resets is not None:
                h = h * ~resets[:, t, None]
            keys[:, t] = h
            boundary = torch.addmm(inputs[:, t], h, transposed)
            new_h = boundary.relu()
            for s in range(S):
                queries[:, t, s] = new_h
                torch.add(boundary, reads.read(t - begin, s), out=sums[t, s])
                new_h, *found = normalize(sums[t, s], gain, bias)
                moments.append(tuple(found))
                new_h.relu_()
            hiddens[t] = new_h if mask is None else torch.where(mask[:, t, None], new_h, h)
            h = hiddens[t]
        memory = reads.last_memory()
        memories.append(memory)
    last_memory = memories.pop()
    mean, deviation = (torch.stack(part).view(T, S, B, 1) for part in zip(*moments, strict=True))
    return hiddens, h.clone(), last_memory, [sums, mean, deviation, keys, queries, *memories]


@_forward.register_fake
def _(inputs, weight, gain, bias, hidden, memory, mask, resets, decay, rate, inner_steps, chunk):
    B, T, H = inputs.shape
    S, C = inner_steps, min(chunk, T)
    kept = [(T, S, B, H), *[(T, S, B, 1)] * 2, (B, T, H), (B, T, S, H)]
    kept += [(B, H, H)] * (-(-T // C) - 1)
    last = (hidden.new_empty(B, H), hidden.new_empty(B, H, H))
    return hidden.new_empty(T, B, H), *last, [hidden.new_empty(shape) for shape in kept]


@torch.library.custom_op("fastweights::fw_rnn_backward", mutates_args=())
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
    chunk: int,
    memory_is_wanted: bool,
    hiddens: Tensor,
    kept: list[Tensor],
) -> list[Tensor]:
    """Gradients of the inputs `[T, B, H]`, W, the layer norm, h_0 and, where it is wanted, A_0."""
    sums, mean, deviation, keys, queries, *memories = kept
    memories = [memory, *memories]
    T, S = sums.shape[:2]
    C = min(chunk, T)
    if mask is not None and bool(mask.all()):
        mask = None
    d_inputs, d_normalized = torch.empty_like(hiddens), torch.empty_like(sums)
    d_h = torch.zeros_like(hidden) if hidden_gradient is None else hidden_gradient.clone()
    d_memory = memory_gradient
    for index, (begin, end, weights) in reversed(list(enumerate(chunks(hidden, T, C, decay, rate, mask, resets)))):
        within = slice(begin, end)
        reads = ReadsBackward(keys[:, within], queries[:, within], memories[index], weights, d_memory)
        for t in reversed(range(begin, end)):
            if hiddens_gradient is not None:
                d_h = d_h + hiddens_gradient[t]
            if mask is not None:
                passes = mask[:, t, None]
                passed, d_h = d_h * ~passes, d_h * passes
            d_boundary = d_inputs[t].zero_()
            for s in reversed(range(S)):
                new_h = hiddens[t] if s == S - 1 else queries[:, t, s + 1]
                d_y = torch.mul(d_h, new_h > 0, out=d_normalized[t, s])
                d_sum = normalize_backward(d_y, sums[t, s], mean[t, s], deviation[t, s], gain, bias)
                d_boundary += d_sum
                d_h = reads.of_query(t - begin, s, d_sum)
            d_boundary += aten.threshold_backward(d_h, queries[:, t, 0], 0)
            d_h = torch.addmm(reads.of_key(t - begin), d_boundary, weight)
            if mask is not None:
                d_h += passed
            if resets is not None:
                d_h *= ~resets[:, t, None]
        if memory_is_wanted or index:
            d_memory = reads.of_memory()
    d_weight = d_inputs.flatten(0, 1).T @ keys.transpose(0, 1).flatten(0, 1)
    d_norm = parameters_backward(d_normalized, sums, mean, deviation, gain, bias)
    found = [d_inputs, d_weight, *d_norm, d_h]
    return [*found, d_memory] if memory_is_wanted else found


@_backward.register_fake
def _(hiddens_gradient, hidden_gradient, memory_gradient, weight, gain, bias, hidden, memory, mask, resets, decay,
      rate, chunk, memory_is_wanted, hiddens, kept):  # fmt: skip
    like = (hiddens, weight, gain, bias, hidden, *([memory] if memory_is_wanted else []))
    return [torch.empty_like(x) for x in like]


def _setup_context(ctx, inputs, output):
    *tensors, ctx.decay, ctx.rate, ctx.inner_steps, ctx.chunk = inputs
    ctx.save_for_backward(*tensors, output[0], *output[3])
    ctx.set_materialize_grads(False)


@in_full_precision
def _gradient(ctx, *gradients):
    inputs, (mask, resets, hiddens, *kept) = ctx.saved_tensors[:6], ctx.saved_tensors[6:]
    options = (mask, resets, ctx.decay, ctx.rate)
    in_time, *last = gradients[:3]
    if torch.is_grad_enabled():  # second derivatives are asked for
        y_gradient = None if in_time is None else in_time.transpose(0, 1)
        found = of_definition(reference, inputs, (*options, ctx.inner_steps), (y_gradient, *last))
    else:
        wanted = ctx.needs_input_grad[5]
        d_inputs, *found = _backward(in_time, *last, *inputs[1:], *options, ctx.chunk, wanted, hiddens, kept)
        found = [d_inputs.transpose(0, 1), *found, *([] if wanted else [None])]
    return (*found, *[None] * 6)


_forward.register_autograd(_gradient, setup_context=_setup_context)


def plain(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Plain torch, the fast weights formed once a chunk, its gradient written out: any device, any dtype.

    Arguments as of `reference`.
    """
    hiddens, hidden, memory, _ = _forward(*arguments)
    return hiddens.transpose(0, 1), hidden, memory
