"""Large matrix products outside the recurrences, by the faster of the two libraries that torch ships.

MKL, which `torch.mm` calls in float32, gives AMD's processors its path for AVX2 alone; oneDNN gives them all that they
have. The processor and the sizes decide, never the clock: the same bits from run to run.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fastweights.machine import read

LEAST_MULTIPLICATIONS = 1 << 27  # from here on it is faster, where both were measured
LEAST_SIDE = 1000  # of a weight, from which on its gradient is


@cache
def has_onednn() -> bool:
    """Whether this torch has oneDNN, and its function that is not public."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


@cache
def prefers_onednn() -> bool:
    """Whether oneDNN is the faster library on this processor."""
    return has_onednn() and bool(re.search(r"^vendor_id\s*:\s*AuthenticAMD", read("/proc/cpuinfo"), re.MULTILINE))


def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """As `torch.nn.functional.linear` by oneDNN, without a gradient; torch has no public name for it."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def library() -> str:
    """The library that multiplies large matrices in float32 on this processor, and why."""
    if prefers_onednn():
        return "oneDNN for a layer and the gradient of its inputs, since MKL gives AMD's processors its AVX2 path"
    return "MKL, torch's default" if torch.backends.mkl.is_available() else "torch's default"


def weight_gradient(gradient: Tensor, x: Tensor, bfloat16: bool = False) -> Tensor:
    """The gradient `[N, K]` of a weight, from that of the layer's outputs `[…, N]` and its inputs `[…, K]`.

    Rows are transposed, which makes oneDNN slower but for very large weights. With `bfloat16` the operands are rounded.

    >>> weight_gradient(torch.ones(2, 5, 3), torch.ones(2, 5, 4)).shape
    torch.Size([3, 4])
    """
    rows, inputs = gradient.flatten(0, -2), x.flatten(0, -2)
    if bfloat16:
        return (rows.bfloat16().T @ inputs.bfloat16()).to(x.dtype)
    large = min(rows.shape[1], inputs.shape[1]) >= LEAST_SIDE and rows.is_contiguous()
    if large and not torch.is_grad_enabled() and _takes_onednn(inputs, rows.shape[1]):
        return onednn_linear(rows.T, inputs.T)
    return rows.T @ inputs


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """As `torch.nn.functional.linear`."""
    if _takes_onednn(x, weight.shape[0]) and not torch.is_autocast_enabled("cpu"):
        return _Linear.apply(x, weight, bias)
    return functional.linear(x, weight, bias)


class Linear(nn.Linear):
    """As `torch.nn.Linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def _takes_onednn(x: Tensor, columns: int) -> bool:
    """Whether oneDNN multiplies x `[…, K]` with so many columns; with rows apart it would be far slower."""
    if x.device.type != "cpu" or x.dtype != torch.float32 or x.numel() * columns < LEAST_MULTIPLICATIONS:
        return False
    return x.is_contiguous() and not torch.compiler.is_compiling() and prefers_onednn()


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return onednn_linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        d_x, d_weight, d_bias = ctx.needs_input_grad
        gradient = gradient.contiguous()  # once for the three that need it so
        if not d_x:
            found = None
        elif torch.is_grad_enabled():  # a second derivative needs a product that torch can differentiate
            found = gradient @ weight
        else:
            found = onednn_linear(gradient, weight.T)
        return (
            found,
            weight_gradient(gradient, x) if d_weight else None,
            gradient.flatten(0, -2).sum(0) if d_bias else None,
        )
