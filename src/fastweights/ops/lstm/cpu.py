"""The LSTM's compiled kernel (csrc/lstm.cpp), forward and backward, for float32 on the CPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastweights.ops import cpu
from fastweights.ops.derivatives import in_full_precision, of_definition
from fastweights.ops.lstm.reference import reference


@torch.library.custom_op("fastweights::lstm_cpu", mutates_args=())
def _forward(
    gate_inputs: Tensor,
    weight: Tensor,
    hidden: Tensor,
    cell: Tensor,
    mask: Tensor | None,
    resets: Tensor | None,
    tokens: Tensor | None,
    keep_for_backward: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """h_1 … h_T `[T, B, H]`, h_T, c_T, and for the gradient c_t `[T, B, H]` and the gates `[T, B, 4·H]`."""
    B, H = hidden.shape
    gate_inputs = cpu.rows(gate_inputs)
    weight, hidden, cell = weight.contiguous(), hidden.contiguous(), cell.contiguous()
    T = gate_inputs.shape[1] if tokens is None else tokens.shape[1]
    hiddens, last_hidden, last_cell = hidden.new_empty(T, B, H), torch.empty_like(hidden), torch.empty_like(cell)
    kept = T if keep_for_backward else 0
    cells, gates = hidden.new_empty(kept, B, H), hidden.new_empty(kept, B, 4 * H)
    strides = gate_inputs.stride()
    mask, resets = cpu.contiguous_mask(mask), cpu.contiguous_mask(resets)
    arguments = cpu.LSTMArguments(
        B=B, T=T, H=H, threads=torch.get_num_threads(), gate_inputs=gate_inputs, input_row=strides[0],
        input_step=0 if tokens is not None else strides[1], weight=weight, hidden=hidden, cell=cell, mask=mask,
        resets=resets, hiddens=hiddens, last_hidden=last_hidden, last_cell=last_cell,
        cells=cells if kept else None, gates=gates if kept else None,
    )  # fmt: skip
    if tokens is not None:
        arguments.tokens, arguments.tokens_row, arguments.tokens_step = tokens.data_ptr(), *tokens.stride()
    cpu.call("lstm_forward", arguments)
    return hiddens, last_hidden, last_cell, cells, gates


@_forward.register_fake
def _(gate_inputs, weight, hidden, cell, mask, resets, tokens, keep_for_backward):
    B, H = hidden.shape
    T = gate_inputs.shape[1] if tokens is None else tokens.shape[1]
    kept = T if keep_for_backward else 0
    shapes = ((T, B, H), (B, H), (B, H), (kept, B, H), (kept, B, 4 * H))
    return tuple(hidden.new_empty(shape) for shape in shapes)


@torch.library.custom_op("fastweights::lstm_cpu_backward", mutates_args=())
def _backward(
    hiddens_gradient: Tensor | None,
    hidden_gradient: Tensor | None,
    cell_gradient: Tensor | None,
    weight: Tensor,
    hidden: Tensor,
    cell: Tensor,
    mask: Tensor | None,
    resets: Tensor | None,
    tokens: Tensor | None,
    vocabulary_size: int,
    hiddens: Tensor,
    cells: Tensor,
    gates: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the gates' inputs `[T, B, 4·H]` (or of the table `[V, 4·H]`), the weight, h_0 and c_0."""
    T, B, H = hiddens.shape
    threads = torch.get_num_threads()
    weight, hidden, cell = weight.contiguous(), hidden.contiguous(), cell.contiguous()
    d_inputs = torch.empty_like(gates)
    d_hidden, d_cell = cpu.begun(hidden_gradient, hidden), cpu.begun(cell_gradient, cell)
    mask, resets = cpu.contiguous_mask(mask), cpu.contiguous_mask(resets)
    arguments = cpu.LSTMArguments(
        B=B, T=T, H=H, threads=threads, weight=weight, cell=cell, mask=mask, resets=resets, cells=cells, gates=gates,
        d_gate_inputs=d_inputs, d_hidden=d_hidden, d_cell=d_cell,
    )  # fmt: skip
    if hiddens_gradient is not None:
        hiddens_gradient = cpu.rows(hiddens_gradient)
        arguments.d_hiddens = hiddens_gradient.data_ptr()
        arguments.d_hiddens_step, arguments.d_hiddens_row = hiddens_gradient.stride()[:2]
    cpu.call("lstm_backward", arguments)
    previous = torch.cat([hidden.unsqueeze(0), hiddens[:-1]])
    if resets is not None:
        previous *= ~resets.T.unsqueeze(-1)
    d_weight = d_inputs.flatten(0, 1).T @ previous.flatten(0, 1)
    if tokens is not None:
        table = hidden.new_zeros(vocabulary_size, 4 * H)
        in_time = tokens.T.contiguous()
        cpu.call(
            "gather_backward",
            cpu.GatherArguments(
                positions=T * B, columns=4 * H, threads=threads, tokens=in_time, gradient=d_inputs, table=table
            ),
        )
        d_inputs = table
    return d_inputs, d_weight, d_hidden, d_cell


@_backward.register_fake
def _(hiddens_gradient, hidden_gradient, cell_gradient, weight, hidden, cell, mask, resets, tokens, vocabulary_size,
      hiddens, cells, gates):  # fmt: skip
    d_inputs = torch.empty_like(gates) if tokens is None else hidden.new_empty(vocabulary_size, gates.shape[-1])
    return d_inputs, torch.empty_like(weight), torch.empty_like(hidden), torch.empty_like(cell)


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:-1], output[0], *output[3:])
    ctx.set_materialize_grads(False)


@in_full_precision
def _gradient(ctx, *gradients):
    *inputs, mask, resets, tokens, hiddens, cells, gates = ctx.saved_tensors
    if torch.is_grad_enabled():  # second derivatives are asked for
        in_time, *last = gradients[:3]
        y_gradient = None if in_time is None else in_time.transpose(0, 1)
        found = of_definition(reference, inputs, (mask, resets, tokens), (y_gradient, *last))
    else:
        vocabulary_size = 0 if tokens is None else inputs[0].shape[0]
        d_inputs, *found = _backward(
            *gradients[:3], *inputs[1:], mask, resets, tokens, vocabulary_size, hiddens, cells, gates
        )
        found = [d_inputs if tokens is not None else d_inputs.transpose(0, 1), *found]
    return (*found, None, None, None, None)


_forward.register_autograd(_gradient, setup_context=_setup_context)


def compiled(
    gate_inputs: Tensor,
    weight: Tensor,
    hidden: Tensor,
    cell: Tensor,
    mask: Tensor | None,
    resets: Tensor | None,
    tokens: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compiled for this processor: float32 on the CPU, hidden sizes that are multiples of 16."""
    keep = torch.is_grad_enabled() and any(x.requires_grad for x in (gate_inputs, weight, hidden, cell))
    hiddens, hidden, cell, *_ = _forward(gate_inputs, weight, hidden, cell, mask, resets, tokens, keep)
    return hiddens.transpose(0, 1), hidden, cell


def refuses(tensors: Sequence[Tensor] = ()) -> str | None:
    """Why the kernel cannot run (on gate_inputs, weight, hidden, cell), or None where it can."""
    if tensors and tensors[2].shape[-1] % cpu.LARGEST_VECTOR:
        return f"it needs a hidden size that is a multiple of {cpu.LARGEST_VECTOR}, not {tensors[2].shape[-1]}"
    return cpu.refuses(tensors)
