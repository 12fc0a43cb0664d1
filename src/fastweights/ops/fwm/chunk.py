"""The exact chunkwise form in plain torch, with its gradient written out (the derivation is in README.md beside this).

Within a chunk of C steps that starts from the memory F_0:

    Δ_t            what step t writes at its address u_t, β (v_t − v_old_t)
    before[t, j]   the remaining scale of write j (column 0: of F_0) just before write t
    after[t, j]    the same after step t

Both are products of the factors 1 / max(1, ‖F'‖) ≤ 1 of eq. 4, so nothing is ever divided by a small number.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from fastweights.ops.differentiable import Named, gradients_like, unless_full
from fastweights.ops.fwm.pairing import PAIRINGS, empty_memory, similarities
from fastweights.ops.fwm.reference import DEFINITION
from fastweights.ops.layer_norm import EPSILON, normalize, normalize_backward

CHUNK_SIZE = 50


class _Reads:
    """The positions of a chunk where an output is needed: each row's own list, padded to the longest `[B, P]`."""

    def __init__(self, output_mask: Tensor | None):
        self.everywhere = output_mask is None
        if output_mask is not None:
            count = int(output_mask.sum(1).max())
            self.where = torch.argsort(output_mask.to(torch.uint8), dim=1, descending=True, stable=True)[:, :count]
            self.real = output_mask.gather(1, self.where)
        self.any = self.everywhere or self.where.shape[1] > 0

    def count(self, length: int) -> int:
        """How many positions P the lists have, in a chunk of `length` steps."""
        return length if self.everywhere else self.where.shape[1]

    def gather(self, x: Tensor) -> Tensor:
        """Pick `[B, P, …]` from `[B, C, …]`."""
        if self.everywhere:
            return x.contiguous()
        return x.gather(1, self._index(x))

    def gather_masked(self, x: Tensor) -> Tensor:
        """Pick, with zeros at the padding of the lists."""
        if self.everywhere:
            return x
        return self.gather(x) * self.real.view(*self.real.shape, *[1] * (x.ndim - 2))

    def put(self, x: Tensor, target: Tensor) -> None:
        """Write `[B, P, …]` to its places in `[B, C, …]`; the lists' padding writes nothing."""
        if self.everywhere:
            target.copy_(x)
        else:
            x = x * self.real.view(*self.real.shape, *[1] * (x.ndim - 2))
            target.scatter_add_(1, self._index(x), x)

    def _index(self, x: Tensor) -> Tensor:
        shape = (*self.where.shape, *[1] * (x.ndim - 2))
        return self.where.view(shape).expand(*self.where.shape, *x.shape[2:])


def _scan_writes(
    gram: Tensor, read_outs: Tensor, values: Tensor, strengths: Tensor, squared_norm: Tensor,
    mask: Tensor | None, keep: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Find what each step of a chunk writes; the only sequential part, on the read-outs of the chunk's keys.

    Time first here, so that each step's vectors lie together. gram `[C, C, B, 1]`; read_outs `[C, B, V]` holds F_0ᵀ u_t
    and is overwritten with v_old; values `[C, B, V]`; strengths, mask, keep `[C, B, 1]`; squared_norm `[B, 1]` of F_0.
    Returns Δ `[C, B, V]`, the factors 1 / max(1, ‖F'‖) `[C, B, 1]`, and the squared norm at the end.
    """
    written = torch.empty_like(values)
    factors = torch.empty_like(strengths)
    half_self = gram.diagonal().permute(2, 0, 1) / 2  # ‖u‖² / 2
    n = squared_norm
    steps = zip(*(x.unbind(0) for x in (read_outs, values, strengths, half_self, written, factors)), strict=True)
    for t, (v_old, v, beta, half, delta, factor) in enumerate(steps):
        if keep is not None:
            read_outs[t:] *= keep[t]
            n = n * keep[t]
        torch.sub(v, v_old, out=delta).mul_(beta)
        # ‖F'‖² = ‖F‖² + 2 (v_old + ‖u‖² Δ / 2)·Δ
        n = n.add(torch.addcmul(v_old, half, delta).mul_(delta).sum(-1, keepdim=True), alpha=2)
        torch.clamp(n, min=1, out=factor).rsqrt_()
        if mask is not None:
            factor.masked_fill_(~mask[t], 1)
            n = n * factor.square()
        else:
            n.clamp_(max=1)
        later = read_outs[t + 1 :]
        later.addcmul_(gram[t, t + 1 :], delta).mul_(factor)
    return written, factors, n


def _decays(factors: Tensor, keep: Tensor | None) -> Tensor:
    """Remaining scales of all writes (column 0: of F_0) after t steps `[B, C + 1, C + 1]`, from factors `[C, B, 1]`."""
    C, B, _ = factors.shape
    steps = torch.ones(B, C + 1, C + 1, dtype=factors.dtype, device=factors.device)
    steps[:, 1:] = (factors if keep is None else factors * keep).permute(1, 0, 2)
    if keep is not None:  # a reset comes before the write of its own step
        steps.diagonal(dim1=1, dim2=2)[:, 1:] = factors[..., 0].T
    above = torch.ones_like(steps[0], dtype=torch.bool).triu(1)
    return steps.masked_fill_(above, 1).cumprod(1).masked_fill_(above, 0)


def _time_first(x: Tensor) -> Tensor:
    """`[B, C]` or `[B, C, V]` as `[C, B, 1]` or `[C, B, V]`, in one piece."""
    return (x.unsqueeze(-1) if x.ndim == 2 else x).transpose(0, 1).contiguous()


class _Chunk:
    """The part of the arguments x that belongs to the chunk of index c."""

    def __init__(self, x: Named, output_mask: Tensor | None, c: int):
        T = x.values.shape[1]
        self.step = step = slice(c * x.chunk, min((c + 1) * x.chunk, T))
        self.length = step.stop - step.start
        self.k1, self.k2 = x.first_keys[:, step].contiguous(), x.second_keys[:, step].contiguous()
        self.keep = None if x.resets is None else ~x.resets[:, step]
        self.read = _Reads(None if output_mask is None else output_mask[:, step])


def _empty(x: Named, keep: bool) -> dict[str, Tensor]:
    """For the gradient: F_0 of each chunk, v_old, Δ, decays, retrieved values."""
    (B, T, V), C, new = x.values.shape, x.chunk, x.values.new_empty
    chunks = -(-T // C) if keep else 0
    return {
        "outputs": new(B, T, V),
        "last_memory": new(x.memory.shape),
        "starts": new(chunks, *x.memory.shape),
        "old": new(T, B, V),
        "written": new(T, B, V),
        "decays": new(chunks, B, C + 1, C + 1),
        "retrieved": new(B, T if keep else 0, x.second_queries.shape[2], V),
    }


def _forward(x: Named, keep: bool) -> dict[str, Tensor]:
    pair, found = PAIRINGS[x.pairing], _empty(x, keep)
    mask, output_mask = unless_full(x.mask), unless_full(x.output_mask)
    starts, old = found["starts"], found["old"]
    if output_mask is not None:
        found["outputs"].zero_()
        found["retrieved"].zero_()
    F = starts[0].copy_(x.memory) if keep else x.memory
    squared_norm = F.square().sum((1, 2)).unsqueeze(-1)
    chunks = -(-x.values.shape[1] // x.chunk)
    for c in range(chunks):
        chunk = _Chunk(x, output_mask, c)
        step, keeps = chunk.step, None if chunk.keep is None else _time_first(chunk.keep)
        u, gram = pair.join(chunk.k1, chunk.k2), pair.combine(similarities(*[chunk.k1, chunk.k2] * 2))
        old[step] = (u @ F).transpose(0, 1)
        delta, factors, squared_norm = _scan_writes(
            gram.permute(2, 1, 0).contiguous().unsqueeze(-1),
            old[step],
            _time_first(x.values[:, step]),
            _time_first(x.write_strengths[:, step]),
            squared_norm,
            None if mask is None else _time_first(mask[:, step]),
            keeps,
        )
        found["written"][step] = delta
        delta = delta.transpose(0, 1)
        decay = _decays(factors, keeps)
        if keep:
            found["decays"][c, :, : chunk.length + 1, : chunk.length + 1] = decay
        if chunk.read.any:
            n, retrieved = _read(x, chunk, F, decay, delta)
            chunk.read.put(n, found["outputs"][:, step])
            if keep:
                chunk.read.put(torch.stack(retrieved, 2), found["retrieved"][:, step])
        last = decay[:, -1]
        F_next = starts[c + 1] if keep and c + 1 < chunks else torch.empty_like(x.memory)
        F = torch.mul(F, last[:, :1, None], out=F_next).baddbmm_(u.mT, last[:, 1:, None] * delta)
    return found | {"last_memory": F}


def _read(x: Named, chunk: _Chunk, F: Tensor, decay: Tensor, delta: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The outputs of a chunk's reads, and what each hop retrieved before its layer norm."""
    pair, read = PAIRINGS[x.pairing], chunk.read
    remaining = read.gather(decay[:, 1:])
    n, e = read.gather(x.first_queries[:, chunk.step]), read.gather(x.second_queries[:, chunk.step])
    retrieved = []
    for i in range(e.shape[2]):
        query = e[:, :, i].contiguous()
        y = (pair.join(n, query) @ F).mul_(remaining[..., :1])
        y += pair.combine(similarities(n, query, chunk.k1, chunk.k2)).mul_(remaining[..., 1:]) @ delta
        retrieved.append(y)
        n = _normalised(y)
    return n, retrieved


class _Room:
    """Buffers for one chunk at a time: allocating them for each costs more than what is done with them."""

    def __init__(self, x: Named):
        B, K, _ = x.memory.shape
        positions = x.chunk * (1 + x.second_queries.shape[2])
        self.addresses = x.values.new_empty(B, positions, K)
        self.products = x.values.new_empty(B * x.chunk, K)

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        """The batched product of a `[B, P, V]` and b `[B, V, K]`, in the room of the one before."""
        B, P, _ = a.shape
        return torch.bmm(a, b, out=self.products[: B * P].view(B, P, -1))


def _backward(x: Named, kept: Named, d: Named, wanted: Named) -> dict[str, Tensor]:
    """Names as in README.md: Φ for ∂F, ε, H and φ for the terms of the norm."""
    output_mask = unless_full(x.output_mask)
    found = gradients_like(x)
    found["first_queries"].zero_()
    found["second_queries"].zero_()
    d_outputs = torch.zeros_like(x.values) if d.outputs is None else d.outputs
    Phi = torch.zeros_like(kept.last_memory) if d.last_memory is None else d.last_memory.clone()
    phi = torch.linalg.vecdot(Phi.flatten(1), kept.last_memory.flatten(1)).unsqueeze(-1)
    room = _Room(x)
    for c in reversed(range(kept.starts.shape[0])):
        chunk = _Chunk(x, output_mask, c)
        phi = _chunk_backward(x, kept, chunk, c, d_outputs, Phi, phi, room, found)
    return found | {"memory": Phi}


def _chunk_backward(
    x: Named, kept: Named, chunk: _Chunk, c: int, d_outputs: Tensor, Phi: Tensor, phi: Tensor, room: _Room,
    found: dict[str, Tensor],
) -> Tensor:  # fmt: skip
    """Fill in a chunk's gradients, bring Φ to the chunk's start in place, and return φ there."""
    pair, step, length, k1, k2 = PAIRINGS[x.pairing], chunk.step, chunk.length, chunk.k1, chunk.k2
    F, old, delta = kept.starts[c], kept.old[step].transpose(0, 1), kept.written[step].transpose(0, 1)
    decay = kept.decays[c, :, : length + 1, : length + 1]
    keep = None if chunk.keep is None else chunk.keep.unsqueeze(-1)
    before = decay[:, :-1] if keep is None else decay[:, :-1] * keep
    among_keys = similarities(k1, k2, k1, k2)
    gram = pair.combine(among_keys)

    # what is added to ∂F_0, all in one product at the end: at which addresses, and what
    added = length + x.second_queries.shape[2] * chunk.read.count(length)
    addresses, arrived = room.addresses[:, :added], F.new_empty(F.shape[0], added, F.shape[2])
    u = pair.join_into(addresses[:, :length], k1, k2)
    d_delta = (u @ Phi).mul_(decay[:, -1, 1:, None])
    radial, key_gradients = x.values.new_zeros(u.shape[:2]), []  # radial: ⟨y, ∂L/∂y⟩ of the reads at each step
    if chunk.read.any:
        retrieved = chunk.read.gather(kept.retrieved[:, step])
        d_out = chunk.read.gather_masked(d_outputs[:, step])
        of_reads = (addresses[:, length:], arrived[:, length:])
        key_gradients = _reads_backward(
            x, chunk, F, decay, delta, retrieved, d_out, *of_reads, room, d_delta, radial, found
        )

    strengths = x.write_strengths[:, step].unsqueeze(-1)
    d_delta = _time_first(d_delta)
    epsilon, Hs, phi = _scan_gradients(
        (before[:, :, 1:] * gram).permute(1, 2, 0).contiguous().unsqueeze(-1),
        d_delta,
        kept.written[step],
        _time_first(torch.addcmul(old, gram.diagonal(dim1=1, dim2=2).unsqueeze(-1), delta)),
        _time_first(torch.addcmul(delta, strengths, old)),
        _time_first(strengths),
        _time_first(decay.diagonal(dim1=1, dim2=2)[:, 1:]),
        _time_first(radial),
        phi,
        None if keep is None else _time_first(keep),
    )
    d_delta, epsilon = d_delta.transpose(0, 1), epsilon.transpose(0, 1)
    torch.mul(strengths, d_delta, out=found["values"][:, step])
    found["write_strengths"][:, step] = torch.linalg.vecdot(d_delta, x.values[:, step] - old)

    start_epsilon = torch.mul(before[:, :, :1], epsilon, out=arrived[:, :length])
    d_u = room.product(decay[:, -1, 1:, None] * delta, Phi.mT).baddbmm_(start_epsilon, F.mT)
    lower = (epsilon @ delta.mT).mul_(before[:, :, 1:])
    weights = lower + lower.mT
    weights.diagonal(dim1=1, dim2=2).sub_(Hs[..., 0].T * torch.linalg.vecdot(delta, delta))
    key_gradients += [pair.split(d_u, k1, k2), pair.pull(weights, among_keys, k1, k2)]
    for name, parts in zip(("first_keys", "second_keys"), zip(*key_gradients, strict=True), strict=True):
        found[name][:, step] = sum(parts)

    H = Hs[0] if keep is None else Hs[0] * keep[:, 0]
    Phi *= decay[:, -1, :1, None]
    Phi.addcmul_(F, H.unsqueeze(-1), value=-1)
    Phi.baddbmm_(addresses.mT, arrived)
    return phi


def _reads_backward(
    x: Named, chunk: _Chunk, F: Tensor, decay: Tensor, delta: Tensor, retrieved: Tensor, d_out: Tensor,
    addresses: Tensor, arrived: Tensor, room: _Room, d_delta: Tensor, radial: Tensor, found: dict[str, Tensor],
) -> list[tuple[Tensor, Tensor]]:  # fmt: skip
    """Run a chunk's hops backwards, last first: fill in the gradients of its queries, and add to ∂Δ and ⟨y, ∂y⟩.

    retrieved `[B, P, N, V]` and d_out `[B, P, V]` are at the positions that are read, addresses and arrived
    `[B, N·P, …]` what the reads add to ∂F_0. Returns gradients of both keys, to be summed.
    """
    pair, read, k1, k2 = PAIRINGS[x.pairing], chunk.read, chunk.k1, chunk.k2
    remaining = read.gather(decay[:, 1:])
    n0, e = (read.gather(y[:, chunk.step]) for y in (x.first_queries, x.second_queries))
    e_gradient, radial_read, key_gradients = torch.empty_like(e), torch.zeros_like(remaining[..., 0]), []
    P = n0.shape[1]
    for i in reversed(range(e.shape[2])):
        y, query, place = retrieved[:, :, i].contiguous(), e[:, :, i].contiguous(), slice(i * P, (i + 1) * P)
        n = n0 if i == 0 else _normalised(retrieved[:, :, i - 1])
        d_y = normalize_backward(d_out, y, None, None, *normalize(y, None, None)[1:])
        radial_read += torch.linalg.vecdot(y, d_y)
        halves = similarities(n, query, k1, k2)
        weights = pair.combine(halves).mul_(remaining[..., 1:])
        d_delta += weights.mT @ d_y
        pair.join_into(addresses[:, place], n, query)
        scaled = torch.mul(d_y, remaining[..., :1], out=arrived[:, place])
        coefficients = (d_y @ delta.mT).mul_(remaining[..., 1:])
        d_first, d_second = pair.split(room.product(scaled, F.mT), n, query)
        more_first, more_second = pair.pull(coefficients, halves, k1, k2)
        d_out = d_first + more_first
        e_gradient[:, :, i] = d_second + more_second
        key_gradients.append(pair.pull(coefficients.mT, (halves[0].mT, halves[1].mT), n, query))
    read.put(d_out, found["first_queries"][:, chunk.step])
    read.put(e_gradient, found["second_queries"][:, chunk.step])
    read.put(radial_read, radial)
    return key_gradients


def _scan_gradients(
    later: Tensor, d_delta: Tensor, delta: Tensor, read_after: Tensor, pulled: Tensor, strengths: Tensor,
    factors: Tensor, radial: Tensor, phi: Tensor, keep: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Run a chunk's steps backwards, time first: the sequential part of the gradient.

    later `[C, C, B, 1]` says how much write s was met by the key of t > s (`later[t, s]`); `d_delta` `[C, B, V]` is
    completed in place; read_after is F'ᵀu, pulled Δ + β v_old `[C, B, V]`; radial `[C, B, 1]` and phi `[B, 1]` are
    ⟨F, ∂F⟩ of the reads and of what comes later. Returns ε `[C, B, V]`, H `[C, B, 1]`, and φ of the chunk's start.
    """
    epsilon, Hs = torch.empty_like(delta), torch.empty_like(factors)
    # eq. 4 acted where it scaled; where ‖F'‖ = 1 exactly, scaling or not are the same
    free = (factors == 1).to(factors.dtype)
    squared = factors.square()
    H = torch.zeros_like(phi)
    parts = (d_delta, delta, read_after, pulled, -strengths, squared, free, radial, epsilon, Hs)
    steps = list(enumerate(zip(*(x.unbind(0) for x in parts), strict=True)))
    for t, (gradient, d, a, p, minus_beta, f, not_clamped, r, eps, H_t) in reversed(steps):
        phi = phi + r
        passed = phi * not_clamped
        torch.add(H, phi - passed, out=H_t).mul_(f)
        gradient.addcmul_(H_t, a, value=-1)
        torch.mul(minus_beta, gradient, out=eps).addcmul_(H_t, d, value=-1)
        phi = passed - (gradient * p).sum(-1, keepdim=True)
        H = H_t
        if keep is not None:
            phi, H = phi * keep[t], H * keep[t]
        d_delta[:t].addcmul_(later[t, :t], eps)
    return epsilon, Hs, phi


def _normalised(y: Tensor) -> Tensor:
    return layer_norm(y, y.shape[-1:], eps=EPSILON)


_fwm = DEFINITION.implement(
    "fwm_chunk", _forward, _backward, saved="last_memory starts old written decays retrieved", empty=_empty
)


def chunkwise(*arguments: Any, chunk: int = CHUNK_SIZE) -> tuple[Tensor, Tensor]:
    """The exact chunkwise form in plain torch: any device, any dtype, no compiler needed.

    Arguments as of `reference`.
    """
    x = DEFINITION.Arguments(*arguments, max(1, min(chunk, arguments[0].shape[1])))
    if x.memory is None:
        x = x._replace(memory=empty_memory(x.first_keys, x.second_keys, x.values, x.pairing))
    if x.mask is not None:  # a step at which no time passes writes nothing
        x = x._replace(write_strengths=x.write_strengths * x.mask)
    return _fwm(*x)
