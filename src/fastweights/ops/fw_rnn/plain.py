"""The fast weight RNN in plain torch, its gradient written out.

As in fastweights.ops.fw_lstm.plain, the fast weights are formed once a chunk of steps, and the gradients of W and of
the layer norm are one product over all steps.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastweights.ops.differentiable import Named, aten, gradients_like, time_first, unless_full
from fastweights.ops.fw_rnn.reference import DEFINITION
from fastweights.ops.layer_norm import normalize, normalize_backward, parameters_backward
from fastweights.ops.outer_product.steps import Reads, ReadsBackward
from fastweights.ops.outer_product.weights import chunks
from fastweights.ops.products import weight_gradient


def _empty(x: Named, keep: bool) -> dict[str, Tensor]:
    (B, T, H), S, new = x.inputs.shape, x.inner_steps, x.hidden.new_empty
    return {
        "hiddens": time_first(x.hidden, B, T, H),
        "last_hidden": new(B, H),
        "last_memory": new(B, H, H),
        "sums": new(T, S, B, H),
        "mean": new(T, S, B, 1),
        "deviation": new(T, S, B, 1),
        "keys": new(B, T, H),
        "queries": new(B, T, S, H),
        "starts": new(-(-T // min(x.chunk, T)) - 1 if keep else 0, B, H, H),
    }


def _forward(x: Named, keep: bool) -> dict[str, Tensor]:
    (B, T, _), S = x.inputs.shape, x.inner_steps
    mask, resets, memory, found = unless_full(x.mask), x.resets, x.memory, _empty(x, keep)
    transposed = x.weight.T.contiguous()
    hiddens, sums, keys, queries = found["hiddens"].transpose(0, 1), found["sums"], found["keys"], found["queries"]
    moments: list[tuple[Tensor, ...]] = []  # of the layer norms, in the order of time
    h = x.hidden
    cut = chunks(h, T, min(x.chunk, T), x.decay, x.rate, mask, resets)
    for index, (begin, end, weights) in enumerate(cut):
        within = slice(begin, end)
        reads = Reads(keys[:, within], queries[:, within], memory, weights)
        for t in range(begin, end):
            if resets is not None:
                h = h * ~resets[:, t, None]
            keys[:, t] = h
            boundary = torch.addmm(x.inputs[:, t], h, transposed)
            new_h = boundary.relu()
            for s in range(S):
                queries[:, t, s] = new_h
                torch.add(boundary, reads.read(t - begin, s), out=sums[t, s])
                new_h, *of_sum = normalize(sums[t, s], x.gain, x.bias)
                moments.append(tuple(of_sum))
                new_h.relu_()
            hiddens[t] = new_h if mask is None else torch.where(mask[:, t, None], new_h, h)
            h = hiddens[t]
        found["last_memory"] = memory = reads.last_memory()
        if keep and end < T:
            found["starts"][index].copy_(memory)
    found["last_hidden"].copy_(h)
    found["mean"], found["deviation"] = (torch.stack(y).view(T, S, B, 1) for y in zip(*moments, strict=True))
    return found


def _backward(x: Named, kept: Named, d: Named, wanted: Named) -> dict[str, Tensor | None]:
    sums, keys, queries, hiddens = kept.sums, kept.keys, kept.queries, kept.hiddens.transpose(0, 1)
    T, S = sums.shape[:2]
    mask, resets = unless_full(x.mask), x.resets
    d_inputs, d_normalized = torch.empty_like(hiddens), torch.empty_like(sums)
    d_h = torch.zeros_like(x.hidden) if d.last_hidden is None else d.last_hidden.clone()
    d_memory = d.last_memory
    cut = list(chunks(x.hidden, T, min(x.chunk, T), x.decay, x.rate, mask, resets))
    for index, (begin, end, weights) in reversed(list(enumerate(cut))):
        within, memory = slice(begin, end), kept.starts[index - 1] if index else x.memory
        reads = ReadsBackward(keys[:, within], queries[:, within], memory, weights, d_memory)
        for t in reversed(range(begin, end)):
            if d.hiddens is not None:
                d_h = d_h + d.hiddens[:, t]
            if mask is not None:
                passes = mask[:, t, None]
                passed, d_h = d_h * ~passes, d_h * passes
            d_boundary = d_inputs[t].zero_()
            for s in reversed(range(S)):
                new_h = hiddens[t] if s == S - 1 else queries[:, t, s + 1]
                d_y = torch.mul(d_h, new_h > 0, out=d_normalized[t, s])
                moments = kept.mean[t, s], kept.deviation[t, s]
                d_sum = normalize_backward(d_y, sums[t, s], x.gain, x.bias, *moments)
                d_boundary += d_sum
                d_h = reads.of_query(t - begin, s, d_sum)
            d_boundary += aten.threshold_backward(d_h, queries[:, t, 0], 0)
            d_h = torch.addmm(reads.of_key(t - begin), d_boundary, x.weight)
            if mask is not None:
                d_h += passed
            if resets is not None:
                d_h *= ~resets[:, t, None]
        if wanted.memory or index:
            d_memory = reads.of_memory()
    gain, bias = parameters_backward(d_normalized, sums, x.gain, x.bias, kept.mean, kept.deviation)
    d_weight = weight_gradient(d_inputs, keys.transpose(0, 1))
    d_inputs = d_inputs.transpose(0, 1)
    return {"inputs": d_inputs, "weight": d_weight, "gain": gain, "bias": bias, "hidden": d_h, "memory": d_memory}


_fw_rnn = DEFINITION.implement(
    "fw_rnn",
    _forward,
    _backward,
    saved="hiddens sums mean deviation keys queries starts",
    empty=_empty,
    empty_gradients=lambda x: gradients_like(x, "inputs"),
)


def plain(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Plain torch, the fast weights formed once a chunk, its gradient written out: any device, any dtype.

    Arguments as of `reference`.
    """
    return _fw_rnn(*arguments)
