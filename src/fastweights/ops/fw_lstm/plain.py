"""The fast weight LSTM in plain torch, its gradient written out.

Step by step is only what must be: one product with W, what the fast weights give for one query, and element by element
the rest. The fast weights are not formed within a chunk of steps (fastweights.ops.outer_product.steps); from chunk to
chunk they are carried. The gradients of W and of the layer norms are one product over all steps.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.ops import aten

from fastweights.ops.derivatives import in_full_precision, of_definition
from fastweights.ops.fw_lstm.reference import MEMORY, reference
from fastweights.ops.layer_norm import normalize, normalize_backward, parameters_backward
from fastweights.ops.outer_product.steps import Reads, ReadsBackward
from fastweights.ops.outer_product.weights import chunks


@torch.library.custom_op("fastweights::fw_lstm", mutates_args=())
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, list[Tensor]]:
    """h_1 … h_T `[T, B, H]`, h_T, c_T, A_T, and what the gradient needs."""
    B, T, _ = gate_inputs.shape
    H = hidden.shape[-1]
    C = min(chunk, T)
    if mask is not None and bool(mask.all()):
        mask = None
    transposed = weight.T.contiguous()
    before, gates = (hidden.new_empty(T, B, 4 * H) for _ in range(2))  # σ of all four: of ĝ it is not used
    hiddens, cells, sums, candidates = (hidden.new_empty(T, B, H) for _ in range(4))
    keys = hidden.new_empty(B, T, H)
    moments: list[tuple[Tensor, ...]] = []
    memories = []  # after each chunk
    in_time = (gate_inputs.transpose(0, 1), before, gates, hiddens, cells, sums, candidates, keys.transpose(0, 1))
    by_step = _by_step(*in_time)
    h, c = hidden, cell
    for begin, end, weights in chunks(hidden, T, C, decay, rate, mask, resets):
        if memory is not None:
            here = keys[:, begin:end]
            reads = Reads(here, here.unsqueeze(2), memory, weights)
        for t in range(begin, end):
            x, all_before, gate, new_h, new_c, total, candidate, key = by_step[t]
            if resets is not None:
                keep = ~resets[:, t, None]
                h, c = h * keep, c * keep
            torch.addmm(x, h, transposed, out=all_before)
            normalized, *of_gates = normalize(all_before, gates_gain, gates_bias)
            torch.sigmoid(normalized, out=gate)
            i, f, o, _ = gate.split(H, -1)
            g = normalized.narrow(1, 3 * H, H)
            torch.clamp_min(g, 0, out=key)
            if memory is None:
                candidate.copy_(key)
            else:
                torch.add(g, reads.read(t - begin, 0), out=candidate).relu_()
            torch.mul(f, c, out=total).addcmul_(i, candidate)
            normalized, *of_cell = normalize(total, cell_gain, cell_bias)
            new_c.copy_(normalized)
            torch.mul(o, normalized.relu_(), out=new_h)
            moments.append((*of_gates, *of_cell))
            if mask is not None:
                passes = mask[:, t, None]
                new_h.copy_(torch.where(passes, new_h, h))
                new_c.copy_(torch.where(passes, new_c, c))
            h, c = new_h, new_c
        if memory is not None:
            memory = reads.last_memory()
            memories.append(memory)
    last_memory = memories.pop() if memories else hidden.new_empty(0)
    kept = [before, gates, cells, sums, candidates, keys]
    kept += [torch.stack(of_all_steps) for of_all_steps in zip(*moments, strict=True)]
    return hiddens, h.clone(), c.clone(), last_memory, kept + memories


def _by_step(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """The parts of tensors `[T, …]` at each step."""
    return list(zip(*(tensor.unbind(0) for tensor in tensors), strict=True))


@_forward.register_fake
def _(gate_inputs, weight, gates_gain, gates_bias, cell_gain, cell_bias, hidden, cell, memory, mask, resets, decay,
      rate, chunk):  # fmt: skip
    B, T, _ = gate_inputs.shape
    H = hidden.shape[-1]
    C = min(chunk, T)
    kept = [*[(T, B, 4 * H)] * 2, *[(T, B, H)] * 3, (B, T, H), *[(T, B, 1)] * 4]
    kept += [] if memory is None else [(B, H, H)] * (-(-T // C) - 1)
    shapes = [(T, B, H), (B, H), (B, H), (0,) if memory is None else (B, H, H)]
    return *(hidden.new_empty(shape) for shape in shapes), [hidden.new_empty(shape) for shape in kept]


@torch.library.custom_op("fastweights::fw_lstm_backward", mutates_args=())
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
    """Gradients of the gates' inputs `[T, B, 4·H]`, W, the layer norms, h_0, c_0 and, where it is wanted, A_0."""
    before, gates, cells, sums, candidates, keys, *kept = kept
    gates_moments, cell_moments, memories = kept[:2], kept[2:4], [memory, *kept[4:]]
    T, _, H = hiddens.shape
    C = min(chunk, T)
    if mask is not None and bool(mask.all()):
        mask = None
    d_before, d_gates, d_cells = (torch.empty_like(x) for x in (before, gates, cells))
    previous_cells = torch.cat([cell.unsqueeze(0), cells[:-1]])
    previous = torch.cat([hidden.unsqueeze(0), hiddens[:-1]])
    if resets is not None:
        keeps = ~resets.T.unsqueeze(-1)
        previous_cells, previous = previous_cells * keeps, previous * keeps
    gated = torch.stack([candidates, previous_cells], 2)  # what i and f let pass
    in_time = (before, gates, cells.relu(), cells > 0, sums, candidates, gated, keys.transpose(0, 1))
    by_step = _by_step(*in_time, d_gates, d_cells, d_before)
    moments_by_step = _by_step(*gates_moments), _by_step(*cell_moments)
    d_h = torch.zeros_like(hidden) if hidden_gradient is None else hidden_gradient
    d_c = torch.zeros_like(cell) if cell_gradient is None else cell_gradient
    d_memory = memory_gradient
    for index, (begin, end, weights) in reversed(list(enumerate(chunks(hidden, T, C, decay, rate, mask, resets)))):
        if memory is not None:
            here = keys[:, begin:end]
            reads = ReadsBackward(here, here.unsqueeze(2), memories[index], weights, d_memory)
        for t in reversed(range(begin, end)):
            all_before, gate, c_relu, c_open, total, candidate, passing, key, d_gate, d_new_c, d_here = by_step[t]
            o, d_o, d_g = gate.narrow(1, 2 * H, H), d_gate.narrow(1, 2 * H, H), d_gate.narrow(1, 3 * H, H)
            i_and_f, d_i_and_f = (x.narrow(1, 0, 2 * H).view(-1, 2, H) for x in (gate, d_gate))
            if hiddens_gradient is not None:
                d_h = d_h + hiddens_gradient[t]
            if mask is not None:
                passes = mask[:, t, None]
                passed_h, passed_c = d_h * ~passes, d_c * ~passes
                d_h, d_c = d_h * passes, d_c * passes
            torch.mul(d_h, c_relu, out=d_o)
            torch.addcmul(d_c, d_h * o, c_open, out=d_new_c)
            d_total = normalize_backward(d_new_c, total, *moments_by_step[1][t], cell_gain, cell_bias)
            torch.mul(d_total.unsqueeze(1), passing, out=d_i_and_f)
            d_candidate, d_c = (d_total.unsqueeze(1) * i_and_f).unbind(1)
            d_candidate = aten.threshold_backward(d_candidate, candidate, 0)
            aten.sigmoid_backward.grad_input(d_gate, gate, grad_input=d_gate)  # of i, f and o; d_g is written below
            if memory is None:
                d_g.copy_(d_candidate)
            else:
                d_key = reads.of_query(t - begin, 0, d_candidate).add_(reads.of_key(t - begin))
                torch.add(d_candidate, aten.threshold_backward(d_key, key, 0), out=d_g)
            d_here.copy_(normalize_backward(d_gate, all_before, *moments_by_step[0][t], gates_gain, gates_bias))
            d_h = d_here @ weight
            if mask is not None:
                d_h, d_c = d_h + passed_h, d_c + passed_c
            if resets is not None:
                d_h, d_c = d_h * keeps[t], d_c * keeps[t]
        if memory is not None and (memory_is_wanted or index):
            d_memory = reads.of_memory()
    d_weight = d_before.flatten(0, 1).T @ previous.flatten(0, 1)
    d_gates_norm = parameters_backward(d_gates, before, *gates_moments, gates_gain, gates_bias)
    d_cell_norm = parameters_backward(d_cells, sums, *cell_moments, cell_gain, cell_bias)
    found = [d_before, d_weight, *d_gates_norm, *d_cell_norm, d_h.clone(), d_c.clone()]
    return [*found, d_memory] if memory_is_wanted else found


@_backward.register_fake
def _(hiddens_gradient, hidden_gradient, cell_gradient, memory_gradient, weight, gates_gain, gates_bias, cell_gain,
      cell_bias, hidden, cell, memory, mask, resets, decay, rate, chunk, memory_is_wanted, hiddens, kept):  # fmt: skip
    like = [kept[0], weight, gates_gain, gates_bias, cell_gain, cell_bias, hidden, cell]
    like += [memory] if memory_is_wanted else []
    return [torch.empty_like(x) for x in like]


def _setup_context(ctx, inputs, output):
    *tensors, ctx.decay, ctx.rate, ctx.chunk = inputs
    ctx.save_for_backward(*tensors, output[0], *output[4])
    ctx.set_materialize_grads(False)


@in_full_precision
def _gradient(ctx, *gradients):
    saved = ctx.saved_tensors
    inputs, (mask, resets, hiddens), kept = saved[:9], saved[9:12], saved[12:]
    options = (mask, resets, ctx.decay, ctx.rate)
    in_time, *last = gradients[:4]
    if torch.is_grad_enabled():  # second derivatives are asked for
        y_gradient = None if in_time is None else in_time.transpose(0, 1)
        found = of_definition(reference, inputs, options, (y_gradient, *last))
    else:
        wanted = ctx.needs_input_grad[8]
        d_inputs, *found = _backward(in_time, *last, *inputs[1:], *options, ctx.chunk, wanted, hiddens, list(kept))
        found = [d_inputs.transpose(0, 1), *found, *([] if wanted else [None])]
    return (*found, *[None] * 5)


_forward.register_autograd(_gradient, setup_context=_setup_context)


def plain(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Plain torch, the fast weights formed once a chunk, its gradient written out: any device, any dtype.

    Arguments as of `reference`.
    """
    hiddens, hidden, cell, last_memory, _ = _forward(*arguments)
    return hiddens.transpose(0, 1), hidden, cell, None if arguments[MEMORY] is None else last_memory
