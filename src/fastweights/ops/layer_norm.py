"""Layer normalisation (Ba, Kiros & Hinton 2016) in parts, for recurrences whose gradient is written out."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.ops import aten

EPSILON = 1e-5


def normalize(x: Tensor, gain: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """LN[x] `[B, N]`, and x's mean and 1/deviation `[B, 1]`."""
    return torch.native_layer_norm(x, gain.shape, gain, bias, EPSILON)


def normalize_backward(
    d_y: Tensor, x: Tensor, mean: Tensor, inverse_deviation: Tensor, gain: Tensor, bias: Tensor
) -> Tensor:
    """The gradient of x `[B, N]`."""
    outputs = [True, False, False]
    return aten.native_layer_norm_backward(d_y, x, gain.shape, mean, inverse_deviation, gain, bias, outputs)[0]


def parameters_backward(
    d_y: Tensor, x: Tensor, mean: Tensor, inverse_deviation: Tensor, gain: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients of gain and bias, summed over all leading dimensions of x `[…, N]` at once."""
    outputs = [False, True, True]
    return aten.native_layer_norm_backward(d_y, x, gain.shape, mean, inverse_deviation, gain, bias, outputs)[1:]
