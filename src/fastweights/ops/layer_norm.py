"""Layer normalisation (Ba, Kiros & Hinton 2016) in parts, for recurrences whose gradient is written out."""

from __future__ import annotations

import torch
from torch import Tensor

from fastweights.ops.differentiable import aten

EPSILON = 1e-5


def normalize(x: Tensor, gain: Tensor | None, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """LN[x] `[…, N]`, and x's mean and 1/deviation `[…, 1]`."""
    return torch.native_layer_norm(x, x.shape[-1:], gain, bias, EPSILON)


def normalize_backward(
    d_y: Tensor, x: Tensor, gain: Tensor | None, bias: Tensor | None, mean: Tensor, inverse_deviation: Tensor
) -> Tensor:
    """The gradient of x `[…, N]`."""
    outputs = [True, False, False]
    return aten.native_layer_norm_backward(d_y, x, x.shape[-1:], mean, inverse_deviation, gain, bias, outputs)[0]


def parameters_backward(
    d_y: Tensor, x: Tensor, gain: Tensor, bias: Tensor, mean: Tensor, inverse_deviation: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients of gain and bias, summed over all leading dimensions of x `[…, N]` at once."""
    outputs = [False, True, True]
    return aten.native_layer_norm_backward(d_y, x, gain.shape, mean, inverse_deviation, gain, bias, outputs)[1:]
