"""Attention with relative positions in plain torch, its gradient written out.

A few rows at a time, so that their scores stay in the cache. The position term is one product with all distances; what
belongs together of it, (i, j), is a view of that product in rows that are one number longer ("relative shift").
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastweights.ops.differentiable import Named
from fastweights.ops.relative_attention.reference import DEFINITION

SCORES = 1 << 21  # at a time: 8 MB in float32
SCORES_ON_A_CARD = 1 << 28


class _Scores(NamedTuple):
    """Memory for the scores of some rows' heads, seen in two ways.

    by_distance `[R·H, T, S]` has distance S−1−m at m; by_step `[R·H, T, S]` has step j at j. Query i = S−T+i' finds
    distance i−j in by_distance at m = j+T−1−i'. With rows of S+1 numbers this is S·i' + j + T−1: contiguous.
    """

    by_distance: Tensor
    by_step: Tensor

    @classmethod
    def empty(cls, like: Tensor, heads: int, T: int, S: int) -> _Scores:
        numbers = like.new_empty(heads, T * (S + 1))
        numbers[:, : T - 1] = 0  # what no step has: the distances that are too large for a query …
        by_distance = numbers.view(heads, T, S + 1)
        by_distance[..., S] = 0  # … and the future, which is masked
        return cls(by_distance[..., :S], numbers[:, T - 1 : -1].view(heads, T, S))


class _Rows(NamedTuple):
    """Some rows, `[R·H, T or S, D]`: queries with a bias each and scaled, keys, values, and r by falling distance."""

    slice: slice
    content_query: Tensor
    position_query: Tensor
    key: Tensor
    value: Tensor
    position: Tensor


def _rows(x: Named) -> Iterator[_Rows]:
    B, T, H, D = x.query.shape
    size = max(1, (SCORES_ON_A_CARD if x.query.is_cuda else SCORES) // (H * T * x.key.shape[1]))
    position = x.position.flip(0).transpose(0, 1)  # [H, S, D]
    for begin in range(0, B, size):
        rows = slice(begin, min(begin + size, B))
        query = x.query[rows] * D**-0.5
        yield _Rows(
            rows,
            _by_head(query + x.content_bias * D**-0.5),
            _by_head(query + x.position_bias * D**-0.5),
            _by_head(x.key[rows]),
            _by_head(x.value[rows]),
            position.expand(len(query), *position.shape).flatten(0, 1),
        )


def _by_head(x: Tensor) -> Tensor:
    """`[R·H, T, D]` of x `[R, T, H, D]`; a view where R is 1."""
    return x.transpose(1, 2).flatten(0, 1)


def _by_row(x: Tensor, heads: int) -> Tensor:
    """`[R, T, H, D]` of x `[R·H, T, D]`."""
    return x.unflatten(0, (-1, heads)).transpose(1, 2)


def _empty(x: Named, keep: bool) -> dict[str, Tensor]:
    B, T, H, _ = x.query.shape
    return {
        "outputs": x.query.new_empty(x.query.shape),
        "weights": x.query.new_empty(B if keep else 0, H, T, len(x.position)),
    }


def _forward(x: Named, keep: bool) -> dict[str, Tensor]:
    _, T, H, _ = x.query.shape
    found, S = _empty(x, keep), len(x.position)
    for rows in _rows(x):
        scores = _Scores.empty(x.query, len(rows.key), T, S)
        torch.bmm(rows.position_query, rows.position.mT, out=scores.by_distance)
        hidden = torch.zeros_like(x.mask[rows.slice], dtype=x.query.dtype).masked_fill_(~x.mask[rows.slice], -torch.inf)
        scores.by_step.unflatten(0, (-1, H)).add_(hidden.unsqueeze(1))
        scores.by_step.baddbmm_(rows.content_query, rows.key.mT)
        weights = found["weights"][rows.slice].flatten(0, 1) if keep else torch.empty_like(scores.by_step)
        torch.softmax(scores.by_step, -1, out=weights)
        if x.keep is not None:
            weights = weights * x.keep[rows.slice].flatten(0, 1)
        found["outputs"][rows.slice] = _by_row(torch.bmm(weights, rows.value), H)
    return found


def _backward(x: Named, kept: Named, d: Named, wanted: Named) -> dict[str, Tensor]:
    _, T, H, D = x.query.shape
    S = len(x.position)
    d_query, d_key, d_value = (torch.empty_like(y, memory_format=torch.contiguous_format) for y in x[:3])
    d_position = x.position.new_zeros(H, S, D)
    d_content_bias, d_position_bias = torch.zeros_like(x.content_bias), torch.zeros_like(x.position_bias)
    for rows in _rows(x):
        weights, d_outputs = kept.weights[rows.slice].flatten(0, 1), _by_head(d.outputs[rows.slice])
        dropped = None if x.keep is None else x.keep[rows.slice].flatten(0, 1)
        used = weights if dropped is None else weights * dropped
        d_value[rows.slice] = _by_row(torch.bmm(used.mT, d_outputs), H)
        d_scores = _Scores.empty(x.query, len(rows.key), T, S)
        torch.bmm(d_outputs, rows.value.mT, out=d_scores.by_step)
        if dropped is not None:
            d_scores.by_step.mul_(dropped)
        mean = (d_outputs * _by_head(kept.outputs[rows.slice])).sum(-1, keepdim=True)
        d_scores.by_step.sub_(mean).mul_(weights)
        d_key[rows.slice] = _by_row(torch.bmm(d_scores.by_step.mT, rows.content_query), H)
        by_content = _by_row(torch.bmm(d_scores.by_step, rows.key), H)
        by_position = _by_row(torch.bmm(d_scores.by_distance, rows.position), H)
        d_position += torch.bmm(d_scores.by_distance.mT, rows.position_query).unflatten(0, (-1, H)).sum(0)
        torch.add(by_content, by_position, out=d_query[rows.slice])
        d_content_bias += by_content.sum((0, 1))
        d_position_bias += by_position.sum((0, 1))
    scale = D**-0.5
    return {
        "query": d_query.mul_(scale),
        "key": d_key,
        "value": d_value,
        "position": d_position.transpose(0, 1).flip(0),
        "content_bias": d_content_bias.mul_(scale),
        "position_bias": d_position_bias.mul_(scale),
    }


_relative_attention = DEFINITION.implement(
    "relative_attention_plain", _forward, _backward, saved="outputs weights", empty=_empty
)


def plain(*arguments: Any) -> tuple[Tensor]:
    """Plain torch, a few rows at a time, its gradient written out: any device, any dtype.

    Arguments as of `reference`.
    """
    return _relative_attention(*arguments)
