"""Attention with relative positions as a function on tensors (Dai et al. 2019, section 3.3, Transformer-XL).

    A_ij = (q_iᵀ k_j + q_iᵀ r_{i−j} + uᵀ k_j + vᵀ r_{i−j}) / √D      for each head; terms (a), (b), (c), (d)
    y_i = Σ_j softmax_j(A_ij) v_j                                    over the steps j that i may attend to

q, k, v are projected beforehand, and so are the encodings r of the distances. `reference.py` is the definition,
`plain.py` runs it without forming r_{i−j}, its gradient written out. A backend is one entry of `BACKENDS`.
"""

from __future__ import annotations

from torch import Tensor

from fastweights.ops.backends import Backend, run
from fastweights.ops.checks import check_shapes
from fastweights.ops.relative_attention.plain import plain
from fastweights.ops.relative_attention.reference import reference

BACKENDS = {"reference": Backend(reference), "plain": Backend(plain)}


def relative_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    position: Tensor,
    content_bias: Tensor,
    position_bias: Tensor,
    mask: Tensor,
    *,
    dropout: float = 0.0,
    backend: str = "auto",
) -> Tensor:
    """Let the last T of S steps attend to steps before them and to themselves.

    >>> import torch
    >>> query, (key, value) = torch.randn(2, 3, 4, 8), torch.randn(2, 2, 5, 4, 8)
    >>> position, (u, v) = torch.randn(5, 4, 8), torch.randn(2, 4, 8)
    >>> mask = torch.ones(1, 3, 5, dtype=torch.bool).tril(2).expand(2, -1, -1)  # T 3 steps, and 2 of memory
    >>> relative_attention(query, key, value, position, u, v, mask).shape
    torch.Size([2, 3, 4, 8])

    Args:
        query: q of the last T steps, for H heads `[B, T, H, D]`.
        key, value: k and v of all S steps `[B, S, H, D]`.
        position: r of the distances 0 … S−1 `[S, H, D]`.
        content_bias, position_bias: u and v `[H, D]`.
        mask: `[B, T, S]` bool, True where a step may attend to another: to at least one, and never to a later one.
        dropout: probability with which a weight of the attention is zero.
        backend: "auto", or a name from `BACKENDS`.

    Returns:
        y `[B, T, H, D]`.

    Raises:
        ValueError: if shapes do not fit each other, or the backend is unknown.
    """
    (B, T, H, D), S = query.shape, key.shape[1]
    check_shapes(
        {
            "key": (key, (B, S, H, D)),
            "value": (value, (B, S, H, D)),
            "position": (position, (S, H, D)),
            "content_bias": (content_bias, (H, D)),
            "position_bias": (position_bias, (H, D)),
            "mask": (mask, (B, T, S)),
        }
    )
    tensors = (query, key, value, position, content_bias, position_bias)
    drops = query.new_empty(B, H, T, S).bernoulli_(1 - dropout).div_(1 - dropout) if dropout else None
    (y,) = run("relative_attention", BACKENDS, backend, tensors, mask, drops)
    return y.to(query.dtype)
