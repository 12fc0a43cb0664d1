"""The definition: the LSTM's equations, one step at a time."""

import torch
from torch import Tensor
from torch.nn.functional import embedding

from fastweights.ops.differentiable import Definition


def look_up(gate_inputs: Tensor, tokens: Tensor | None) -> Tensor:
    """The gates' inputs `[B, T, 4·H]`: as given, or the rows of a table `[V, 4·H]` that tokens `[B, T]` choose."""
    if tokens is None:
        return gate_inputs
    return embedding(tokens.T, gate_inputs).transpose(0, 1)  # in the order of time, as the steps read them


def rounded(x: Tensor) -> Tensor:
    """Values rounded to bfloat16, in the dtype and with the gradient of x."""
    return x + (x.bfloat16().to(x.dtype) - x).detach()


def reference(
    gate_inputs: Tensor,
    weight: Tensor,
    hidden: Tensor,
    cell: Tensor,
    mask: Tensor | None,
    resets: Tensor | None,
    tokens: Tensor | None,
    bfloat16: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The equations step by step: slow, for tests and second derivatives."""
    gate_inputs = look_up(gate_inputs, tokens)
    h, c = hidden, cell
    operand = rounded if bfloat16 else Tensor.contiguous
    weight = operand(weight)
    outputs = []
    for t in range(gate_inputs.shape[1]):
        if resets is not None:
            h, c = (x.masked_fill(resets[:, t, None], 0) for x in (h, c))
        i, f, g, o = (gate_inputs[:, t] + operand(h) @ weight.T).chunk(4, -1)
        new_c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        new_h = o.sigmoid() * new_c.tanh()
        if mask is not None:
            new_h, new_c = (torch.where(mask[:, t, None], *pair) for pair in ((new_h, h), (new_c, c)))
        h, c = new_h, new_c
        outputs.append(h)
    return torch.stack(outputs, 1), h, c


DEFINITION = Definition(reference, inputs="gate_inputs weight hidden cell", results="hiddens last_hidden last_cell")
