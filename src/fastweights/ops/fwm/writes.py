"""A memory that started empty, kept as what was written to it, for acting one step at a time without gradients.

An agent's episode is short and its rows are many: F `[B, d, d, d]`, read and written whole at each step, would be more
numbers than all that was ever written to it. With Δ_τ what step τ wrote and left_τ what eq. 4 has left of it since,

    F = Σ_τ left_τ (k1_τ ⊗ k2_τ) ⊗ Δ_τ        hence        Fᵀ(x ⊗ y) = Σ_τ left_τ (k1_τ·x) (k2_τ·y) Δ_τ.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from fastweights.ops import cpu
from fastweights.ops.backends import Backend, choose
from fastweights.ops.fwm.cpu import SIZES
from fastweights.ops.layer_norm import EPSILON
from fastweights.ops.tanh import tanh


class Writes(NamedTuple):
    """Up to C writes of B rows; `write_and_read` changes it in place.

    first_keys `[B, S, C]`, second_keys `[B, R, C]`, written Δ `[B, C, V]`, left `[B, C]`, ‖F‖² `[B]`, and the number of
    writes so far, on the CPU.
    """

    first_keys: Tensor
    second_keys: Tensor
    written: Tensor
    left: Tensor
    squared_norm: Tensor
    count: Tensor

    @classmethod
    def none(cls, like: Tensor, B: int, S: int, R: int, V: int, capacity: int) -> Writes:
        """An empty memory with room for `capacity` writes, of the dtype and on the device of `like`."""
        C = cpu.padded(capacity)
        shapes = ((B, S, C), (B, R, C), (B, C, V), (B, C), (B,))
        return cls(*(like.new_zeros(shape) for shape in shapes), torch.zeros((), dtype=torch.int64))


@torch.no_grad()
def write_and_read(
    memory: Writes,
    first_keys: Tensor,
    second_keys: Tensor,
    values: Tensor,
    write_strengths: Tensor,
    first_queries: Tensor,
    second_queries: Tensor,
    *,
    write_scale: float = 1.0,
    tanh_first_query: bool = False,
    tanh_queries: bool = False,
    pairing: str = "product",
    backend: str = "auto",
) -> Tensor:
    """Write one fact and answer a chain of queries, as `fast_weight_memory` does in one step (eq. 3, 4, 7).

    >>> k1, k2, v, n = torch.randn(4, 2, 8).tanh()  # B = 2, S = R = V = 8
    >>> memory = Writes.none(v, 2, 8, 8, 8, capacity=30)
    >>> write_and_read(memory, k1, k2, v, torch.rand(2), n, torch.randn(2, 3, 8).tanh()).shape
    torch.Size([2, 8])

    Args:
        memory: what was written so far; changed in place.
        first_keys, second_keys, values, write_strengths, first_queries, second_queries: as `fast_weight_memory` has
            them, without the dimension of time.
        write_scale, tanh_first_query, tanh_queries: the same.
        pairing: "product" alone.
        backend: "auto", "plain" or "cpu"; "reference" runs plain torch.

    Returns:
        The answers `[B, V]`.

    Raises:
        ValueError: where the memory is full, keys are concatenated, or the backend cannot run.
    """
    count, capacity = int(memory.count), memory.left.shape[1]
    if count == capacity:
        raise ValueError(f"the memory has room for {capacity} writes, and all are made")
    if pairing != "product":
        raise ValueError(f'keys are paired by {pairing}; only a memory of "product" is a sum of its writes')
    first_queries = tanh(first_queries) if tanh_first_query else first_queries
    second_queries = tanh(second_queries) if tanh_queries else second_queries
    asked = (first_keys, second_keys, values, write_strengths * write_scale, first_queries, second_queries)
    backend = "plain" if backend == "reference" else backend  # the definition has no writes to keep
    found = BACKENDS[choose("write_and_read", BACKENDS, backend, [*asked, memory.left])].run(memory, count, *asked)
    memory.count.add_(1)
    return found


def _plain(memory: Writes, count: int, k1: Tensor, k2: Tensor, v: Tensor, beta: Tensor, n: Tensor, e: Tensor) -> Tensor:
    v_old = _answer(memory, count, k1, k2)
    delta = beta.unsqueeze(-1) * (v - v_old)
    memory.first_keys[:, :, count], memory.second_keys[:, :, count] = k1, k2
    memory.written[:, count], memory.left[:, count] = delta, 1
    # ‖F'‖² = ‖F‖² + 2 v_old·Δ + ‖k1‖² ‖k2‖² ‖Δ‖²
    addressed = k1.square().sum(-1) * k2.square().sum(-1)
    norm = memory.squared_norm + 2 * (v_old * delta).sum(-1) + addressed * delta.square().sum(-1)
    memory.left.mul_(norm.clamp(min=1).rsqrt().unsqueeze(-1))
    memory.squared_norm.copy_(norm.clamp(max=1))
    for hop in range(e.shape[1]):
        found = _answer(memory, count + 1, n, e[:, hop])
        n = layer_norm(found, found.shape[-1:], eps=EPSILON)
    return n


def _answer(memory: Writes, count: int, x: Tensor, y: Tensor) -> Tensor:
    """Fᵀ(x ⊗ y) `[B, V]`."""
    similar = [
        torch.bmm(query.unsqueeze(1), keys[:, :, :count])
        for query, keys in ((x, memory.first_keys), (y, memory.second_keys))
    ]
    weights = similar[0] * similar[1] * memory.left[:, None, :count]
    return torch.bmm(weights, memory.written[:, :count]).squeeze(1)


def _compiled(memory: Writes, count: int, k1: Tensor, k2: Tensor, v: Tensor, beta: Tensor, n: Tensor, e: Tensor):
    B, d = v.shape
    outputs = v.new_empty(B, d)
    arguments = cpu.FWMStepArguments(
        B=B, d=d, hops=e.shape[1], threads=torch.get_num_threads(), count=count, capacity=memory.left.shape[1]
    )
    k1, k2, v, n = (cpu.rows(x) for x in (k1, k2, v, n))
    e = e if e.stride()[1:] == (d, 1) else e.contiguous()
    asked = {"k1": k1, "k2": k2, "v": v, "beta": beta, "n": n, "e": e}
    arguments.set(**asked, **{f"{name}_row": x.stride(0) for name, x in asked.items()}, outputs=outputs)
    arguments.set(**{name: x for name, x in memory._asdict().items() if name != "count"})
    cpu.call("fwm_step", arguments)
    return outputs


def _refuses(tensors: Sequence[Tensor] = ()) -> str | None:
    """Why the kernel cannot run (on k1, k2, v, …), or None where it can."""
    sizes = {x.shape[-1] for x in tensors[:3]}
    if tensors and (len(sizes) > 1 or not sizes <= set(SIZES)):
        return f"keys and values must be of one size out of {', '.join(map(str, SIZES))}"
    return cpu.refuses(tensors)


BACKENDS = {"plain": Backend(_plain), "cpu": Backend(_compiled, _refuses)}
