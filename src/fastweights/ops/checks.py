"""Checks of shapes and masks, before they can broadcast into a wrong result, and promotion to one dtype."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def check_shapes(expected: dict[str, tuple[Tensor | None, tuple[int, ...]]]) -> None:
    """Compare each tensor's shape with the one it must have; None is an optional tensor that is not given.

    >>> check_shapes({"hidden": (torch.zeros(2, 3), (2, 4))})
    Traceback (most recent call last):
    ValueError: hidden has shape [2, 3]; beside the other arguments it must be [2, 4]

    Raises:
        ValueError: naming the first that does not fit.
    """
    for name, (tensor, shape) in expected.items():
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ValueError(
                f"{name} has shape {list(tensor.shape)}; beside the other arguments it must be {list(shape)}"
            )


def check_masks(shape: tuple[int, int], **masks: Tensor | None) -> None:
    """Check that there are steps, and that masks are bool and `[B, T]`.

    Raises:
        ValueError: naming the first that is not.
    """
    if shape[1] == 0:
        raise ValueError("the sequence is empty; T must be at least 1")
    check_shapes({name: (mask, shape) for name, mask in masks.items()})
    for name, mask in masks.items():
        if mask is not None and mask.dtype != torch.bool:
            raise ValueError(f"{name} is {mask.dtype}; a mask must be torch.bool")


def bfloat16_products(device: str) -> bool:
    """Whether autocast lets products take their operands in bfloat16."""
    return torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.bfloat16


def in_one_dtype(tensors: Sequence[Tensor | None]) -> list[Any]:
    """Tensors in the widest dtype among them, but never below float32: states are long sums.

    >>> [x.dtype for x in in_one_dtype([torch.zeros(1, dtype=torch.bfloat16), torch.zeros(1, dtype=torch.float16)])]
    [torch.float32, torch.float32]
    """
    dtype = torch.float32
    for tensor in tensors:
        if tensor is not None:
            dtype = torch.promote_types(dtype, tensor.dtype)
    return [None if tensor is None else tensor.to(dtype) for tensor in tensors]
