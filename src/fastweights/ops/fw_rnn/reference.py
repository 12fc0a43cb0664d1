"""The definition: the equations of the fast weight RNN (Ba et al. 2016, eq. 1 and 2), one step at a time."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from fastweights.ops.differentiable import Definition
from fastweights.ops.layer_norm import EPSILON


def reference(
    inputs: Tensor,
    weight: Tensor,
    gain: Tensor,
    bias: Tensor,
    hidden: Tensor,
    memory: Tensor,
    mask: Tensor | None,
    resets: Tensor | None,
    decay: float,
    rate: float,
    inner_steps: int,
    chunk: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The equations step by step: slow, for tests and second derivatives (`chunk` is for forms that have chunks)."""
    h, A = hidden, memory
    outputs = []
    for t in range(inputs.shape[1]):
        if resets is not None:
            h, A = h.masked_fill(resets[:, t, None], 0), A.masked_fill(resets[:, t, None, None], 0)
        new_A = decay * A + rate * h.unsqueeze(2) * h.unsqueeze(1)  # eq. 1
        boundary = h @ weight.T + inputs[:, t]
        new_h = boundary.relu()
        for _ in range(inner_steps):  # eq. 2, layer-normalised
            read = (new_A @ new_h.unsqueeze(2)).squeeze(2)
            new_h = layer_norm(boundary + read, h.shape[1:], gain, bias, EPSILON).relu()
        if mask is not None:
            passes = mask[:, t, None]
            new_h, new_A = torch.where(passes, new_h, h), torch.where(passes.unsqueeze(-1), new_A, A)
        h, A = new_h, new_A
        outputs.append(h)
    return torch.stack(outputs, 1), h, A


DEFINITION = Definition(
    reference, inputs="inputs weight gain bias hidden memory", results="hiddens last_hidden last_memory"
)
