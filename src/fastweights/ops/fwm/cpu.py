"""The compiled kernel of the fast weight memory (csrc/fwm.cpp), forward and backward, for float32 on the CPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastweights.ops import cpu
from fastweights.ops.derivatives import in_full_precision, of_definition
from fastweights.ops.fwm.reference import reference

SIZES = (8, 16, 32)
MOST_READS = 16
CHUNK_SIZE = 112
WIDEST_VECTOR = 16


def _arguments(k1, k2, v, beta, n, e, output_mask, mask, resets, chunk_size) -> cpu.FWMArguments:
    B, T, d = v.shape
    arguments = cpu.FWMArguments(
        B=B, T=T, d=d, hops=e.shape[2], chunk=min(chunk_size, T), threads=torch.get_num_threads(),
        output_mask=output_mask, mask=mask, resets=resets,
    )  # fmt: skip
    for name, tensor in {"k1": k1, "k2": k2, "v": v, "beta": beta, "n": n, "e": e}.items():
        setattr(arguments, name, tensor.data_ptr())
        setattr(arguments, f"{name}_row", tensor.stride(0))
        setattr(arguments, f"{name}_step", tensor.stride(1))
    return arguments


def _readable(k1, k2, v, beta, n, e, output_mask, mask, resets) -> tuple[Tensor | None, ...]:
    """The same tensors as the kernel can read them: each step's vectors in one piece."""
    if e.stride(2) != e.shape[3] or e.stride(3) != 1:
        e = e.contiguous()
    vectors = (cpu.rows(x) for x in (k1, k2, v))
    return (*vectors, beta, cpu.rows(n), e, *(cpu.contiguous_mask(x) for x in (output_mask, mask, resets)))


@torch.library.custom_op("fastweights::fwm_cpu", mutates_args=())
def _forward(
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
    chunk_size: int,
    keep_for_backward: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Answers `[T, B, V]`, final memory, and for the gradient: later chunks' F_0, v_old, Δ, factors, what was read."""
    tensors = _readable(
        first_keys, second_keys, values, write_strengths, first_queries, second_queries, output_mask, mask, resets
    )
    arguments = _arguments(*tensors, chunk_size)
    shapes = _shapes(values, second_queries, chunk_size, keep_for_backward)
    outputs, last_memory, *kept = (values.new_empty(shape) for shape in shapes)
    if output_mask is not None:
        kept[-1].zero_()
    arguments.set(outputs=outputs, last_memory=last_memory, memory=None if memory is None else memory.contiguous())
    if keep_for_backward:
        arguments.set(**dict(zip(_KEPT, kept, strict=True)))
    cpu.call("fwm_forward", arguments)
    return outputs, last_memory, *kept


_KEPT = ("starts", "old", "written", "factors", "retrieved")


def _shapes(values: Tensor, second_queries: Tensor, chunk_size: int, keep: bool) -> list[tuple[int, ...]]:
    """Of the results of `_forward`, the last of them `_KEPT`."""
    B, T, d = values.shape
    kept = B if keep else 0
    results = [(T, B, d), (B, d * d, d), (kept, (T - 1) // chunk_size, d * d, d)]
    return [*results, (kept, T, d), (kept, T, d), (kept, T), (kept, T, second_queries.shape[2], d)]


@_forward.register_fake
def _(
    first_keys, second_keys, values, write_strengths, first_queries, second_queries, memory,
    output_mask, mask, resets, chunk_size, keep_for_backward,
):  # fmt: skip
    shapes = _shapes(values, second_queries, chunk_size, keep_for_backward)
    return tuple(values.new_empty(shape) for shape in shapes)


@torch.library.custom_op("fastweights::fwm_cpu_backward", mutates_args=())
def _backward(
    outputs_gradient: Tensor | None,
    memory_gradient: Tensor | None,
    first_keys: Tensor,
    second_keys: Tensor,
    values: Tensor,
    write_strengths: Tensor,
    first_queries: Tensor,
    second_queries: Tensor,
    memory: Tensor | None,
    final_memory: Tensor,
    output_mask: Tensor | None,
    mask: Tensor | None,
    resets: Tensor | None,
    starts: Tensor,
    old: Tensor,
    written: Tensor,
    factors: Tensor,
    retrieved: Tensor,
    chunk_size: int,
    memory_wanted: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the six sequences `[T, B, …]`, and of the initial memory where it is wanted."""
    B, T, _ = values.shape
    tensors = _readable(
        first_keys, second_keys, values, write_strengths, first_queries, second_queries, output_mask, mask, resets
    )
    arguments = _arguments(*tensors, chunk_size)
    arguments.set(starts=starts, old=old, written=written, factors=factors, retrieved=retrieved)
    arguments.set(last_memory=final_memory, memory=None if memory is None else memory.contiguous())
    gradients = [
        values.new_empty(T, B, *x.shape[2:])
        for x in (first_keys, second_keys, values, write_strengths, first_queries, second_queries)
    ]
    for name, gradient in zip(("d_k1", "d_k2", "d_v", "d_beta", "d_n", "d_e"), gradients, strict=True):
        setattr(arguments, name, gradient.data_ptr())
    d_memory = torch.empty_like(final_memory if memory_wanted else final_memory[:0])
    if memory_wanted:
        arguments.d_memory = d_memory.data_ptr()
    if outputs_gradient is not None:
        outputs_gradient = cpu.rows(outputs_gradient)
        arguments.d_outputs = outputs_gradient.data_ptr()
        arguments.d_outputs_step, arguments.d_outputs_row = outputs_gradient.stride()[:2]
    if memory_gradient is not None:
        memory_gradient = memory_gradient.contiguous()
        arguments.d_last_memory = memory_gradient.data_ptr()
    cpu.call("fwm_backward", arguments)
    return *gradients, d_memory


@_backward.register_fake
def _(
    outputs_gradient, memory_gradient, first_keys, second_keys, values, write_strengths, first_queries, second_queries,
    memory, final_memory, output_mask, mask, resets, starts, old, written, factors, retrieved, chunk_size,
    memory_wanted,
):  # fmt: skip
    B, T, _ = values.shape
    inputs = (first_keys, second_keys, values, write_strengths, first_queries, second_queries)
    gradients = [values.new_empty(T, B, *x.shape[2:]) for x in inputs]
    return *gradients, torch.empty_like(final_memory if memory_wanted else final_memory[:0])


def _setup_context(ctx, inputs, output):
    *tensors, ctx.chunk_size, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, *output[1:])


@in_full_precision
def _gradient(ctx, outputs_gradient, memory_gradient, *unused):
    *tensors, final_memory, starts, old, written, factors, retrieved = ctx.saved_tensors
    inputs, masks = tensors[:7], tensors[7:]
    if torch.is_grad_enabled():  # second derivatives are asked for
        y_gradient = None if outputs_gradient is None else outputs_gradient.transpose(0, 1)
        gradients = of_definition(reference, inputs, (*masks, "product"), (y_gradient, memory_gradient))
    else:
        *in_time, d_memory = _backward(
            outputs_gradient, memory_gradient, *inputs, final_memory, *masks,
            starts, old, written, factors, retrieved, ctx.chunk_size, ctx.needs_input_grad[6],
        )  # fmt: skip
        gradients = [*(x.transpose(0, 1) for x in in_time), d_memory if ctx.needs_input_grad[6] else None]
    return (*gradients, *[None] * 5)


_forward.register_autograd(_gradient, setup_context=_setup_context)


def compiled(
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
    """The exact chunkwise form compiled for this processor: float32 on the CPU, keys and values of 8, 16 or 32.

    Arguments as in `reference`.
    """
    tensors = (first_keys, second_keys, values, write_strengths, first_queries, second_queries, memory)
    keep = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
    T = values.shape[1]
    even = -(-T // -(-T // chunk_size))  # chunks of one size, as few as possible
    outputs, memory, *_ = _forward(*tensors, output_mask, mask, resets, -(-even // WIDEST_VECTOR) * WIDEST_VECTOR, keep)
    return outputs.transpose(0, 1), memory


def refuses(tensors: Sequence[Tensor | None] = (), pairing: str = "product") -> str | None:
    """Why the kernel cannot run on the op's seven tensors, or None where it can."""
    if tensors:
        sizes = {x.shape[-1] for x in (*tensors[:3], tensors[4])}
        if pairing != "product":
            return f"it pairs keys by product, not by {pairing}"
        if len(sizes) > 1 or sizes.isdisjoint(SIZES):
            return f"it needs keys and values of one size, {', '.join(map(str, SIZES))}"
        if tensors[5].shape[2] > MOST_READS:
            return f"it takes at most {MOST_READS} reads"
    return cpu.refuses(tensors)
