"""Attention with relative positions in plain torch, its gradient written out.

A few rows at a time, which bounds the memory for scores. The position term is one product with all distances; its
number for a pair of steps is found in a view of that product, whose rows are one number longer ("relative shift").
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastweights.ops.differentiable import Named, gradients_like
from fastweights.ops.relative_attention.reference import DEFINITION

SCORES = 1 << 21  # at a time: 8 MB in float32
SCORES_ON_A_CARD = 1 << 28


class _Rows(NamedTuple):
    """R rows by head, `[R·H, T or S, D]`: scaled queries with a bias each, keys, values, and r by falling distance."""

    place: slice
    content_query: Tensor
    position_query: Tensor
    key: Tensor
    value: Tensor
    position: Tensor
    dropout: Tensor | None


def _rows(x: Named) -> Iterator[_Rows]:
    B, T, H, D = x.query.shape
    size = max(1, (SCORES_ON_A_CARD if x.query.is_cuda else SCORES) // (H * T * len(x.position)))
    position = x.position.flip(0).transpose(0, 1).contiguous()
    for begin in range(0, B, size):
        place = slice(begin, min(begin + size, B))
        query = x.query[place] * D**-0.5
        yield _Rows(
            place,
            _by_head(query + x.content_bias * D**-0.5),
            _by_head(query + x.position_bias * D**-0.5),
            _by_head(x.key[place]),
            _by_head(x.value[place]),
            position.expand(len(query), *position.shape).flatten(0, 1),
            None if x.dropout is None else x.dropout[place].flatten(0, 1),
        )


class _Scores(NamedTuple):
    """Memory for the scores of some rows `[R·H, T, S]`, seen in two ways.

    by_distance has distance S−1−m at m, by_step has step j at j. Query i' is step i = S−T+i', so the distance i−j is at
    m = j+T−1−i'. In rows of S+1 numbers that is the number i'·S + j + T−1: one after another in i' and j.
    """

    by_distance: Tensor
    by_step: Tensor

    @classmethod
    def empty(cls, rows: _Rows) -> _Scores:
        (heads, T, _), S = rows.content_query.shape, rows.key.shape[1]
        numbers = rows.key.new_empty(heads, T * (S + 1))
        numbers[:, : T - 1] = 0  # distances before the first step
        by_distance = numbers.view(heads, T, S + 1)
        by_distance[..., S] = 0  # no distance: by_step has the steps after a query there, which are masked
        return cls(by_distance[..., :S], numbers[:, T - 1 : -1].view(heads, T, S))


def _by_head(x: Tensor) -> Tensor:
    """`[R·H, T, D]` of x `[R, T, H, D]`; a view where R is 1 or x lies by head in memory."""
    return x.transpose(1, 2).flatten(0, 1)


def _by_row(x: Tensor, heads: int) -> Tensor:
    """`[R, T, H, D]` of x `[R·H, T, D]`."""
    return x.unflatten(0, (-1, heads)).transpose(1, 2)


def _empty(x: Named, keep: bool) -> dict[str, Tensor]:
    B, T, H, _ = x.query.shape
    weights = x.query.new_empty(B if keep else 0, H, T, len(x.position))
    return {"outputs": torch.empty_like(x.query, memory_format=torch.contiguous_format), "weights": weights}


def _forward(x: Named, keep: bool) -> dict[str, Tensor]:
    found, H = _empty(x, keep), x.query.shape[2]
    for rows in _rows(x):
        scores = _Scores.empty(rows)
        torch.bmm(rows.position_query, rows.position.mT, out=scores.by_distance)
        mask = x.mask[rows.place].unsqueeze(1)
        hidden = torch.zeros_like(mask, dtype=x.query.dtype).masked_fill_(~mask, -torch.inf)
        scores.by_step.unflatten(0, (-1, H)).add_(hidden)
        scores.by_step.baddbmm_(rows.content_query, rows.key.mT)
        weights = found["weights"][rows.place].flatten(0, 1) if keep else torch.empty_like(scores.by_step)
        torch.softmax(scores.by_step, -1, out=weights)
        used = weights if rows.dropout is None else weights * rows.dropout
        found["outputs"][rows.place] = _by_row(torch.bmm(used, rows.value), H)
    return found


def _empty_gradients(x: Named) -> dict[str, Tensor]:
    """Those of queries, keys and values lie by head in memory."""
    found = gradients_like(x)
    for name in ("query", "key", "value"):
        found[name] = x.key.new_empty(getattr(x, name).transpose(1, 2).shape).transpose(1, 2)
    return found


def _backward(x: Named, kept: Named, d: Named, wanted: Named) -> dict[str, Tensor]:
    H, scale = x.query.shape[2], x.query.shape[-1] ** -0.5
    found, d_y = _empty_gradients(x), torch.zeros_like(kept.outputs) if d.outputs is None else d.outputs
    d_position = x.position.new_zeros(x.position.transpose(0, 1).shape)
    biases = (found["content_bias"].zero_(), found["position_bias"].zero_())
    for rows in _rows(x):
        d_scores, weights = _Scores.empty(rows), kept.weights[rows.place].flatten(0, 1)
        d_outputs, outputs = _by_head(d_y[rows.place]), _by_head(kept.outputs[rows.place])
        d_query, d_key, d_value = (_by_head(found[name][rows.place]) for name in ("query", "key", "value"))
        torch.bmm(weights.mT if rows.dropout is None else (weights * rows.dropout).mT, d_outputs, out=d_value)
        torch.bmm(d_outputs, rows.value.mT, out=d_scores.by_step)
        if rows.dropout is not None:
            d_scores.by_step.mul_(rows.dropout)
        d_scores.by_step.sub_((d_outputs * outputs).sum(-1, keepdim=True)).mul_(weights)
        torch.bmm(d_scores.by_step.mT, rows.content_query, out=d_key)
        d_position += torch.bmm(d_scores.by_distance.mT, rows.position_query).unflatten(0, (-1, H)).sum(0)
        by_content = torch.bmm(d_scores.by_step, rows.key)
        by_position = torch.bmm(d_scores.by_distance, rows.position)
        torch.add(by_content, by_position, out=d_query).mul_(scale)
        for bias, part in zip(biases, (by_content, by_position), strict=True):
            bias += part.sum(1).unflatten(0, (-1, H)).sum(0) * scale
    found["position"].copy_(d_position.transpose(0, 1).flip(0))
    return found


_relative_attention = DEFINITION.implement(
    "relative_attention_plain",
    _forward,
    _backward,
    saved="outputs weights",
    empty=_empty,
    empty_gradients=_empty_gradients,
)


def plain(*arguments: Any) -> tuple[Tensor]:
    """Plain torch, a few rows at a time, its gradient written out: any device, any dtype.

    Arguments as of `reference`.
    """
    return _relative_attention(*arguments)
