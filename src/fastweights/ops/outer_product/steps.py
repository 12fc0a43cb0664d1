"""Reads one after another, where a step's key and query are known only when the step before is done; gradients by hand.

What A_t gives for a query q is, with the weights of `weights.py` and the fast weights A before the first step,

    r = start_t A q + Σ_τ writes_tτ k_τ (k_τ·q)

and a gradient r̄ of it gives, as A_t is read backwards like forwards and every write is in all later reads,

    q̄ = start_t Aᵀ r̄ + Σ_τ writes_tτ k_τ (k_τ·r̄)
    k̄_τ = Σ_t writes_tτ [ r̄_t (k_τ·q_t) + q_t (k_τ·r̄_t) ]
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastweights.ops.outer_product.weights import Weights


class Reads:
    """Writes and reads of C steps, `num_reads` reads a step.

    Args:
        keys: `[B, C, H]`, where the keys are, or will be written to.
        queries: `[B, C, N, H]`, the same for the queries.
        memory: A before the first step `[B, H, H]`.
        weights: what counts how much.
    """

    def __init__(self, keys: Tensor, queries: Tensor, memory: Tensor, weights: Weights):
        self.keys, self.queries, self.memory, self.weights = keys, queries, memory, weights
        self.counts = weights.writes.unbind(1)
        self.starts_empty = not any(memory.aminmax())  # as most sequences do: half of the work saved

    def read(self, t: int, n: int) -> Tensor:
        """What A_t gives `[B, H]` for the n-th query of step t."""
        return self._read(t, self.queries.select(1, t).select(1, n), self.memory)[0]

    def _read(self, t: int, query: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """What is read, and how much each key counts in it `[B, t + 1]`."""
        keys, query = self.keys.narrow(1, 0, t + 1), query.unsqueeze(1)  # a row times a matrix: the fast way round
        counts = torch.bmm(query, keys.mT).mul_(self.counts[t].narrow(1, 0, t + 1).unsqueeze(1))
        found = torch.bmm(counts, keys).squeeze(1)
        if not self.starts_empty:
            found.addcmul_(torch.bmm(query, memory.mT).squeeze(1), self.weights.start[:, t, None])
        return found, counts.squeeze(1)

    def last_memory(self) -> Tensor:
        """A after the last step."""
        counted = self.keys * self.weights.writes[:, -1].unsqueeze(-1)
        if self.starts_empty:
            return torch.bmm(counted.mT, self.keys)
        start = self.memory * self.weights.start[:, -1, None, None]
        return torch.baddbmm(start, counted.mT, self.keys)


class ReadsBackward(Reads):
    """The gradients of all that, from the last step to the first.

    Args:
        keys, queries, memory, weights: as after the forward pass.
        d_memory: the gradient of `last_memory()`, or None.
    """

    def __init__(
        self,
        keys: Tensor,
        queries: Tensor,
        memory: Tensor,
        weights: Weights,
        d_memory: Tensor | None,
    ):
        super().__init__(keys, queries, memory, weights)
        # beside each other, so that one product gives a key's gradient: queries and gradients of what they were given
        B, C, N, H = queries.shape
        self.pairs = queries.new_zeros(B, C, N, 2, H)
        self.pairs[:, :, :, 0] = queries
        self.factors = queries.new_zeros(B, C, C, N, 2)  # [B, τ, t, …]
        scores = torch.bmm(keys, queries.flatten(1, 2).mT).unflatten(2, (C, N))
        torch.mul(scores, weights.writes.mT.unsqueeze(-1), out=self.factors[..., 1])
        self.d_last = d_memory
        self.d_keys = None  # from the last memory
        if d_memory is not None:
            self.d_keys = torch.bmm(keys, d_memory + d_memory.mT) * weights.writes[:, -1].unsqueeze(-1)

    def of_query(self, t: int, n: int, d_read: Tensor) -> Tensor:
        """The gradient of the n-th query of step t, from that of what it was given."""
        self.pairs[:, t, n, 1] = d_read
        found, self.factors[:, : t + 1, t, n, 0] = self._read(t, d_read, self.memory.mT)
        return found

    def of_key(self, t: int) -> Tensor:
        """The gradient of the key of step t, when those of all queries from t on are known."""
        found = torch.bmm(self.factors[:, t, t:].flatten(1).unsqueeze(1), self.pairs[:, t:].flatten(1, 3)).squeeze(1)
        return found if self.d_keys is None else found.add_(self.d_keys[:, t])

    def of_memory(self) -> Tensor:
        """The gradient of A before the first step."""
        queries, d_reads = self.pairs[:, :, :, 0], self.pairs[:, :, :, 1]
        counted = d_reads * self.weights.start[:, :, None, None]
        found = torch.bmm(counted.flatten(1, 2).mT, queries.flatten(1, 2))
        if self.d_last is not None:
            found.addcmul_(self.d_last, self.weights.start[:, -1, None, None])
        return found
