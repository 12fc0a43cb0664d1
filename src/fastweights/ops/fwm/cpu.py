"""The compiled kernel of the fast weight memory (csrc/fwm.cpp), forward and backward, for float32 on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastweights.ops import cpu
from fastweights.ops.differentiable import Named, gradients_like, time_first
from fastweights.ops.fwm.reference import DEFINITION

SIZES = (8, 16, 32)
CHUNK_SIZE = 112
VECTORS = {"k1": "first_keys", "k2": "second_keys", "v": "values", "n": "first_queries"}  # as the kernel calls them
SEQUENCES = VECTORS | {"beta": "write_strengths", "e": "second_queries"}


def _empty(x: Named, keep: bool) -> dict[str, Tensor]:
    """For the gradient: later chunks' F_0, v_old, Δ, factors, what each hop retrieved."""
    (B, T, d), new = x.values.shape, x.values.new_empty
    K = B if keep else 0
    return {
        "outputs": time_first(x.values),
        "last_memory": new(B, d * d, d),
        "starts": new(K, (T - 1) // x.chunk, d * d, d),
        "old": new(K, T, d),
        "written": new(K, T, d),
        "factors": new(K, T),
        "retrieved": new(K, T, x.second_queries.shape[2], d),
    }


def _arguments(x: Named) -> cpu.FWMArguments:
    B, T, d = x.values.shape
    hops, chunk, threads = x.second_queries.shape[2], min(x.chunk, T), torch.get_num_threads()
    arguments = cpu.FWMArguments(B=B, T=T, d=d, hops=hops, chunk=chunk, threads=threads)
    arguments.set_contiguous(memory=x.memory, output_mask=x.output_mask, mask=x.mask, resets=x.resets)
    for name, argument in VECTORS.items():
        arguments.set_sequence(name, getattr(x, argument))
    arguments.set_strided("beta", x.write_strengths)
    e = x.second_queries
    arguments.set_strided("e", e if e.stride()[2:] == (d, 1) else e.contiguous())
    return arguments


def _forward(x: Named, keep: bool) -> dict[str, Tensor]:
    found = _empty(x, keep)
    if x.output_mask is not None:
        found["retrieved"].zero_()
    arguments = _arguments(x)
    arguments.set(**found)
    cpu.call("fwm_forward", arguments)
    return found


def _backward(x: Named, kept: Named, d: Named, wanted: Named) -> dict[str, Tensor | None]:
    found: dict[str, Tensor | None] = {argument: time_first(getattr(x, argument)) for argument in SEQUENCES.values()}
    found["memory"] = torch.empty_like(kept.last_memory) if wanted.memory else None
    arguments = _arguments(x)
    arguments.set(**kept._asdict(), d_memory=found["memory"])
    arguments.set(**{f"d_{name}": found[argument] for name, argument in SEQUENCES.items()})
    arguments.set_sequence("d_outputs", d.outputs)
    arguments.set_contiguous(d_last_memory=d.last_memory)
    cpu.call("fwm_backward", arguments)
    return found


_fwm = DEFINITION.implement(
    "fwm_cpu",
    _forward,
    _backward,
    saved="last_memory starts old written factors retrieved",
    empty=_empty,
    empty_gradients=lambda x: gradients_like(x, *SEQUENCES.values()),
)


def compiled(*arguments: Any, chunk: int = CHUNK_SIZE) -> tuple[Tensor, Tensor]:
    """The exact chunkwise form compiled for this processor: float32 on the CPU, keys and values of 8, 16 or 32.

    Arguments as of `reference`.
    """
    T = arguments[0].shape[1]
    even = -(-T // -(-T // chunk))  # chunks of one size, as few as possible
    return _fwm(*arguments, cpu.padded(even))


def unsupported_reason(device: str, tensors: Sequence[Any] = (), pairing: str = "product") -> str | None:
    """Why the kernel cannot run on a device (with the op's seven tensors), or None where it can."""
    if tensors:
        sizes = {x.shape[-1] for x in (*tensors[:3], tensors[4])}
        if pairing != "product":
            return f"it pairs keys by product, not by {pairing}"
        if len(sizes) > 1 or sizes.isdisjoint(SIZES):
            return f"it needs keys and values of one size, {', '.join(map(str, SIZES))}"
        if tensors[5].shape[2] > cpu.MOST_HOPS:
            return f"it takes at most {cpu.MOST_HOPS} reads"
    return cpu.unsupported_reason(device, tensors)
