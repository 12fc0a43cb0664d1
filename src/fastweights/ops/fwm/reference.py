"""The definition: the paper's equations, one step at a time (Schlag et al. 2021)."""

import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from fastweights.ops.differentiable import Definition
from fastweights.ops.fwm.pairing import PAIRINGS, empty_memory
from fastweights.ops.layer_norm import EPSILON


def reference(
    first_keys: Tensor,
    second_keys: Tensor,
    values: Tensor,
    write_strengths: Tensor,
    first_queries: Tensor,
    second_queries: Tensor,
    memory: Tensor | None,
    output_mask: Tensor | None,
    mask: Tensor | None,
    resets: Tensor | None,
    pairing: str,
    chunk: int = 0,
) -> tuple[Tensor, Tensor]:
    """The paper's equations 3, 4 and 7 step by step: slow, for tests and second derivatives.

    Arguments as in `fast_weight_memory`, the memory as a matrix `[B, K, V]` or None where it is empty;
    `chunk` is for forms that have chunks.
    """
    join = PAIRINGS[pairing].join
    F = empty_memory(first_keys, second_keys, values, pairing) if memory is None else memory
    outputs = []
    for t in range(values.shape[1]):
        if resets is not None:
            F = torch.where(resets[:, t, None, None], torch.zeros_like(F), F)
        key = join(first_keys[:, t], second_keys[:, t])  # vec(k1 ⊗ k2)
        v, beta = values[:, t], write_strengths[:, t, None]
        v_old = torch.einsum("bkv,bk->bv", F, key)
        written = F + torch.einsum("bk,bv->bkv", key, beta * (v - v_old))  # eq. 3
        norm = written.square().sum((1, 2), keepdim=True).clamp(min=1).sqrt()  # max(1, ‖F'‖)
        written = written / norm  # eq. 4
        F = written if mask is None else torch.where(mask[:, t, None, None], written, F)
        n = first_queries[:, t]
        for i in range(second_queries.shape[2]):
            retrieved = torch.einsum("bkv,bk->bv", F, join(n, second_queries[:, t, i]))
            n = layer_norm(retrieved, retrieved.shape[-1:], eps=EPSILON)  # eq. 7
        outputs.append(n)
    y = torch.stack(outputs, 1)
    return (y if output_mask is None else y.masked_fill(~output_mask.unsqueeze(-1), 0)), F


DEFINITION = Definition(
    reference,
    inputs="first_keys second_keys values write_strengths first_queries second_queries memory",
    results="outputs last_memory",
)
