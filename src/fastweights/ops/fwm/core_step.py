"""One step of an LSTM with a fast weight memory over it (FWM, eq. 1–7) in one compiled call, without gradients.

For inference one token at a time, where a call of each op and each layer would cost more than their work.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastweights.ops import cpu
from fastweights.ops.fwm.cpu import SIZES
from fastweights.ops.fwm.writes import WriteLog


class Weights(NamedTuple):
    """The LSTM's and the memory's weights; `second_bias` may be None."""

    input_weight: Tensor
    recurrent_weight: Tensor
    bias: Tensor
    second_bias: Tensor | None
    write_weight: Tensor
    write_bias: Tensor
    read_weight: Tensor
    read_bias: Tensor
    output_weight: Tensor
    output_bias: Tensor


def core_step(
    x: Tensor,
    hidden: Tensor,
    cell: Tensor,
    memory: Tensor | WriteLog,
    weights: Weights,
    **options: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor | WriteLog]:
    """Run one step.

    Args:
        x: `[B, input_size]`.
        hidden, cell: the LSTM's state, both `[B, H]`.
        memory: F `[B, d, d, d]`; or a log of writes, to which this step's is added in place.
        weights: of all layers.
        **options: forget_bias, write_scale, and as 0 or 1 tanh_first_query, tanh_queries and residual.

    Returns:
        The output `[B, H]`, the new hidden and cell state, and the new memory.

    Raises:
        ValueError: where the log is full.
    """
    (B, H), d = hidden.shape, weights.output_weight.shape[1]
    hops = weights.read_weight.shape[0] // d - 1
    outputs, new_hidden, new_cell = hidden.new_empty(3, B, H).unbind(0)
    arguments = cpu.CoreStepArguments(
        B=B, I=x.shape[1], H=H, d=d, hops=hops, threads=torch.get_num_threads(), **options
    )
    arguments.set_contiguous(x=x, hidden=hidden, cell=cell, **weights._asdict())
    arguments.set(outputs=outputs, new_hidden=new_hidden, new_cell=new_cell)
    if isinstance(memory, WriteLog):
        count, capacity = memory.room()
        log = arguments.log
        log.B, log.d, log.count, log.capacity, log.threads = B, d, count, capacity, 1
        for name in ("first_keys", "second_keys", "written", "decay", "squared_norm"):
            setattr(log, name, getattr(memory, name).data_ptr())
        new_memory: Tensor | WriteLog = memory
    else:
        new_memory = torch.empty_like(memory, memory_format=torch.contiguous_format)
        arguments.set_contiguous(memory=memory, new_memory=new_memory)
    cpu.call("core_step", arguments)
    if isinstance(memory, WriteLog):
        memory.num_writes.add_(1)
    return outputs, new_hidden, new_cell, new_memory


def is_supported(key_sizes: set[int], num_reads: int) -> bool:
    """Whether the kernel has keys and values of these sizes, and so many reads."""
    return len(key_sizes) == 1 and key_sizes <= set(SIZES) and num_reads <= cpu.MOST_HOPS
