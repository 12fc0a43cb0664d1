"""The definition: attention with relative positions (Dai et al. 2019, section 3.3), all pairs of steps at once."""

from __future__ import annotations

import torch
from torch import Tensor

from fastweights.ops.differentiable import Definition


def reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    position: Tensor,
    content_bias: Tensor,
    position_bias: Tensor,
    mask: Tensor,
    dropout: Tensor | None,
) -> tuple[Tensor]:
    """The equation term by term, with a vector r for each pair of steps: for tests and second derivatives."""
    T, S = query.shape[1], key.shape[1]
    distance = torch.arange(S - T, S, device=query.device).unsqueeze(1) - torch.arange(S, device=query.device)  # i − j
    r = position[distance.clamp(min=0)]  # [T, S, H, D]; the future is masked
    content = torch.einsum("bihd,bjhd->bhij", query + content_bias, key)  # terms (a) and (c)
    location = torch.einsum("bihd,ijhd->bhij", query + position_bias, r)  # terms (b) and (d)
    scores = (content + location) / query.shape[-1] ** 0.5
    weights = scores.masked_fill(~mask.unsqueeze(1), -torch.inf).softmax(-1)
    weights = weights if dropout is None else weights * dropout
    return (torch.einsum("bhij,bjhd->bihd", weights, value),)


DEFINITION = Definition(reference, inputs="query key value position content_bias position_bias", results="outputs")
