"""The LSTM's recurrent part as a function on tensors (Hochreiter & Schmidhuber 1997; Gers et al. 2000).

    (i, f, g, o) = x_t + W h_{t−1}             x_t: the gates' input, projected beforehand for all steps at once
    c_t = σ(f) ⊙ c_{t−1} + σ(i) ⊙ tanh(g)
    h_t = σ(o) ⊙ tanh(c_t)

`reference` is the definition. `plain` runs it step by step too, but with the four gates as one batch of products in the
layout that the CPU's matrix library likes best, and with its gradient written out: twice as fast as `torch.nn.LSTM`.
"""

import torch
from torch import Tensor

from fastweights.ops.backends import choose


def lstm(
    gate_inputs: Tensor,
    recurrent_weight: Tensor,
    hidden: Tensor,
    cell: Tensor,
    *,
    valid: Tensor | None = None,
    resets: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """Run the recurrent part of an LSTM over T steps.

    >>> x, weight = torch.randn(2, 10, 4 * 16), torch.randn(4 * 16, 16)
    >>> y, hidden, cell = lstm(x, weight, torch.zeros(2, 16), torch.zeros(2, 16))
    >>> y.shape
    torch.Size([2, 10, 16])

    Args:
        gate_inputs: what the input and the bias give the gates i, f, g, o in this order, `[B, T, 4·H]`.
        recurrent_weight: W `[4·H, H]`.
        hidden: h_0 `[B, H]`.
        cell: c_0 `[B, H]`.
        valid: `[B, T]` bool, where time passes; elsewhere the state stays as it is.
        resets: `[B, T]` bool, where a row starts from zeros, before that step.
        backend: "auto", "plain" or "reference".

    Returns:
        h_1 … h_T `[B, T, H]`, h_T and c_T.
    """
    dtype = torch.float32
    for tensor in (gate_inputs, recurrent_weight, hidden, cell):
        dtype = torch.promote_types(dtype, tensor.dtype)
    answer_dtype = gate_inputs.dtype
    tensors = [tensor.to(dtype) for tensor in (gate_inputs, recurrent_weight, hidden, cell)]
    run = BACKENDS[choose("lstm", BACKENDS, backend)]
    with torch.autocast(gate_inputs.device.type, enabled=False):
        y, hidden, cell = run(*tensors, valid, resets)
    return y.to(answer_dtype), hidden, cell


def reference(
    gate_inputs: Tensor, weight: Tensor, hidden: Tensor, cell: Tensor, valid: Tensor | None, resets: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The definition, step by step."""
    h, c = hidden, cell
    outputs = []
    for t in range(gate_inputs.shape[1]):
        if resets is not None:
            keep = ~resets[:, t, None]
            h, c = h * keep, c * keep
        i, f, g, o = (gate_inputs[:, t] + h @ weight.T).chunk(4, -1)
        new_c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        new_h = o.sigmoid() * new_c.tanh()
        if valid is not None:
            new_h, new_c = (torch.where(valid[:, t, None], *pair) for pair in ((new_h, h), (new_c, c)))
        h, c = new_h, new_c
        outputs.append(h)
    return torch.stack(outputs, 1), h, c


INTERNAL_ORDER = [0, 1, 3, 2]  # i, f, o, g: the three sigmoids side by side; its own inverse


@torch.library.custom_op("fastweights::lstm_plain", mutates_args=())
def _forward(
    gate_inputs: Tensor, weight: Tensor, hidden: Tensor, cell: Tensor, valid: Tensor | None, resets: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """States h_0 … h_T and c_0 … c_T `[T + 1, B, H]`, and the gates' activations `[4, T, B, H]`."""
    B, T, _ = gate_inputs.shape
    H = hidden.shape[-1]
    gates = gate_inputs.new_empty(4, T, B, H)
    for target, source in enumerate(INTERNAL_ORDER):
        gates[target].copy_(gate_inputs.unflatten(-1, (4, H))[:, :, source].transpose(0, 1))
    by_gate = weight.view(4, H, H)[INTERNAL_ORDER].mT.contiguous()
    hiddens, cells = hidden.new_empty(T + 1, B, H), cell.new_empty(T + 1, B, H)
    hiddens[0], cells[0] = hidden, cell
    for t in range(T):
        h, c = hiddens[t], cells[t]
        if resets is not None:
            keep = ~resets[:, t, None]
            h, c = h * keep, c * keep
        gate = gates[:, t]
        gate.baddbmm_(h.expand(4, B, H), by_gate)
        gate[:3].sigmoid_()
        gate[3].tanh_()
        new_h, new_c = hiddens[t + 1], cells[t + 1]
        torch.mul(gate[1], c, out=new_c).addcmul_(gate[0], gate[3])
        torch.tanh(new_c, out=new_h).mul_(gate[2])
        if valid is not None:
            new_h.copy_(torch.where(valid[:, t, None], new_h, h))
            new_c.copy_(torch.where(valid[:, t, None], new_c, c))
    return hiddens, cells, gates


@_forward.register_fake
def _(gate_inputs, weight, hidden, cell, valid, resets):
    B, T, _ = gate_inputs.shape
    H = hidden.shape[-1]
    states = hidden.new_empty(T + 1, B, H)
    return states, torch.empty_like(states), gate_inputs.new_empty(4, T, B, H)


@torch.library.custom_op("fastweights::lstm_plain_backward", mutates_args=())
def _backward(
    hiddens_gradient: Tensor,
    cells_gradient: Tensor,
    weight: Tensor,
    hiddens: Tensor,
    cells: Tensor,
    gates: Tensor,
    valid: Tensor | None,
    resets: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the gates' inputs, the weight, h_0 and c_0."""
    _, T, B, H = gates.shape
    by_gate = weight.view(4, H, H)[INTERNAL_ORDER].contiguous()
    d_gates = torch.empty_like(gates)
    d_activations = gates.new_empty(4, B, H)
    previous = hiddens[:-1] if resets is None else hiddens[:-1] * ~resets.T.unsqueeze(-1)
    d_h, d_c = hiddens_gradient[T].clone(), cells_gradient[T].clone()
    for t in reversed(range(T)):
        i, f, o, g = gates[:, t]
        keep = None if resets is None else ~resets[:, t, None]
        c = cells[t] if keep is None else cells[t] * keep
        passed_h = passed_c = None
        if valid is not None:
            passes = valid[:, t, None]
            passed_h, passed_c = d_h * ~passes, d_c * ~passes
            d_h, d_c = d_h * passes, d_c * passes
        new_c_tanh = torch.tanh(cells[t + 1])
        torch.mul(d_h, new_c_tanh, out=d_activations[2])
        d_c += torch.ops.aten.tanh_backward(d_h * o, new_c_tanh)
        torch.mul(d_c, g, out=d_activations[0])
        torch.mul(d_c, c, out=d_activations[1])
        torch.mul(d_c, i, out=d_activations[3])
        d_gates[:3, t] = torch.ops.aten.sigmoid_backward(d_activations[:3], gates[:3, t])
        d_gates[3, t] = torch.ops.aten.tanh_backward(d_activations[3], g)
        d_c *= f
        d_h = torch.bmm(d_gates[:, t], by_gate).sum(0)
        if valid is not None:
            d_h, d_c = d_h + passed_h, d_c + passed_c
        if keep is not None:
            d_h, d_c = d_h * keep, d_c * keep
        d_h += hiddens_gradient[t]
        d_c += cells_gradient[t]
    flat = d_gates.view(4, T * B, H)
    d_weight = (flat.mT @ previous.reshape(T * B, H))[INTERNAL_ORDER].view_as(weight)
    d_inputs = gates.new_empty(B, T, 4, H)
    for source, target in enumerate(INTERNAL_ORDER):
        d_inputs[:, :, target].copy_(d_gates[source].transpose(0, 1))
    return d_inputs.view(B, T, 4 * H), d_weight, d_h, d_c


@_backward.register_fake
def _(hiddens_gradient, cells_gradient, weight, hiddens, cells, gates, valid, resets):
    _, T, B, H = gates.shape
    return gates.new_empty(B, T, 4 * H), torch.empty_like(weight), hiddens.new_empty(B, H), cells.new_empty(B, H)


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs, *output)


def _gradient(ctx, hiddens_gradient, cells_gradient, _):
    *inputs, valid, resets, hiddens, cells, gates = ctx.saved_tensors
    if torch.is_grad_enabled():  # second derivatives are asked for: differentiate the definition
        y, _, last_cell = reference(*inputs, valid, resets)
        hiddens = torch.cat([inputs[2].unsqueeze(0), y.transpose(0, 1)])
        wanted = [x for x in inputs if x.requires_grad]
        found = iter(
            torch.autograd.grad(
                (hiddens, last_cell), wanted, (hiddens_gradient, cells_gradient[-1]), create_graph=True
            )
        )
        gradients = [next(found) if x.requires_grad else None for x in inputs]
    else:
        gradients = _backward(hiddens_gradient, cells_gradient, inputs[1], hiddens, cells, gates, valid, resets)
    return (*gradients, None, None)


_forward.register_autograd(_gradient, setup_context=_setup_context)


def plain(
    gate_inputs: Tensor, weight: Tensor, hidden: Tensor, cell: Tensor, valid: Tensor | None, resets: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The same, in plain torch operations on whole gates; arguments as in `reference`."""
    hiddens, cells, _ = _forward(gate_inputs, weight, hidden, cell, valid, resets)
    return hiddens[1:].transpose(0, 1), hiddens[-1], cells[-1]


BACKENDS = {"reference": reference, "plain": plain}
