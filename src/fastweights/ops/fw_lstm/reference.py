"""The definition: the equations of the fast weight LSTM (Keller et al. 2018), one step at a time."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from fastweights.ops.differentiable import Definition
from fastweights.ops.layer_norm import EPSILON


def reference(
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
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The equations step by step: slow, for tests and second derivatives (`chunk` is for forms that have chunks)."""
    h, c, A = hidden, cell, memory
    outputs = []
    for t in range(gate_inputs.shape[1]):
        if resets is not None:
            h, c = (x.masked_fill(resets[:, t, None], 0) for x in (h, c))
            A = None if A is None else A.masked_fill(resets[:, t, None, None], 0)
        gates = layer_norm(h @ weight.T + gate_inputs[:, t], weight.shape[:1], gates_gain, gates_bias, EPSILON)
        i, f, o, g_hat = gates.chunk(4, -1)
        i, f, o = i.sigmoid(), f.sigmoid(), o.sigmoid()
        g = g_hat.relu()
        if A is not None:
            written = decay * A + rate * g.unsqueeze(2) * g.unsqueeze(1)
            A = written if mask is None else torch.where(mask[:, t, None, None], written, A)
            g_hat = g_hat + (written @ g.unsqueeze(2)).squeeze(2)
        new_c = layer_norm(f * c + i * g_hat.relu(), cell.shape[1:], cell_gain, cell_bias, EPSILON)
        new_h = o * new_c.relu()
        if mask is not None:
            passes = mask[:, t, None]
            new_h, new_c = torch.where(passes, new_h, h), torch.where(passes, new_c, c)
        h, c = new_h, new_c
        outputs.append(h)
    return torch.stack(outputs, 1), h, c, A


DEFINITION = Definition(
    reference,
    inputs="gate_inputs weight gates_gain gates_bias cell_gain cell_bias hidden cell memory",
    results="hiddens last_hidden last_cell last_memory",
)
