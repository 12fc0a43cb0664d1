"""The LSTM in plain torch: step by step, but with the four gates as one batch of products in the layout that the CPU's
matrix library likes best, and with its gradient written out."""

import torch
from torch import Tensor

from fastweights.ops.derivatives import in_full_precision, of_definition
from fastweights.ops.lstm.reference import look_up, reference


@torch.library.custom_op("fastweights::lstm_plain", mutates_args=())
def _forward(
    gate_inputs: Tensor,
    weight: Tensor,
    hidden: Tensor,
    cell: Tensor,
    mask: Tensor | None,
    resets: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """h_1 … h_T `[T, B, H]`, h_T, c_T, and for the gradient c_t, tanh(c_t) and the gates `[T, 4, B, H]`."""
    B, T, _ = gate_inputs.shape
    H = hidden.shape[-1]
    if mask is not None and bool(mask.all()):
        mask = None
    inputs = gate_inputs.transpose(0, 1).unflatten(-1, (4, H)).transpose(1, 2)  # [T, 4, B, H]
    by_gate = weight.view(4, H, H).mT.contiguous()
    gates = gate_inputs.new_empty(T, 4, B, H)
    hiddens, cells, tanh_cells = (cell.new_empty(T, B, H) for _ in range(3))
    h, c = hidden, cell
    steps = zip(*(x.unbind(0) for x in (gates, hiddens, cells, tanh_cells)), strict=True)
    for t, (gate, new_h, new_c, tanh_c) in enumerate(steps):
        if resets is not None:
            keep = ~resets[:, t, None]
            h, c = h * keep, c * keep
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
    return hiddens, h.clone(), c.clone(), cells, tanh_cells, gates


@_forward.register_fake
def _(gate_inputs, weight, hidden, cell, mask, resets):
    B, T, _ = gate_inputs.shape
    H = hidden.shape[-1]
    states = [hidden.new_empty(shape) for shape in ((T, B, H), (B, H), (B, H), (T, B, H), (T, B, H))]
    return *states, gate_inputs.new_empty(T, 4, B, H)


@torch.library.custom_op("fastweights::lstm_plain_backward", mutates_args=())
def _backward(
    hiddens_gradient: Tensor | None,
    hidden_gradient: Tensor | None,
    cell_gradient: Tensor | None,
    weight: Tensor,
    hidden: Tensor,
    cell: Tensor,
    hiddens: Tensor,
    cells: Tensor,
    tanh_cells: Tensor,
    gates: Tensor,
    mask: Tensor | None,
    resets: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the gates' inputs `[T, B, 4·H]`, the weight, h_0 and c_0."""
    T, _, B, H = gates.shape
    if mask is not None and bool(mask.all()):
        mask = None
    by_gate = weight.view(4, H, H)
    d_inputs = gates.new_empty(T, B, 4, H)
    d_gate, d_activation = gates.new_empty(4, B, H), gates.new_empty(4, B, H)
    d_i, d_f, d_g, d_o = d_activation.unbind(0)
    d_h = torch.zeros_like(hidden) if hidden_gradient is None else hidden_gradient.clone()
    d_c = torch.zeros_like(cell) if cell_gradient is None else cell_gradient.clone()
    previous = torch.cat([hidden.unsqueeze(0), hiddens[:-1]])
    if resets is not None:
        previous *= ~resets.T.unsqueeze(-1)
    for t in reversed(range(T)):
        gate = gates[t]
        i, f, g, o = gate.unbind(0)
        c, tanh_c = cells[t - 1] if t else cell, tanh_cells[t]
        if hiddens_gradient is not None:
            d_h += hiddens_gradient[t]
        if resets is not None:
            keep = ~resets[:, t, None]
            c = c * keep
        if mask is not None:
            passes = mask[:, t, None]
            passed_h, passed_c = d_h * ~passes, d_c * ~passes
            d_h, d_c = d_h * passes, d_c * passes
        torch.mul(d_h, tanh_c, out=d_o)
        d_c += torch.ops.aten.tanh_backward(d_h.mul_(o), tanh_c)
        torch.mul(d_c, g, out=d_i)
        torch.mul(d_c, c, out=d_f)
        torch.mul(d_c, i, out=d_g)
        torch.ops.aten.sigmoid_backward.grad_input(d_activation[:2], gate[:2], grad_input=d_gate[:2])
        torch.ops.aten.tanh_backward.grad_input(d_g, g, grad_input=d_gate[2])
        torch.ops.aten.sigmoid_backward.grad_input(d_o, o, grad_input=d_gate[3])
        d_inputs[t].copy_(d_gate.transpose(0, 1))
        d_c *= f
        d_h = torch.bmm(d_gate, by_gate).sum(0)
        if mask is not None:
            d_h, d_c = d_h + passed_h, d_c + passed_c
        if resets is not None:
            d_h, d_c = d_h * keep, d_c * keep
    d_inputs = d_inputs.view(T, B, 4 * H)
    d_weight = d_inputs.flatten(0, 1).T @ previous.flatten(0, 1)
    return d_inputs, d_weight, d_h, d_c


@_backward.register_fake
def _(hiddens_gradient, hidden_gradient, cell_gradient, weight, hidden, cell, hiddens, cells, tanh_cells, gates, mask,
      resets):  # fmt: skip
    T, _, B, H = gates.shape
    return (
        gates.new_empty(T, B, 4 * H),
        torch.empty_like(weight),
        torch.empty_like(hidden),
        torch.empty_like(cell),
    )


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs, output[0], *output[3:])
    ctx.set_materialize_grads(False)


@in_full_precision
def _gradient(ctx, *gradients):
    *inputs, mask, resets, hiddens, cells, tanh_cells, gates = ctx.saved_tensors
    if torch.is_grad_enabled():  # second derivatives are asked for
        in_time, *last = gradients[:3]
        y_gradient = None if in_time is None else in_time.transpose(0, 1)
        found = of_definition(reference, inputs, (mask, resets, None), (y_gradient, *last))
    else:
        d_inputs, *found = _backward(*gradients[:3], *inputs[1:], hiddens, cells, tanh_cells, gates, mask, resets)
        found = [d_inputs.transpose(0, 1), *found]
    return (*found, None, None)


_forward.register_autograd(_gradient, setup_context=_setup_context)


def plain(
    gate_inputs: Tensor,
    weight: Tensor,
    hidden: Tensor,
    cell: Tensor,
    mask: Tensor | None,
    resets: Tensor | None,
    tokens: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Plain torch on whole gates, its gradient written out: any device, any dtype, no compiler needed."""
    gate_inputs = look_up(gate_inputs, tokens)
    hiddens, hidden, cell, *_ = _forward(gate_inputs, weight, hidden, cell, mask, resets)
    return hiddens.transpose(0, 1), hidden, cell
