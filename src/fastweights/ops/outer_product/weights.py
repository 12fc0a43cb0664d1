"""How much each write counts in each read, with padding and resets: all that a decaying sum needs to know of time."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor


class Weights(NamedTuple):
    """Of C steps, for every row or for all rows alike (R = B or 1).

    writes `[R, C, C]` holds η λ^(t−τ) for the write at τ in the read at t (0 where τ > t, where τ is padding, and where
    a reset lies between); start `[R, C]` holds λ^t for what was there before the first of these steps.
    """

    writes: Tensor
    start: Tensor


def weights(
    like: Tensor, length: int, decay: float, rate: float, mask: Tensor | None, resets: Tensor | None
) -> Weights:
    """The weights of `length` steps, of the dtype of `like`, with masks `[B, length]`; padding takes no time."""
    passes = like.new_ones(1, length, dtype=torch.bool) if mask is None else mask
    restarts = torch.zeros_like(passes) if resets is None else resets
    now, era = passes.cumsum(1), restarts.cumsum(1)
    counts = (passes.unsqueeze(1) & (era.unsqueeze(2) == era.unsqueeze(1))).tril()  # [R, t, τ]
    ages = (now.unsqueeze(2) - now.unsqueeze(1)).clamp_min(0).to(like.dtype)
    return Weights(rate * decay**ages * counts, decay ** now.to(like.dtype) * (era == 0))


def chunks(
    like: Tensor, length: int, chunk: int, decay: float, rate: float, mask: Tensor | None, resets: Tensor | None
) -> Iterator[tuple[int, int, Weights]]:
    """Cut `length` steps into chunks: where each begins and ends, and its weights, with masks `[B, length]`."""
    for begin in range(0, length, chunk):
        end = min(begin + chunk, length)
        masks = (None if x is None else x[:, begin:end] for x in (mask, resets))
        yield begin, end, weights(like, end - begin, decay, rate, *masks)
