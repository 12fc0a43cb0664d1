"""The exact chunkwise form in plain torch, with its gradient written out (the derivation is in README.md beside this).

Within a chunk of C steps that starts from the memory F_0:

    Δ_t            what step t writes at its address u_t, β (v_t − v_old_t)
    before[t, j]   how much of write j (column 0: of F_0) is left just before write t
    after[t, j]    how much of it is left after step t

Both are products of the factors 1 / max(1, ‖F'‖) ≤ 1 of eq. 4, so nothing is ever divided by a small number.
"""

import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from fastweights.ops.derivatives import in_full_precision, of_definition
from fastweights.ops.fwm.pairing import PAIRINGS, empty_memory, similarities
from fastweights.ops.fwm.reference import LAYER_NORM_EPSILON, reference

CHUNK_SIZE = 50


class _Reads:
    """The positions of a chunk where an answer is needed: each row's own list, padded to the longest `[B, P]`."""

    def __init__(self, output_mask: Tensor | None):
        self.everywhere = output_mask is None
        if output_mask is not None:
            count = int(output_mask.sum(1).max())
            self.where = torch.argsort(output_mask.to(torch.uint8), dim=1, descending=True, stable=True)[:, :count]
            self.real = output_mask.gather(1, self.where)
        self.any = self.everywhere or self.where.shape[1] > 0

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
    gram: Tensor, answers: Tensor, values: Tensor, strengths: Tensor, squared_norm: Tensor,
    mask: Tensor | None, keep: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Find what each step of a chunk writes; the only sequential part, on what the memory answers to the chunk's keys.

    Time first here, so that each step's vectors lie together. gram `[C, C, B, 1]`; answers `[C, B, V]` holds F_0ᵀ u_t
    and is overwritten with v_old; values `[C, B, V]`; strengths, mask, keep `[C, B, 1]`; squared_norm `[B, 1]` of F_0.
    Returns Δ `[C, B, V]`, the factors 1 / max(1, ‖F'‖) `[C, B, 1]`, and the squared norm at the end.
    """
    written = torch.empty_like(values)
    factors = torch.empty_like(strengths)
    half_self = gram.diagonal().permute(2, 0, 1) / 2  # ‖u‖² / 2
    n = squared_norm
    steps = zip(*(x.unbind(0) for x in (answers, values, strengths, half_self, written, factors)), strict=True)
    for t, (v_old, v, beta, half, delta, factor) in enumerate(steps):
        if keep is not None:
            answers[t:] *= keep[t]
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
        later = answers[t + 1 :]
        later.addcmul_(gram[t, t + 1 :], delta).mul_(factor)
    return written, factors, n


def _decays(factors: Tensor, keep: Tensor | None) -> Tensor:
    """What is left of each write (column 0: of F_0) after t steps `[B, C + 1, C + 1]`; factors are `[C, B, 1]`."""
    C, B, _ = factors.shape
    steps = torch.ones(B, C + 1, C + 1, dtype=factors.dtype, device=factors.device)
    steps[:, 1:] = (factors if keep is None else factors * keep).permute(1, 0, 2)
    if keep is not None:  # a reset comes before the write of its own step
        steps.diagonal(dim1=1, dim2=2)[:, 1:] = factors[..., 0].T
    above = torch.ones_like(steps[0], dtype=torch.bool).triu(1)
    return steps.masked_fill_(above, 1).cumprod(1).masked_fill_(above, 0)


def _time_first(x: Tensor | None) -> Tensor | None:
    """`[B, C]` or `[B, C, V]` as `[C, B, 1]` or `[C, B, V]`, in one piece."""
    if x is None:
        return None
    return (x.unsqueeze(-1) if x.ndim == 2 else x).transpose(0, 1).contiguous()


@torch.library.custom_op("fastweights::fwm_chunk", mutates_args=())
def _forward(
    first_keys: Tensor,
    second_keys: Tensor,
    values: Tensor,
    write_strengths: Tensor,
    first_queries: Tensor,
    second_queries: Tensor,
    memory: Tensor,
    output_mask: Tensor | None,
    mask: Tensor | None,
    resets: Tensor | None,
    pairing: str,
    chunk_size: int,
    keep_for_backward: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Answers, final memory, and for the gradient: F_0 of each chunk, v_old, Δ, decays, retrieved values."""
    pair = PAIRINGS[pairing]
    B, T, V = values.shape
    hops = second_queries.shape[2]
    mask, output_mask = (None if x is None or bool(x.all()) else x for x in (mask, output_mask))
    outputs = values.new_zeros(B, T, V) if output_mask is not None else values.new_empty(B, T, V)
    chunks = -(-T // chunk_size)
    saved = chunks if keep_for_backward else 0
    starts = values.new_empty(saved, *memory.shape)
    old, written = values.new_empty(T, B, V), values.new_empty(T, B, V)
    decays = values.new_empty(saved, B, chunk_size + 1, chunk_size + 1)
    retrieved = values.new_empty(B, T if keep_for_backward else 0, hops, V)
    if output_mask is not None:
        retrieved.zero_()
    F = starts[0].copy_(memory) if saved else memory
    squared_norm = F.square().sum((1, 2)).unsqueeze(-1)
    for c in range(chunks):
        step = slice(c * chunk_size, min((c + 1) * chunk_size, T))
        length = step.stop - step.start
        k1, k2 = first_keys[:, step].contiguous(), second_keys[:, step].contiguous()
        keep = None if resets is None else _time_first(~resets[:, step])
        u, gram = pair.join(k1, k2), pair.combine(similarities(k1, k2, k1, k2))
        old[step] = (u @ F).transpose(0, 1)
        delta, factors, squared_norm = _scan_writes(
            gram.permute(2, 1, 0).contiguous().unsqueeze(-1),
            old[step],
            _time_first(values[:, step]),
            _time_first(write_strengths[:, step]),
            squared_norm,
            None if mask is None else _time_first(mask[:, step]),
            keep,
        )
        written[step] = delta
        delta = delta.transpose(0, 1)
        decay = _decays(factors, keep)
        if keep_for_backward:
            decays[c, :, : length + 1, : length + 1] = decay
        read = _Reads(None if output_mask is None else output_mask[:, step])
        if read.any:
            left = read.gather(decay[:, 1:])
            n, e = read.gather(first_queries[:, step]), read.gather(second_queries[:, step])
            found = []
            for i in range(hops):
                query = e[:, :, i].contiguous()
                y = (pair.join(n, query) @ F).mul_(left[..., :1])
                y += pair.combine(similarities(n, query, k1, k2)).mul_(left[..., 1:]) @ delta
                found.append(y)
                n = _normalised(y)
            read.put(n, outputs[:, step])
            if keep_for_backward:
                read.put(torch.stack(found, 2), retrieved[:, step])
        last = decay[:, -1]
        F_next = starts[c + 1] if c + 1 < saved else torch.empty_like(memory)
        F = torch.mul(F, last[:, :1, None], out=F_next).baddbmm_(u.mT, last[:, 1:, None] * delta)
    return outputs, F, starts, old, written, decays, retrieved


@_forward.register_fake
def _(
    first_keys, second_keys, values, write_strengths, first_queries, second_queries, memory,
    output_mask, mask, resets, pairing, chunk_size, keep_for_backward,
):  # fmt: skip
    B, T, V = values.shape
    saved = -(-T // chunk_size) if keep_for_backward else 0
    return (
        values.new_empty(B, T, V),
        torch.empty_like(memory),
        values.new_empty(saved, *memory.shape),
        values.new_empty(T, B, V),
        values.new_empty(T, B, V),
        values.new_empty(saved, B, chunk_size + 1, chunk_size + 1),
        values.new_empty(B, T if keep_for_backward else 0, second_queries.shape[2], V),
    )


@torch.library.custom_op("fastweights::fwm_chunk_backward", mutates_args=())
def _backward(
    outputs_gradient: Tensor,
    memory_gradient: Tensor,
    first_keys: Tensor,
    second_keys: Tensor,
    values: Tensor,
    write_strengths: Tensor,
    first_queries: Tensor,
    second_queries: Tensor,
    final_memory: Tensor,
    output_mask: Tensor | None,
    mask: Tensor | None,
    resets: Tensor | None,
    starts: Tensor,
    old: Tensor,
    written: Tensor,
    decays: Tensor,
    retrieved: Tensor,
    pairing: str,
    chunk_size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the seven tensors; names as in README.md: Φ for ∂F, ε, H and φ for the terms of the norm."""
    pair = PAIRINGS[pairing]
    B, T, V = values.shape
    hops = second_queries.shape[2]
    output_mask = None if output_mask is None or bool(output_mask.all()) else output_mask
    d_k1, d_k2 = torch.empty_like(first_keys), torch.empty_like(second_keys)
    d_v, d_strength = torch.empty_like(values), torch.empty_like(write_strengths)
    d_n, d_e = torch.zeros_like(first_queries), torch.zeros_like(second_queries)
    Phi = memory_gradient.clone()
    phi = torch.linalg.vecdot(Phi.flatten(1), final_memory.flatten(1)).unsqueeze(-1)
    # once for all chunks: such blocks anew each time cost more than what is done with them
    K = memory_gradient.shape[1]
    all_addresses, products = values.new_empty(B, chunk_size * (1 + hops), K), values.new_empty(B * chunk_size, K)
    for c in reversed(range(starts.shape[0])):
        step = slice(c * chunk_size, min((c + 1) * chunk_size, T))
        length = step.stop - step.start
        F, o, delta = starts[c], old[step].transpose(0, 1), written[step].transpose(0, 1)
        decay = decays[c, :, : length + 1, : length + 1]
        keep = None if resets is None else ~resets[:, step].unsqueeze(-1)
        before = decay[:, :-1] if keep is None else decay[:, :-1] * keep
        k1, k2 = first_keys[:, step].contiguous(), second_keys[:, step].contiguous()
        read = _Reads(None if output_mask is None else output_mask[:, step])
        # what is added to ∂F_0, all in one product at the end: at which addresses, and what
        added = length + hops * (length if output_mask is None else read.where.shape[1])
        addresses, arrived = all_addresses[:, :added], F.new_empty(B, added, V)
        u, among_keys = pair.join_into(addresses[:, :length], k1, k2), similarities(k1, k2, k1, k2)
        gram = pair.combine(among_keys)

        d_delta = (u @ Phi).mul_(decay[:, -1, 1:, None])
        radial = values.new_zeros(B, length)  # ⟨y, ∂L/∂y⟩ of the reads at each step
        key_gradients = []
        if read.any:
            left = read.gather(decay[:, 1:])
            n0, e, found = (read.gather(x[:, step]) for x in (first_queries, second_queries, retrieved))
            d_out = read.gather_masked(outputs_gradient[:, step])
            e_gradient = torch.empty_like(e)
            radial_read = torch.zeros_like(left[..., 0])
            for i in reversed(range(hops)):
                y, query = found[:, :, i].contiguous(), e[:, :, i].contiguous()
                n = n0 if i == 0 else _normalised(found[:, :, i - 1])
                d_y = _normalised_backward(d_out, y)
                radial_read += torch.linalg.vecdot(y, d_y)
                halves = similarities(n, query, k1, k2)
                weights = pair.combine(halves).mul_(left[..., 1:])
                d_delta += weights.mT @ d_y
                place = slice(length + i * n.shape[1], length + (i + 1) * n.shape[1])
                pair.join_into(addresses[:, place], n, query)
                scaled = torch.mul(d_y, left[..., :1], out=arrived[:, place])
                coefficients = (d_y @ delta.mT).mul_(left[..., 1:])
                product = torch.bmm(scaled, F.mT, out=products[: B * n.shape[1]].view(B, -1, K))
                d_first, d_second = pair.split(product, n, query)
                more_first, more_second = pair.pull(coefficients, halves, k1, k2)
                d_out = d_first + more_first
                e_gradient[:, :, i] = d_second + more_second
                key_gradients.append(pair.pull(coefficients.mT, (halves[0].mT, halves[1].mT), n, query))
            read.put(d_out, d_n[:, step])
            read.put(e_gradient, d_e[:, step])
            read.put(radial_read, radial)

        strengths = write_strengths[:, step].unsqueeze(-1)
        d_delta = _time_first(d_delta)
        epsilon, Hs, phi = _scan_gradients(
            (before[:, :, 1:] * gram).permute(1, 2, 0).contiguous().unsqueeze(-1),
            d_delta,
            written[step],
            _time_first(torch.addcmul(o, gram.diagonal(dim1=1, dim2=2).unsqueeze(-1), delta)),
            _time_first(torch.addcmul(delta, strengths, o)),
            _time_first(strengths),
            _time_first(decay.diagonal(dim1=1, dim2=2)[:, 1:]),
            _time_first(radial),
            phi,
            None if keep is None else _time_first(keep),
        )
        d_delta, epsilon = d_delta.transpose(0, 1), epsilon.transpose(0, 1)
        torch.mul(strengths, d_delta, out=d_v[:, step])
        d_strength[:, step] = torch.linalg.vecdot(d_delta, values[:, step] - o)

        start_epsilon = torch.mul(before[:, :, :1], epsilon, out=arrived[:, :length])
        d_u = torch.bmm(decay[:, -1, 1:, None] * delta, Phi.mT, out=products[: B * length].view(B, length, K))
        d_u.baddbmm_(start_epsilon, F.mT)
        lower = (epsilon @ delta.mT).mul_(before[:, :, 1:])
        weights = lower + lower.mT
        weights.diagonal(dim1=1, dim2=2).sub_(Hs[..., 0].T * torch.linalg.vecdot(delta, delta))
        key_gradients += [pair.split(d_u, k1, k2), pair.pull(weights, among_keys, k1, k2)]
        for target, parts in zip((d_k1, d_k2), zip(*key_gradients, strict=True), strict=True):
            target[:, step] = sum(parts)

        H = Hs[0] if keep is None else Hs[0] * keep[:, 0]
        Phi *= decay[:, -1, :1, None]
        Phi.addcmul_(F, H.unsqueeze(-1), value=-1)
        Phi.baddbmm_(addresses.mT, arrived)
    return d_k1, d_k2, d_v, d_strength, d_n, d_e, Phi


def _scan_gradients(
    later: Tensor, d_delta: Tensor, delta: Tensor, answered: Tensor, pulled: Tensor, strengths: Tensor,
    factors: Tensor, radial: Tensor, phi: Tensor, keep: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Run a chunk's steps backwards, time first: the sequential part of the gradient.

    later `[C, C, B, 1]` says how much write s was met by the key of t > s (`later[t, s]`); `d_delta` `[C, B, V]` is
    completed in place; answered is F'ᵀu, pulled Δ + β v_old `[C, B, V]`; radial `[C, B, 1]` and phi `[B, 1]` are
    ⟨F, ∂F⟩ of the reads and of what comes later. Returns ε `[C, B, V]`, H `[C, B, 1]`, and φ of the chunk's start.
    """
    epsilon, Hs = torch.empty_like(delta), torch.empty_like(factors)
    # eq. 4 acted where it scaled; where ‖F'‖ = 1 exactly, scaling or not are the same
    free = (factors == 1).to(factors.dtype)
    squared = factors.square()
    H = torch.zeros_like(phi)
    parts = (d_delta, delta, answered, pulled, -strengths, squared, free, radial, epsilon, Hs)
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
    return layer_norm(y, y.shape[-1:], eps=LAYER_NORM_EPSILON)


def _normalised_backward(gradient: Tensor, y: Tensor) -> Tensor:
    shape = y.shape[-1:]
    _, mean, rstd = torch.native_layer_norm(y, shape, None, None, LAYER_NORM_EPSILON)
    wanted = [True, False, False]
    return torch.ops.aten.native_layer_norm_backward(gradient, y, shape, mean, rstd, None, None, wanted)[0]


@_backward.register_fake
def _(
    outputs_gradient, memory_gradient, first_keys, second_keys, values, write_strengths, first_queries,
    second_queries, final_memory, *others,
):  # fmt: skip
    inputs = (first_keys, second_keys, values, write_strengths, first_queries, second_queries, final_memory)
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in inputs)


def _setup_context(ctx, inputs, output):
    *tensors, pairing, chunk_size, _ = inputs
    ctx.pairing, ctx.chunk_size = pairing, chunk_size
    ctx.set_materialize_grads(False)  # the outputs that are only kept for here would get zeros of their own size
    ctx.save_for_backward(*tensors, *output[1:])


@in_full_precision
def _gradient(ctx, outputs_gradient, memory_gradient, *unused):
    *tensors, final_memory, starts, old, written, decays, retrieved = ctx.saved_tensors
    inputs, masks = tensors[:7], tensors[7:]
    if torch.is_grad_enabled():  # second derivatives are asked for
        gradients = of_definition(reference, inputs, (*masks, ctx.pairing), (outputs_gradient, memory_gradient))
    else:
        gradients = _backward(
            torch.zeros_like(inputs[2]) if outputs_gradient is None else outputs_gradient,
            torch.zeros_like(final_memory) if memory_gradient is None else memory_gradient,
            *inputs[:6], final_memory, *masks, starts, old, written, decays, retrieved, ctx.pairing, ctx.chunk_size,
        )  # fmt: skip
    return (*gradients, *[None] * 6)


_forward.register_autograd(_gradient, setup_context=_setup_context)


def chunkwise(
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
    chunk_size: int = CHUNK_SIZE,
) -> tuple[Tensor, Tensor]:
    """The exact chunkwise form in plain torch: any device, any dtype, no compiler needed.

    Arguments as in `reference`.
    """
    memory = empty_memory(first_keys, second_keys, values, pairing) if memory is None else memory
    tensors = (first_keys, second_keys, values, write_strengths, first_queries, second_queries, memory)
    keep_for_backward = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    if mask is not None:  # a step at which no time passes writes nothing
        tensors = (*tensors[:3], write_strengths * mask, *tensors[4:])
    size = max(1, min(chunk_size, values.shape[1]))
    return _forward(*tensors, output_mask, mask, resets, pairing, size, keep_for_backward)[:2]
