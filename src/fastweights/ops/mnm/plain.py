"""The Metalearned Neural Memory in plain torch, its gradient written out.

The read-out feeds the controller, so all of a step but the input's projection waits for the step before. A step goes
through the memory once, layer by layer: what W_l maps after the write is what it maps before, plus what was written,

    (W_l + D_lᵀ Z) x = W_l x + D_lᵀ (Z x)        D_l: −2 β/(N·m) (z_l − z'_l) of the heads, Z: their z_{l−1}

so that one product with W_l serves the write (the rows "writing" of the activations: of k_w, by the old memory) and the
reads (the rows "reading": of k_w for the meta loss and of k_r, by the new one).

Backwards, what a step has written is taken back from the memory, of which every `KEPT`-th is kept so that rounding
cannot add up, and the gradients of the slow weights are one product over all steps. A reset begins another sequence.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastweights.ops.differentiable import Named, aten, gradients_like, states_before, time_first, unless_full
from fastweights.ops.mnm.reference import DEFINITION, num_heads
from fastweights.ops.products import weight_gradient
from fastweights.ops.tanh import tanh_

KEPT = 8  # steps


def sizes(x: Named) -> tuple[int, ...]:
    """B, T, H, L, m and N."""
    (B, T), (L, m) = x.gate_inputs.shape[:2], x.memory.shape[1:3]
    return B, T, x.hidden.shape[1], L, m, num_heads(x.interaction_weight, m)


def _empty(x: Named, keep: bool) -> dict[str, Tensor]:
    (B, T, H, L, m, N), new = sizes(x), x.hidden.new_empty
    return {
        "outputs": time_first(x.hidden, B, T, H + m),
        "meta_losses": new(B, T),
        "last_hidden": new(B, H),
        "last_cell": new(B, H),
        "last_read": new(B, m),
        "last_memory": new(B, L, m, m),
        "gates": new(T, B, 4 * H),
        "cells": new(T, B, H),
        "tanh_cells": new(T, B, H),
        "interactions": new(T, B, 3 * N + 1, m),
        "strengths": new(T, B),
        "activations": new(T, L + 1, B, 3 * N, m),  # of each step: z_0 … z_L, N rows writing and 2·N rows reading
        "errors": new(T, L, B, N, m),
        "memories": new((T - 1) // KEPT if keep else 0, L, B, m, m),
    }


def _forward(x: Named, keep: bool) -> dict[str, Tensor]:
    (B, _, H, L, m, N), found = sizes(x), _empty(x, keep)
    mask, gate_inputs = unless_full(x.mask), x.gate_inputs
    if mask is not None:  # whatever stands at padding, its step is finite
        gate_inputs = gate_inputs.masked_fill(~mask.unsqueeze(-1), 0)
    recurrent, interaction, target = (
        y.T.contiguous() for y in (x.recurrent_weight, x.interaction_weight, x.target_weight)
    )
    outputs, interactions, strengths = found["outputs"].transpose(0, 1), found["interactions"], found["strengths"]
    in_time = (outputs, found["gates"], found["cells"], found["tanh_cells"], interactions, strengths)
    state, c, W = torch.cat([x.hidden, x.read], 1), x.cell, _transposed(x.memory)
    written = W.new_empty(L, B, N, m)
    for t, (new_state, gate, new_c, tanh_c, u, beta) in enumerate(zip(*(y.unbind(0) for y in in_time), strict=True)):
        if keep and t and t % KEPT == 0:
            found["memories"][t // KEPT - 1].copy_(W)
        new_h, new_v = new_state.split([H, m], 1)
        torch.addmm(gate_inputs[:, t], state, recurrent, out=gate)
        gate[:, : 2 * H].sigmoid_()
        tanh_(gate[:, 2 * H : 3 * H])
        i, f, g, o = gate.split(H, 1)
        torch.mul(f, c, out=new_c).addcmul_(i, g)
        torch.mul(tanh_(tanh_c.copy_(new_c)), o.sigmoid_(), out=new_h)
        tanh_(torch.addmm(x.interaction_bias, new_h, interaction, out=u.flatten(1)))
        k_w, v_w, k_r, u_beta = u.split([N, N, N, 1], 1)
        torch.addmv(x.strength_bias, u_beta.squeeze(1), x.strength_weight[0], out=beta).sigmoid_()
        if mask is not None:
            beta *= mask[:, t]  # 0 writes nothing
        targets = torch.addmm(x.target_bias, v_w.reshape(-1, m), target).view(B, N, L, m)
        z, errors = found["activations"][t], found["errors"][t]
        z[0, :, :N], z[0, :, N : 2 * N], z[0, :, 2 * N :] = k_w, k_w, k_r
        scale = beta[:, None, None] * (-2 / (N * m))
        for layer in range(L):
            z_writing, z_reading = z[layer].split([N, 2 * N], 1)
            new_writing, new_reading = torch.bmm(z[layer], W[layer].mT, out=z[layer + 1]).split([N, 2 * N], 1)
            if layer < L - 1:
                tanh_(new_writing)
            torch.sub(new_writing, targets[:, :, layer], out=errors[layer])
            torch.mul(errors[layer], scale, out=written[layer])
            new_reading += torch.bmm(torch.bmm(z_reading, z_writing.mT), written[layer])
            if layer < L - 1:
                tanh_(new_reading)
        _write_(W, written, z)
        torch.mean(z[L, :, 2 * N :], 1, out=new_v)
        if mask is not None:
            passes = mask[:, t, None]
            new_state.copy_(torch.where(passes, new_state, state))
            new_c.copy_(torch.where(passes, new_c, c))
        state, c = new_state, new_c
    meta_losses = _differences(found["activations"], interactions).square().mean((2, 3)).T
    found["meta_losses"].copy_(meta_losses if mask is None else torch.where(mask, meta_losses, 0.0))
    for name, y in zip(("last_hidden", "last_read"), state.split([H, m], 1), strict=True):
        found[name].copy_(y)
    found["last_cell"].copy_(c)
    found["last_memory"].copy_(W.transpose(0, 1))
    return found


def _transposed(memory: Tensor) -> Tensor:
    """A copy with rows and layers exchanged: `[L, B, m, m]`, and back."""
    return memory.transpose(0, 1).clone(memory_format=torch.contiguous_format)


def _write_(W: Tensor, written: Tensor, z: Tensor, sign: float = 1) -> None:
    """Add to the memory `[L, B, m, m]` what a step writes `[L, B, N, m]` at its activations."""
    L, N = written.shape[0], written.shape[2]
    W.flatten(0, 1).baddbmm_(written.flatten(0, 1).mT, z[:L].flatten(0, 1)[:, :N], alpha=sign)


def _differences(activations: Tensor, interactions: Tensor) -> Tensor:
    """f(k_w; W_new) − v_w of all steps and heads `[T, B, N, m]`."""
    N = activations.shape[3] // 3
    return activations[:, -1, :, N : 2 * N] - interactions[:, :, N : 2 * N]


def _backward(x: Named, kept: Named, d: Named, wanted: Named) -> dict[str, Tensor | None]:
    B, T, H, L, m, N = sizes(x)
    mask = unless_full(x.mask)
    u, z, strengths, outputs = kept.interactions, kept.activations, kept.strengths, kept.outputs.transpose(0, 1)
    before = states_before(torch.cat([x.hidden, x.read], 1), outputs, None, time=0)
    cells_before = states_before(x.cell, kept.cells, None, time=0)
    scales = strengths[:, None, :, None, None] * (-2 / (N * m))
    written = kept.errors * scales
    d_gates, d_u, d_targets = torch.empty_like(kept.gates), torch.empty_like(u), u.new_empty(T, B, N, L, m)
    d_strengths, d_z = torch.empty_like(strengths), u.new_empty(L + 1, B, 3 * N, m)
    d_meta_losses = _or_zeros(d.meta_losses, strengths.T)
    if mask is not None:
        d_meta_losses = d_meta_losses * mask
    d_recalled = _differences(z, u) * (d_meta_losses.T[..., None, None] * (2 / (N * m)))
    d_state = torch.cat([_or_zeros(d.last_hidden, x.hidden), _or_zeros(d.last_read, x.read)], 1)
    d_c, d_W = _or_zeros(d.last_cell, x.cell), _transposed(_or_zeros(d.last_memory, x.memory))
    W = _transposed(kept.last_memory)
    for t in reversed(range(T)):
        if t % KEPT:
            _write_(W, written[t], z[t], sign=-1)
        else:
            W.copy_(kept.memories[t // KEPT - 1] if t else x.memory.transpose(0, 1))
        if d.outputs is not None:
            d_state = d_state + d.outputs[:, t]
        if mask is not None:
            passes = mask[:, t, None]
            passed, passed_c = d_state * ~passes, d_c * ~passes
            d_state, d_c = d_state * passes, d_c * passes
        d_h, d_read = d_state.split([H, m], 1)
        d_z[L, :, :N], d_z[L, :, N : 2 * N], d_z[L, :, 2 * N :] = 0, d_recalled[t], d_read.unsqueeze(1) / N
        d_written = _memory_backward(z[t], written[t], scales[t], W, d_z, d_W)
        d_errors = d_written * scales[t]
        torch.neg(d_errors.permute(1, 2, 0, 3), out=d_targets[t])
        d_beta = (d_written * kept.errors[t]).sum((2, 3)).sum(0) * (-2 / (N * m))
        aten.sigmoid_backward.grad_input(d_beta, strengths[t], grad_input=d_strengths[t])
        d_k_w, d_v_w, d_k_r, d_u_beta = d_u[t].split([N, N, N, 1], 1)
        torch.add(d_z[0, :, :N], d_z[0, :, N : 2 * N], out=d_k_w)
        d_values = d_targets[t].view(B * N, L * m) @ x.target_weight
        torch.sub(d_values.view(B, N, m), d_recalled[t], out=d_v_w)
        d_k_r.copy_(d_z[0, :, 2 * N :])
        torch.mul(d_strengths[t, :, None, None], x.strength_weight, out=d_u_beta)
        aten.tanh_backward.grad_input(d_u[t], u[t], grad_input=d_u[t])
        d_h = torch.addmm(d_h, d_u[t].flatten(1), x.interaction_weight)
        d_c = _cell_backward(d_h, d_c, kept.gates[t], cells_before[t], kept.tanh_cells[t], d_gates[t])
        d_state = d_gates[t] @ x.recurrent_weight
        if mask is not None:
            d_state, d_c = d_state + passed, d_c + passed_c
    d_hidden, d_read = d_state.split([H, m], 1)
    flat_targets = d_targets.flatten(3).flatten(0, 2)
    return {
        "gate_inputs": d_gates.transpose(0, 1),
        "recurrent_weight": weight_gradient(d_gates, before),
        "interaction_weight": weight_gradient(d_u.flatten(2), outputs[..., :H]),
        "interaction_bias": d_u.sum((0, 1)).flatten(),
        "strength_weight": weight_gradient(d_strengths.unsqueeze(-1), u[:, :, -1]),
        "strength_bias": d_strengths.sum().view(1),
        "target_weight": weight_gradient(flat_targets, u[:, :, N : 2 * N].flatten(0, 2)),
        "target_bias": flat_targets.sum(0),
        "hidden": d_hidden.clone(),
        "cell": d_c.clone(),
        "read": d_read.clone(),
        "memory": _transposed(d_W),
        "initial_memory": torch.zeros_like(x.initial_memory),  # it begins other sequences
    }


def _cell_backward(d_h: Tensor, d_c: Tensor, gate: Tensor, c: Tensor, tanh_c: Tensor, d_gate: Tensor) -> Tensor:
    """The LSTM's gradients, of the gates' inputs (written to d_gate) and of the cell before, c."""
    i, f, g, o = gate.chunk(4, 1)
    d_i, d_f, d_g, d_o = d_gate.chunk(4, 1)
    H = c.shape[1]
    d_c = d_c + aten.tanh_backward(d_h * o, tanh_c)
    torch.mul(d_c, g, out=d_i)
    torch.mul(d_c, c, out=d_f)
    torch.mul(d_c, i, out=d_g)
    torch.mul(d_h, tanh_c, out=d_o)
    aten.sigmoid_backward.grad_input(d_gate[:, : 2 * H], gate[:, : 2 * H], grad_input=d_gate[:, : 2 * H])
    aten.tanh_backward.grad_input(d_g, g, grad_input=d_g)
    aten.sigmoid_backward.grad_input(d_o, o, grad_input=d_o)
    return d_c * f


def _memory_backward(z: Tensor, written: Tensor, scale: Tensor, W: Tensor, d_z: Tensor, d_W: Tensor) -> Tensor:
    """Carry the gradient of z_L, in d_z, down to z_0, and that of the memory back over a step; that of what is written.

    Args:
        z: `[L + 1, B, 3·N, m]`, as d_z.
        written: `[L, B, N, m]`.
        scale: what z_l − z'_l is multiplied with when it is written, `[1, B, 1, 1]`.
        W: the memory before the step `[L, B, m, m]`, as d_W.
        d_z, d_W: changed in place.
    """
    L, B, N, m = written.shape
    flat_z, flat_written, flat_d_W = z[:L].flatten(0, 1), written.flatten(0, 1), d_W.flatten(0, 1)
    scores = torch.bmm(flat_z[:, N:], flat_z[:, :N].mT).view(L, B, 2 * N, N)
    d_written = torch.bmm(flat_z[:, :N], flat_d_W.mT).view(L, B, N, m)
    d_z_writing = torch.bmm(flat_written, flat_d_W).view(L, B, N, m)
    for layer in reversed(range(L)):
        above, below = d_z[layer + 1], d_z[layer]
        d_writing, d_reading = above.split([N, 2 * N], 1)
        if layer < L - 1:
            aten.tanh_backward.grad_input(d_reading, z[layer + 1, :, N:], grad_input=d_reading)
        d_scores = torch.bmm(d_reading, written[layer].mT)
        d_written[layer].baddbmm_(scores[layer].mT, d_reading)
        d_writing.addcmul_(d_written[layer], scale[0])
        if layer < L - 1:
            aten.tanh_backward.grad_input(d_writing, z[layer + 1, :, :N], grad_input=d_writing)
        torch.bmm(above, W[layer], out=below)
        below[:, :N] += d_z_writing[layer].baddbmm_(d_scores.mT, z[layer, :, N:])
        below[:, N:] += torch.bmm(d_scores, z[layer, :, :N])
    flat_d_W.baddbmm_(d_z[1:].flatten(0, 1).mT, flat_z)
    return d_written


def _or_zeros(gradient: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if gradient is None else gradient


_mnm = DEFINITION.implement(
    "mnm",
    _forward,
    _backward,
    saved="outputs last_memory gates cells tanh_cells interactions strengths activations errors memories",
    empty=_empty,
    empty_gradients=lambda x: gradients_like(x, "gate_inputs"),
)


def plain(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Plain torch, one pass through the memory a step, its gradient written out: any device, any dtype.

    Arguments as of `reference`.
    """
    x = DEFINITION.Arguments._make(arguments)
    if x.resets is None:
        return _mnm(*arguments)
    *slow, hidden, cell, read, memory = x[1:12]
    T = x.gate_inputs.shape[1]
    begins = [0, *(t for t, any_row in enumerate(x.resets.any(0).tolist()) if any_row and t)]
    sequences, meta_losses = [], []
    for begin, end in zip(begins, [*begins[1:], T], strict=True):
        again = x.resets[:, begin, None]
        hidden, cell, read = (y.masked_fill(again, 0) for y in (hidden, cell, read))
        memory = torch.where(again[..., None, None], x.initial_memory, memory)
        mask = None if x.mask is None else x.mask[:, begin:end]
        inputs = (x.gate_inputs[:, begin:end], *slow, hidden, cell, read, memory, x.initial_memory, mask, None)
        outputs, of_meta, hidden, cell, read, memory = _mnm(*inputs)
        sequences.append(outputs)
        meta_losses.append(of_meta)
    return torch.cat(sequences, 1), torch.cat(meta_losses, 1), hidden, cell, read, memory
