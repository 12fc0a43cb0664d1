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

from fastweights.ops.fwm.pairing import PAIRINGS
from fastweights.ops.fwm.reference import LAYER_NORM_EPSILON, reference

CHUNK_SIZE = 40


class _Reads:
    """The positions of a chunk where an answer is needed: each row's own list, padded to the longest `[B, P]`."""

    def __init__(self, reads: Tensor | None):
        self.everywhere = reads is None
        if reads is not None:
            count = int(reads.sum(1).max())
            self.where = torch.argsort(reads.to(torch.uint8), dim=1, descending=True, stable=True)[:, :count]
            self.real = reads.gather(1, self.where)
        self.any = self.everywhere or self.where.shape[1] > 0

    def gather(self, x: Tensor) -> Tensor:
        """Pick `[B, P, …]` from `[B, C, …]`."""
        if self.everywhere:
            return x
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
    gram: Tensor,
    from_start: Tensor,
    values: Tensor,
    strengths: Tensor,
    squared_norm: Tensor,
    valid: Tensor | None,
    keep: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Find what each step of a chunk writes; the only sequential part, on vectors instead of memories.

    gram `[B, C, C]`, from_start `[B, C, V]` (F_0ᵀ u_t), values `[B, C, V]`, strengths `[B, C, 1]`, squared_norm
    `[B, 1, 1]` of F_0. Returns v_old and Δ `[B, C, V]`, the decays `[B, C + 1, C + 1]` (row t: after t steps) and the
    squared norm at the end.
    """
    B, C, _ = values.shape
    old, written = torch.empty_like(values), torch.empty_like(values)
    decay = values.new_zeros(B, C + 1, C + 1)
    decay[:, 0, 0] = 1
    half_self = gram.diagonal(dim1=1, dim2=2).unsqueeze(-1) / 2
    n = squared_norm
    for t in range(C):
        row = decay[:, t, : t + 1]
        if keep is not None:
            row = row * keep[:, t]
            n = n * keep[:, t, None]
        v_old, delta = old[:, t], written[:, t]
        torch.mul(from_start[:, t], row[:, :1], out=v_old)
        if t:
            weights = row[:, 1:] * gram[:, t, :t]
            old[:, t : t + 1].baddbmm_(weights.unsqueeze(1), written[:, :t])
        torch.sub(values[:, t], v_old, out=delta)
        delta *= strengths[:, t]
        # ‖F'‖² = ‖F‖² + 2 v_old·Δ + ‖u‖²‖Δ‖²
        middle = torch.addcmul(v_old, half_self[:, t], delta)
        n = torch.baddbmm(n, middle.unsqueeze(1), delta.unsqueeze(2), alpha=2)
        squared_scale = n.clamp(min=1)
        if valid is not None:
            squared_scale = torch.where(valid[:, t, None, None], squared_scale, 1)
        n = n / squared_scale
        factor = squared_scale.rsqrt_().squeeze(1)
        torch.mul(row, factor, out=decay[:, t + 1, : t + 1])
        decay[:, t + 1, t + 1 : t + 2] = factor
    return old, written, decay, n


@torch.library.custom_op("fastweights::fwm_chunk", mutates_args=())
def _forward(
    first_keys: Tensor,
    second_keys: Tensor,
    values: Tensor,
    write_strengths: Tensor,
    first_queries: Tensor,
    second_queries: Tensor,
    memory: Tensor,
    reads: Tensor | None,
    valid: Tensor | None,
    resets: Tensor | None,
    pairing: str,
    chunk_size: int,
    keep_for_backward: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Answers, final memory, and what the backward pass needs: F_0 of each chunk, v_old, Δ, decays, retrieved values."""
    pair = PAIRINGS[pairing]
    B, T, V = values.shape
    hops = second_queries.shape[2]
    outputs = values.new_zeros(B, T, V)
    chunks = -(-T // chunk_size)
    starts = values.new_empty((chunks if keep_for_backward else 1, *memory.shape))
    old, written = torch.empty_like(values), torch.empty_like(values)
    decays = values.new_empty(chunks if keep_for_backward else 0, B, chunk_size + 1, chunk_size + 1)
    retrieved = values.new_zeros(B, T if keep_for_backward else 0, hops, V)
    F = memory
    squared_norm = F.square().sum((1, 2), keepdim=True)
    for c in range(chunks):
        step = slice(c * chunk_size, min((c + 1) * chunk_size, T))
        length = step.stop - step.start
        if keep_for_backward:
            F = starts[c].copy_(F)
        k1, k2 = first_keys[:, step], second_keys[:, step]
        keep = None if resets is None else ~resets[:, step].unsqueeze(-1)
        u = pair.join(k1, k2)
        old[:, step], delta, decay, squared_norm = _scan_writes(
            pair.gram(k1, k2, k1, k2),
            u @ F,
            values[:, step],
            write_strengths[:, step].unsqueeze(-1),
            squared_norm,
            None if valid is None else valid[:, step],
            keep,
        )
        written[:, step] = delta
        if keep_for_backward:
            decays[c, :, : length + 1, : length + 1] = decay
        read = _Reads(None if reads is None else reads[:, step])
        if read.any:
            left = read.gather(decay[:, 1:])
            n, e = read.gather(first_queries[:, step]), read.gather(second_queries[:, step])
            found = []
            for i in range(hops):
                y = (pair.join(n, e[:, :, i]) @ F).mul_(left[..., :1])
                y.baddbmm_(pair.gram(n, e[:, :, i], k1, k2).mul_(left[..., 1:]), delta)
                found.append(y)
                n = layer_norm(y, (V,), eps=LAYER_NORM_EPSILON)
            read.put(n, outputs[:, step])
            if keep_for_backward:
                read.put(torch.stack(found, 2), retrieved[:, step])
        last = decay[:, -1]
        F = torch.baddbmm(F * last[:, :1, None], u.mT, last[:, 1:, None] * delta)
    return outputs, F if T else memory.clone(), starts, old, written, decays, retrieved


@_forward.register_fake
def _(
    first_keys, second_keys, values, write_strengths, first_queries, second_queries, memory,
    reads, valid, resets, pairing, chunk_size, keep_for_backward,
):  # fmt: skip
    B, T, V = values.shape
    chunks = -(-T // chunk_size)
    return (
        values.new_empty(B, T, V),
        torch.empty_like(memory),
        values.new_empty((chunks if keep_for_backward else 1, *memory.shape)),
        torch.empty_like(values),
        torch.empty_like(values),
        values.new_empty(chunks if keep_for_backward else 0, B, chunk_size + 1, chunk_size + 1),
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
    reads: Tensor | None,
    valid: Tensor | None,
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
    d_k1, d_k2 = torch.zeros_like(first_keys), torch.zeros_like(second_keys)
    d_v, d_strength = torch.empty_like(values), torch.empty_like(write_strengths)
    d_n, d_e = torch.zeros_like(first_queries), torch.zeros_like(second_queries)
    Phi = memory_gradient.clone()
    phi = torch.linalg.vecdot(Phi.flatten(1), final_memory.flatten(1)).unsqueeze(-1)
    for c in reversed(range(starts.shape[0] if T else 0)):
        step = slice(c * chunk_size, min((c + 1) * chunk_size, T))
        length = step.stop - step.start
        F, o, delta = starts[c], old[:, step], written[:, step]
        decay = decays[c, :, : length + 1, : length + 1]
        after = decay[:, 1:, 1:]
        keep = None if resets is None else ~resets[:, step].unsqueeze(-1)
        before = decay[:, :-1] if keep is None else decay[:, :-1] * keep
        k1, k2 = first_keys[:, step], second_keys[:, step]
        u, gram = pair.join(k1, k2), pair.gram(k1, k2, k1, k2)

        d_delta = (u @ Phi).mul_(decay[:, -1, 1:, None])
        radial = values.new_zeros(B, length)  # ⟨y, ∂L/∂y⟩ of the reads at each step
        start_gradient = None  # what the reads ask of F_0
        read = _Reads(None if reads is None else reads[:, step])
        if read.any:
            left = read.gather(decay[:, 1:])
            n0, e, found = (
                read.gather(x[:, step]) for x in (first_queries, second_queries, retrieved)
            )
            d_out = read.gather_masked(outputs_gradient[:, step])
            e_gradient = torch.empty_like(e)
            radial_read = torch.zeros_like(left[..., 0])
            for i in reversed(range(hops)):
                y, query = found[:, :, i], e[:, :, i]
                mean, rstd = _layer_norm_statistics(y)
                normed = (y - mean) * rstd
                d_y = d_out - d_out.mean(-1, keepdim=True)
                d_y -= normed * torch.linalg.vecdot(d_out, normed).unsqueeze(-1).div_(V)
                d_y *= rstd
                n = n0 if i == 0 else _normalised(found[:, :, i - 1])
                radial_read += torch.linalg.vecdot(y, d_y)
                weights = pair.gram(n, query, k1, k2).mul_(left[..., 1:])
                d_delta.baddbmm_(weights.mT, d_y)
                scaled = d_y * left[..., :1]
                q = pair.join(n, query)
                start_gradient = (
                    q.mT @ scaled if start_gradient is None else start_gradient.baddbmm_(q.mT, scaled)
                )
                coefficients = (d_y @ delta.mT).mul_(left[..., 1:])
                d_first, d_second = pair.split(scaled @ F.mT, n, query)
                more_first, more_second = pair.pull(coefficients, n, query, k1, k2)
                d_out = d_first + more_first
                e_gradient[:, :, i] = d_second + more_second
                key_first, key_second = pair.pull(coefficients.mT, k1, k2, n, query)
                d_k1[:, step] += key_first
                d_k2[:, step] += key_second
            read.put(d_out, d_n[:, step])
            read.put(e_gradient, d_e[:, step])
            read.put(radial_read, radial)

        strengths = write_strengths[:, step].unsqueeze(-1)
        answered = torch.addcmul(o, gram.diagonal(dim1=1, dim2=2).unsqueeze(-1), delta)  # F'ᵀ u
        pulled = torch.addcmul(delta, strengths, o)
        later = (before[:, :, 1:] * gram).mT
        factor = after.diagonal(dim1=1, dim2=2)
        # eq. 4 acted where it scaled; the factor alone cannot tell ‖F'‖ = 1 from no scaling, where both agree
        scaled_here = (factor < 1).to(values.dtype)
        squared_factor = factor.square()
        epsilon, Hs = torch.empty_like(delta), torch.empty_like(factor)
        H = values.new_zeros(B, 1)
        for t in reversed(range(length)):
            phi = phi + radial[:, t : t + 1]
            clamped = scaled_here[:, t : t + 1]
            if keep is not None and t + 1 < length:
                H = H * keep[:, t + 1]
            alpha = phi * clamped
            H = alpha.add(H).mul_(squared_factor[:, t : t + 1])
            Hs[:, t : t + 1] = H
            gradient = d_delta[:, t]
            if t + 1 < length:
                d_delta[:, t : t + 1].baddbmm_(later[:, t : t + 1, t + 1 :], epsilon[:, t + 1 :])
            gradient.addcmul_(H, answered[:, t], value=-1)
            torch.mul(strengths[:, t], gradient, out=epsilon[:, t])
            epsilon[:, t].addcmul_(H, delta[:, t]).neg_()
            phi = phi - alpha
            phi -= torch.linalg.vecdot(gradient, pulled[:, t]).unsqueeze(-1)
            if keep is not None:
                phi = phi * keep[:, t]
        d_v[:, step] = strengths * d_delta
        d_strength[:, step] = torch.linalg.vecdot(d_delta, values[:, step] - o)

        last, first = decay[:, -1, 1:, None], before[:, :, :1]
        start_epsilon = first * epsilon
        d_u = torch.baddbmm((last * delta) @ Phi.mT, start_epsilon, F.mT)
        lower = (epsilon @ delta.mT).mul_(before[:, :, 1:])
        weights = lower + lower.mT
        weights.diagonal(dim1=1, dim2=2).sub_(Hs * torch.linalg.vecdot(delta, delta))
        for target, parts in zip(
            (d_k1, d_k2), zip(pair.split(d_u, k1, k2), pair.pull(weights, k1, k2, k1, k2), strict=True), strict=True
        ):
            target[:, step] += parts[0] + parts[1]

        H0 = H if keep is None else H * keep[:, 0]
        Phi *= decay[:, -1, :1, None]
        Phi.addcmul_(F, H0.unsqueeze(-1), value=-1)
        Phi.baddbmm_(u.mT, start_epsilon)
        if start_gradient is not None:
            Phi += start_gradient
    return d_k1, d_k2, d_v, d_strength, d_n, d_e, Phi


def _layer_norm_statistics(y: Tensor) -> tuple[Tensor, Tensor]:
    variance, mean = torch.var_mean(y, -1, correction=0, keepdim=True)
    return mean, torch.rsqrt(variance + LAYER_NORM_EPSILON)


def _normalised(y: Tensor) -> Tensor:
    return layer_norm(y, y.shape[-1:], eps=LAYER_NORM_EPSILON)


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
    ctx.save_for_backward(*tensors, *output[1:])


def _gradient(ctx, outputs_gradient, memory_gradient, *unused):
    *tensors, final_memory, starts, old, written, decays, retrieved = ctx.saved_tensors
    inputs, masks = tensors[:7], tensors[7:]
    if torch.is_grad_enabled():  # second derivatives are asked for: differentiate the definition
        y, F = reference(*inputs, *masks, ctx.pairing)
        wanted = [x for x in inputs if x.requires_grad]
        found = torch.autograd.grad(
            (y, F), wanted, (outputs_gradient, memory_gradient), create_graph=True, allow_unused=True
        )
        found = iter(found)
        gradients = [next(found) if x.requires_grad else None for x in inputs]
    else:
        gradients = _backward(
            outputs_gradient, memory_gradient, *inputs[:6], final_memory, *masks,
            starts, old, written, decays, retrieved, ctx.pairing, ctx.chunk_size,
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
    memory: Tensor,
    reads: Tensor | None,
    valid: Tensor | None,
    resets: Tensor | None,
    pairing: str,
    chunk_size: int = CHUNK_SIZE,
) -> tuple[Tensor, Tensor]:
    """Run the recurrence in chunks; arguments as in `reference`."""
    tensors = (first_keys, second_keys, values, write_strengths, first_queries, second_queries, memory)
    keep_for_backward = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    if valid is not None:  # a step at which no time passes writes nothing
        tensors = (*tensors[:3], write_strengths * valid, *tensors[4:])
    size = max(1, min(chunk_size, values.shape[1]))
    return _forward(*tensors, reads, valid, resets, pairing, size, keep_for_backward)[:2]
