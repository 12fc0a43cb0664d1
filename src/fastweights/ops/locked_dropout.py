"""Dropout whose mask is the same at all steps of a row."""

from torch import Tensor
from torch.nn.functional import dropout1d


def locked_dropout(x: Tensor, probability: float, training: bool = True) -> Tensor:
    """Dropout of x `[B, T, D]` by a mask `[B, 1, D]` (Gal & Ghahramani 2016; "locked" in Merity et al.'s code).

    >>> import torch
    >>> y = locked_dropout(torch.ones(2, 5, 3), 0.5)
    >>> bool((y == y[:, :1]).all())
    True
    """
    return dropout1d(x.transpose(1, 2), probability, training).transpose(1, 2)  # a feature is dropout1d's channel
