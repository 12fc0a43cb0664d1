"""The fast weight LSTM in plain torch, its gradient written out.

Step by step is only what must be: one product with W, what the fast weights give for one query, and element by element
the rest. The fast weights are not formed within a chunk of steps (fastweights.ops.outer_product.steps); from chunk to
chunk they are carried. The gradients of W and of the layer norms are one product over all steps.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastweights.ops.differentiable import Named, aten, gradients_like, states_before, time_first, unless_full
from fastweights.ops.fw_lstm.reference import DEFINITION
from fastweights.ops.layer_norm import normalize, normalize_backward, parameters_backward
from fastweights.ops.outer_product.steps import Reads, ReadsBackward
from fastweights.ops.outer_product.weights import chunks
from fastweights.ops.products import weight_gradient

OF_STEPS = ("before", "gates", "cells", "sums", "candidates", "keys")  # gates: σ of all four, of ĝ it is not used
MOMENTS = ("gates_mean", "gates_deviation", "cell_mean", "cell_deviation")  # 1/deviation


def _empty(x: Named, keep: bool) -> dict[str, Tensor]:
    (B, T, _), H, new = x.gate_inputs.shape, x.hidden.shape[-1], x.hidden.new_empty
    later_chunks = -(-T // min(x.chunk, T)) - 1 if keep else 0
    return {
        "hiddens": time_first(x.hidden, B, T, H),
        "last_hidden": new(B, H),
        "last_cell": new(B, H),
        "last_memory": new(0) if x.memory is None else new(B, H, H),
        "before": new(T, B, 4 * H),
        "gates": new(T, B, 4 * H),
        "cells": new(T, B, H),
        "sums": new(T, B, H),
        "candidates": new(T, B, H),
        "keys": new(B, T, H),
        **{name: new(T, B, 1) for name in MOMENTS},
        "starts": new(0) if x.memory is None else new(later_chunks, B, H, H),
    }


def _forward(x: Named, keep: bool) -> dict[str, Tensor]:
    H, T = x.hidden.shape[-1], x.gate_inputs.shape[1]
    mask, resets, memory, found = unless_full(x.mask), x.resets, x.memory, _empty(x, keep)
    transposed = x.weight.T.contiguous()
    *of_steps, keys = (found[name] for name in OF_STEPS)
    in_time = (x.gate_inputs.transpose(0, 1), found["hiddens"].transpose(0, 1), *of_steps, keys.transpose(0, 1))
    by_step = _by_step(*in_time)
    moments: list[tuple[Tensor, ...]] = []
    h, c = x.hidden, x.cell
    cut = chunks(h, T, min(x.chunk, T), x.decay, x.rate, mask, resets)
    for index, (begin, end, weights) in enumerate(cut):
        if memory is not None:
            here = keys[:, begin:end]
            reads = Reads(here, here.unsqueeze(2), memory, weights)
        for t in range(begin, end):
            inputs, new_h, all_before, gate, new_c, total, candidate, key = by_step[t]
            if resets is not None:
                live = ~resets[:, t, None]
                h, c = h * live, c * live
            torch.addmm(inputs, h, transposed, out=all_before)
            normalized, *of_gates = normalize(all_before, x.gates_gain, x.gates_bias)
            torch.sigmoid(normalized, out=gate)
            i, f, o, _ = gate.split(H, -1)
            g = normalized.narrow(1, 3 * H, H)
            torch.clamp_min(g, 0, out=key)
            if memory is None:
                candidate.copy_(key)
            else:
                torch.add(g, reads.read(t - begin, 0), out=candidate).relu_()
            torch.mul(f, c, out=total).addcmul_(i, candidate)
            normalized, *of_cell = normalize(total, x.cell_gain, x.cell_bias)
            new_c.copy_(normalized)
            torch.mul(o, normalized.relu_(), out=new_h)
            moments.append((*of_gates, *of_cell))
            if mask is not None:
                passes = mask[:, t, None]
                new_h.copy_(torch.where(passes, new_h, h))
                new_c.copy_(torch.where(passes, new_c, c))
            h, c = new_h, new_c
        if memory is not None:
            found["last_memory"] = memory = reads.last_memory()
            if keep and end < T:
                found["starts"][index].copy_(memory)
    found["last_hidden"].copy_(h)
    found["last_cell"].copy_(c)
    return found | {name: torch.stack(steps) for name, steps in zip(MOMENTS, zip(*moments, strict=True), strict=True)}


def _by_step(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """The parts of tensors `[T, …]` at each step."""
    return list(zip(*(tensor.unbind(0) for tensor in tensors), strict=True))


def _backward(x: Named, kept: Named, d: Named, wanted: Named) -> dict[str, Tensor | None]:
    before, gates, cells, sums, candidates, keys = (getattr(kept, name) for name in OF_STEPS)
    T, _, H = cells.shape
    mask, resets = unless_full(x.mask), x.resets
    d_before, d_gates, d_cells = (torch.empty_like(y) for y in (before, gates, cells))
    previous_cells = states_before(x.cell, cells, resets, time=0)
    gated = torch.stack([candidates, previous_cells], 2)  # what i and f let pass
    in_time = (before, gates, cells.relu(), cells > 0, sums, candidates, gated, keys.transpose(0, 1))
    by_step = _by_step(*in_time, d_gates, d_cells, d_before)
    moments_by_step = _by_step(kept.gates_mean, kept.gates_deviation, kept.cell_mean, kept.cell_deviation)
    d_h = torch.zeros_like(x.hidden) if d.last_hidden is None else d.last_hidden
    d_c = torch.zeros_like(x.cell) if d.last_cell is None else d.last_cell
    d_memory = d.last_memory
    cut = list(chunks(x.hidden, T, min(x.chunk, T), x.decay, x.rate, mask, resets))
    for index, (begin, end, weights) in reversed(list(enumerate(cut))):
        if x.memory is not None:
            here, memory = keys[:, begin:end], kept.starts[index - 1] if index else x.memory
            reads = ReadsBackward(here, here.unsqueeze(2), memory, weights, d_memory)
        for t in reversed(range(begin, end)):
            all_before, gate, c_relu, c_open, total, candidate, passing, key, d_gate, d_new_c, d_here = by_step[t]
            of_gates, of_cell = moments_by_step[t][:2], moments_by_step[t][2:]
            o, d_o, d_g = gate.narrow(1, 2 * H, H), d_gate.narrow(1, 2 * H, H), d_gate.narrow(1, 3 * H, H)
            i_and_f, d_i_and_f = (y.narrow(1, 0, 2 * H).view(-1, 2, H) for y in (gate, d_gate))
            if d.hiddens is not None:
                d_h = d_h + d.hiddens[:, t]
            if mask is not None:
                passes = mask[:, t, None]
                passed_h, passed_c = d_h * ~passes, d_c * ~passes
                d_h, d_c = d_h * passes, d_c * passes
            torch.mul(d_h, c_relu, out=d_o)
            torch.addcmul(d_c, d_h * o, c_open, out=d_new_c)
            d_total = normalize_backward(d_new_c, total, x.cell_gain, x.cell_bias, *of_cell)
            torch.mul(d_total.unsqueeze(1), passing, out=d_i_and_f)
            d_candidate, d_c = (d_total.unsqueeze(1) * i_and_f).unbind(1)
            d_candidate = aten.threshold_backward(d_candidate, candidate, 0)
            aten.sigmoid_backward.grad_input(d_gate, gate, grad_input=d_gate)  # of i, f and o; d_g is written below
            if x.memory is None:
                d_g.copy_(d_candidate)
            else:
                d_key = reads.of_query(t - begin, 0, d_candidate).add_(reads.of_key(t - begin))
                torch.add(d_candidate, aten.threshold_backward(d_key, key, 0), out=d_g)
            d_here.copy_(normalize_backward(d_gate, all_before, x.gates_gain, x.gates_bias, *of_gates))
            d_h = d_here @ x.weight
            if mask is not None:
                d_h, d_c = d_h + passed_h, d_c + passed_c
            if resets is not None:
                keep = ~resets[:, t, None]
                d_h, d_c = d_h * keep, d_c * keep
        if x.memory is not None and (wanted.memory or index):
            d_memory = reads.of_memory()
    previous = states_before(x.hidden, kept.hiddens.transpose(0, 1), resets, time=0)
    of_gates = (x.gates_gain, x.gates_bias, kept.gates_mean, kept.gates_deviation)
    of_cell = (x.cell_gain, x.cell_bias, kept.cell_mean, kept.cell_deviation)
    gates_gain, gates_bias = parameters_backward(d_gates, before, *of_gates)
    cell_gain, cell_bias = parameters_backward(d_cells, sums, *of_cell)
    return {
        "gate_inputs": d_before.transpose(0, 1),
        "weight": weight_gradient(d_before, previous),
        "gates_gain": gates_gain,
        "gates_bias": gates_bias,
        "cell_gain": cell_gain,
        "cell_bias": cell_bias,
        "hidden": d_h.clone(),
        "cell": d_c.clone(),
        "memory": d_memory,
    }


_fw_lstm = DEFINITION.implement(
    "fw_lstm",
    _forward,
    _backward,
    saved=f"hiddens {' '.join(OF_STEPS)} {' '.join(MOMENTS)} starts",
    empty=_empty,
    empty_gradients=lambda x: gradients_like(x, "gate_inputs"),
)


def plain(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Plain torch, the fast weights formed once a chunk, its gradient written out: any device, any dtype.

    Arguments as of `reference`.
    """
    return _fw_lstm(*arguments)
