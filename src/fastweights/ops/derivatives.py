"""What the gradients of all fast forms share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def in_full_precision(gradient: Callable[..., Any]) -> Callable[..., Any]:
    """Switch autocast off inside a gradient function, which would otherwise compute in half precision."""

    @functools.wraps(gradient)
    def wrapped(ctx, *gradients):
        with torch.autocast(ctx.saved_tensors[0].device.type, enabled=False):
            return gradient(ctx, *gradients)

    return wrapped


def of_definition(
    reference: Callable[..., Sequence[Tensor]],
    inputs: Sequence[Tensor | None],
    options: Sequence[Any],
    gradients: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """Gradients of `reference(*inputs, *options)` that can be differentiated once more; None where none is wanted."""
    pairs = [pair for pair in zip(reference(*inputs, *options), gradients, strict=True) if pair[1] is not None]
    wanted = [x for x in inputs if x is not None and x.requires_grad]
    outputs, gradients = zip(*pairs, strict=True)
    found = iter(torch.autograd.grad(outputs, wanted, gradients, create_graph=True, allow_unused=True))
    return [next(found) if x is not None and x.requires_grad else None for x in inputs]
