"""A log of the writes to a fast weight memory, for inference one step at a time (no gradients).

The rows of a rollout are many and their episodes short: F `[B, d, d, d]`, read and written whole at each step, would be
more numbers than all writes. With Δ_τ the write of step τ and decay_τ its remaining scale (eq. 4),

    F = Σ_τ decay_τ (k1_τ ⊗ k2_τ) ⊗ Δ_τ,        Fᵀ(x ⊗ y) = Σ_τ decay_τ (k1_τ·x) (k2_τ·y) Δ_τ.
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


class WriteLog(NamedTuple):
    """Up to C writes of B rows; `write_and_read` appends in place.

    Attributes:
        first_keys: `[B, S, C]`.
        second_keys: `[B, R, C]`.
        written: Δ `[B, C, V]`.
        decay: the remaining scale of each write `[B, C]`.
        squared_norm: ‖F‖² `[B]`.
        num_writes: the number of writes so far, a scalar on the CPU.
    """

    first_keys: Tensor
    second_keys: Tensor
    written: Tensor
    decay: Tensor
    squared_norm: Tensor
    num_writes: Tensor

    def room(self) -> tuple[int, int]:
        """The number of writes so far, and of those that there is room for.

        Raises:
            ValueError: where the log is full.
        """
        count, capacity = int(self.num_writes), self.decay.shape[1]
        if count == capacity:
            raise ValueError(f"the memory has room for {capacity} writes, and all are made")
        return count, capacity

    @classmethod
    def empty(cls, like: Tensor, B: int, S: int, R: int, V: int, capacity: int) -> WriteLog:
        """An empty log for `capacity` writes, of the dtype and on the device of `like`."""
        C, new = cpu.padded(capacity), like.new_zeros
        num_writes = torch.zeros((), dtype=torch.int64)
        return cls(new(B, S, C), new(B, R, C), new(B, C, V), new(B, C), new(B), num_writes)


@torch.no_grad()
def write_and_read(
    memory: WriteLog,
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
    """Write one fact and read with a chain of queries, as `fast_weight_memory` does in one step (eq. 3, 4, 7).

    >>> k1, k2, v, n = torch.randn(4, 2, 8).tanh()  # B = 2, S = R = V = 8
    >>> memory = WriteLog.empty(v, 2, 8, 8, 8, capacity=30)
    >>> write_and_read(memory, k1, k2, v, torch.rand(2), n, torch.randn(2, 3, 8).tanh()).shape
    torch.Size([2, 8])

    Args:
        memory: the log; changed in place.
        first_keys, second_keys, values, write_strengths, first_queries, second_queries: as for
            `fast_weight_memory`, without the time dimension.
        write_scale, tanh_first_query, tanh_queries: the same.
        pairing: "product" alone.
        backend: "auto", "plain" or "cpu"; "reference" runs plain torch.

    Returns:
        The read-outs `[B, V]`.

    Raises:
        ValueError: if the log is full, keys are concatenated, or the backend cannot run.
    """
    count, _ = memory.room()
    if pairing != "product":
        raise ValueError(f'keys are paired by {pairing}; only a memory of "product" is a sum of its writes')
    first_queries = tanh(first_queries) if tanh_first_query else first_queries
    second_queries = tanh(second_queries) if tanh_queries else second_queries
    step = (first_keys, second_keys, values, write_strengths * write_scale, first_queries, second_queries)
    backend = "plain" if backend == "reference" else backend  # the definition has no log
    chosen = choose("write_and_read", BACKENDS, backend, [*step, memory.decay], device=values.device.type)
    found = BACKENDS[chosen].load()(memory, count, *step)
    memory.num_writes.add_(1)
    return found


def _plain(memory: WriteLog, count: int, *step: Tensor) -> Tensor:
    k1, k2, v, beta, n, e = step
    v_old = _read(memory, count, k1, k2)
    delta = beta.unsqueeze(-1) * (v - v_old)
    memory.first_keys[:, :, count], memory.second_keys[:, :, count] = k1, k2
    memory.written[:, count], memory.decay[:, count] = delta, 1
    # ‖F'‖² = ‖F‖² + 2 v_old·Δ + ‖k1‖² ‖k2‖² ‖Δ‖²
    addressed = k1.square().sum(-1) * k2.square().sum(-1)
    norm = memory.squared_norm + 2 * (v_old * delta).sum(-1) + addressed * delta.square().sum(-1)
    memory.decay.mul_(norm.clamp(min=1).rsqrt().unsqueeze(-1))
    memory.squared_norm.copy_(norm.clamp(max=1))
    for hop in range(e.shape[1]):
        found = _read(memory, count + 1, n, e[:, hop])
        n = layer_norm(found, found.shape[-1:], eps=EPSILON)
    return n


def _read(memory: WriteLog, count: int, x: Tensor, y: Tensor) -> Tensor:
    """Fᵀ(x ⊗ y) `[B, V]`."""
    similar = [
        torch.bmm(query.unsqueeze(1), keys[:, :, :count])
        for query, keys in ((x, memory.first_keys), (y, memory.second_keys))
    ]
    weights = similar[0] * similar[1] * memory.decay[:, None, :count]
    return torch.bmm(weights, memory.written[:, :count]).squeeze(1)


def _compiled(memory: WriteLog, count: int, *step: Tensor) -> Tensor:
    k1, k2, v, beta, n, e = step
    B, d = v.shape
    outputs = v.new_empty(B, d)
    arguments = cpu.FWMStepArguments(
        B=B, d=d, hops=e.shape[1], threads=torch.get_num_threads(), count=count, capacity=memory.decay.shape[1]
    )
    k1, k2, v, n = (cpu.rows(x) for x in (k1, k2, v, n))
    e = e if e.stride()[1:] == (d, 1) else e.contiguous()
    vectors = {"k1": k1, "k2": k2, "v": v, "beta": beta, "n": n, "e": e}
    arguments.set(**vectors, **{f"{name}_row": x.stride(0) for name, x in vectors.items()}, outputs=outputs)
    arguments.set(**{name: x for name, x in memory._asdict().items() if name != "num_writes"})
    cpu.call("fwm_step", arguments)
    return outputs


def _unsupported_reason(device: str, tensors: Sequence[Tensor] = ()) -> str | None:
    """Why the kernel cannot run on a device (with k1, k2, v, …), or None where it can."""
    sizes = {x.shape[-1] for x in tensors[:3]}
    if tensors and (len(sizes) > 1 or not sizes <= set(SIZES)):
        return f"keys and values must be of one size out of {', '.join(map(str, SIZES))}"
    return cpu.unsupported_reason(device, tensors)


BACKENDS = {"plain": Backend(_plain), "cpu": Backend(_compiled, _unsupported_reason)}
