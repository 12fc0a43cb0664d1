"""The LSTM in plain torch, its gradient written out.

Step by step, but with the four gates as one batch of products in the layout that the CPU's matrix library likes best.
"""

from typing import Any

import torch
from torch import Tensor

from fastweights.ops.differentiable import Named, aten, gradients_like, states_before, time_first, unless_full
from fastweights.ops.lstm.reference import DEFINITION, look_up
from fastweights.ops.products import weight_gradient


def _empty(x: Named, keep: bool) -> dict[str, Tensor]:
    (B, T, _), H, new = x.gate_inputs.shape, x.hidden.shape[-1], x.hidden.new_empty
    return {
        "hiddens": time_first(x.hidden, B, T, H),
        "last_hidden": new(B, H),
        "last_cell": new(B, H),
        "cells": new(T, B, H),
        "tanh_cells": new(T, B, H),
        "gates": new(T, 4, B, H),
    }


def _forward(x: Named, keep: bool) -> dict[str, Tensor]:
    B, H = x.hidden.shape
    mask, resets, found = unless_full(x.mask), x.resets, _empty(x, keep)
    inputs = x.gate_inputs.transpose(0, 1).unflatten(-1, (4, H)).transpose(1, 2)  # [T, 4, B, H]
    by_gate = x.weight.view(4, H, H).mT.contiguous()
    h, c = x.hidden, x.cell
    in_time = (found["gates"], found["hiddens"].transpose(0, 1), found["cells"], found["tanh_cells"])
    for t, (gate, new_h, new_c, tanh_c) in enumerate(zip(*(y.unbind(0) for y in in_time), strict=True)):
        if resets is not None:
            live = ~resets[:, t, None]
            h, c = h * live, c * live
        gate.copy_(inputs[t]).baddbmm_(h.expand(4, B, H), by_gate)
        gate[:2].sigmoid_()
        i, f, g, o = gate.unbind(0)
        g.tanh_()
        o.sigmoid_()
        torch.mul(f, c, out=new_c).addcmul_(i, g)
        torch.mul(torch.tanh(new_c, out=tanh_c), o, out=new_h)
        if mask is not None:
            new_h.copy_(torch.where(mask[:, t, None], new_h, h))
            new_c.copy_(torch.where(mask[:, t, None], new_c, c))
        h, c = new_h, new_c
    found["last_hidden"].copy_(h)
    found["last_cell"].copy_(c)
    return found


def _backward(x: Named, kept: Named, d: Named, wanted: Named) -> dict[str, Tensor]:
    gates, cells = kept.gates, kept.cells
    T, _, B, H = gates.shape
    mask, resets = unless_full(x.mask), x.resets
    by_gate = x.weight.view(4, H, H)
    d_inputs = gates.new_empty(T, B, 4, H)
    d_gate, d_activation = gates.new_empty(4, B, H), gates.new_empty(4, B, H)
    d_i, d_f, d_g, d_o = d_activation.unbind(0)
    d_h = torch.zeros_like(x.hidden) if d.last_hidden is None else d.last_hidden.clone()
    d_c = torch.zeros_like(x.cell) if d.last_cell is None else d.last_cell.clone()
    for t in reversed(range(T)):
        gate = gates[t]
        i, f, g, o = gate.unbind(0)
        c, tanh_c = cells[t - 1] if t else x.cell, kept.tanh_cells[t]
        if d.hiddens is not None:
            d_h += d.hiddens[:, t]
        if resets is not None:
            keep = ~resets[:, t, None]
            c = c * keep
        if mask is not None:
            passes = mask[:, t, None]
            passed_h, passed_c = d_h * ~passes, d_c * ~passes
            d_h, d_c = d_h * passes, d_c * passes
        torch.mul(d_h, tanh_c, out=d_o)
        d_c += aten.tanh_backward(d_h.mul_(o), tanh_c)
        torch.mul(d_c, g, out=d_i)
        torch.mul(d_c, c, out=d_f)
        torch.mul(d_c, i, out=d_g)
        aten.sigmoid_backward.grad_input(d_activation[:2], gate[:2], grad_input=d_gate[:2])
        aten.tanh_backward.grad_input(d_g, g, grad_input=d_gate[2])
        aten.sigmoid_backward.grad_input(d_o, o, grad_input=d_gate[3])
        d_inputs[t].copy_(d_gate.transpose(0, 1))
        d_c *= f
        d_h = torch.bmm(d_gate, by_gate).sum(0)
        if mask is not None:
            d_h, d_c = d_h + passed_h, d_c + passed_c
        if resets is not None:
            d_h, d_c = d_h * keep, d_c * keep
    d_inputs = d_inputs.view(T, B, 4 * H)
    previous = states_before(x.hidden, kept.hiddens.transpose(0, 1), resets, time=0)
    d_weight = weight_gradient(d_inputs, previous)
    return {"gate_inputs": d_inputs.transpose(0, 1), "weight": d_weight, "hidden": d_h, "cell": d_c}


_lstm = DEFINITION.implement(
    "lstm_plain",
    _forward,
    _backward,
    saved="hiddens cells tanh_cells gates",
    empty=_empty,
    empty_gradients=lambda x: gradients_like(x, "gate_inputs"),
)


def plain(gate_inputs: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Plain torch on whole gates, its gradient written out: any device and dtype, no compiler needed.

    Arguments as of `reference`.
    """
    *most, tokens, _ = others
    return _lstm(look_up(gate_inputs, tokens), *most, None, False)
