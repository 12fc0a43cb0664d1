"""Data-parallel training by several processes, started by torchrun; without it, a group of one.

Each process has a shard of the batch: its own rows of the same streams, and their state. The result is that of a single
process up to rounding, and a run saved by two processes resumes with four.
"""

from __future__ import annotations

import importlib
import os
import re
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, distributed

from fastweights.errors import UserError, reason


class Group:
    """The processes of a training: this one's rank, and the collective operations.

    Args:
        rank: this process's number.
        size: the number of processes.
        device: where this process computes.
    """

    def __init__(self, rank: int = 0, size: int = 1, device: torch.device | str = "cpu"):
        self.rank, self.size, self.device = rank, size, torch.device(device)

    @property
    def is_first(self) -> bool:
        """Whether this process writes the run folder and prints."""
        return self.rank == 0

    def shard(self, batch_size: int) -> slice:
        """This process's rows of the batch.

        Raises:
            UserError: where the batch cannot be divided evenly.
        """
        if batch_size % self.size:
            raise UserError(
                f"A batch of {batch_size} cannot be divided evenly among {self.size} processes; "
                "set training.batch_size to a multiple of it."
            )
        each = batch_size // self.size
        return slice(self.rank * each, (self.rank + 1) * each)

    def all_reduce_sum(self, *numbers: float) -> list[float]:
        """All-reduce: the sums of numbers over all processes."""
        if self.size == 1:
            return list(numbers)
        tensor = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        distributed.all_reduce(tensor)
        return tensor.tolist()

    def all_reduce_max(self, number: float) -> float:
        """All-reduce: the largest number of all processes."""
        if self.size == 1:
            return number
        tensor = torch.tensor(number, dtype=torch.float64, device=self.device)
        distributed.all_reduce(tensor, distributed.ReduceOp.MAX)
        return tensor.item()

    def all_gather(self, shard: Tensor) -> Tensor:
        """All-gather: the rows of all processes `[B, …]`, from each one's shard."""
        if self.size == 1:
            return shard
        parts = [torch.empty_like(shard) for _ in range(self.size)]
        distributed.all_gather(parts, shard.contiguous())
        return torch.cat(parts)

    def average_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Average gradients over all processes; a parameter without one in all of them stays without one.

        In place of DistributedDataParallel, which cannot see terms of a loss beside a model's output, nor parameters
        that get a gradient in some steps alone.
        """
        if self.size == 1:
            return
        there = torch.tensor([parameter.grad is not None for parameter in parameters], device=self.device).int()
        distributed.all_reduce(there, distributed.ReduceOp.MAX)
        trained = [parameter for parameter, found in zip(parameters, there.tolist(), strict=True) if found]
        gradients = [torch.zeros_like(x) if x.grad is None else x.grad for x in trained]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        distributed.all_reduce(flat)
        flat /= self.size
        for parameter, mean in zip(trained, flat.split([x.numel() for x in trained]), strict=True):
            parameter.grad = mean.view_as(parameter).to(parameter.dtype)

    def barrier(self) -> None:
        """Barrier: wait for all processes."""
        if self.size > 1:
            distributed.barrier()


@contextmanager
def join(device: str = "cpu") -> Iterator[Group]:
    """Join the process group of torchrun, where there is one, and leave it at the end.

    Args:
        device: "cpu", or "cuda" for the graphics card of this process's number.

    Raises:
        UserError: where the device does not exist, the group cannot be joined, or another of its processes has ended.
    """
    size, rank, local = _environment()
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise UserError(f'--device is "{device}"; give cpu or cuda.') from error
    if chosen.type not in ("cpu", "cuda"):
        raise UserError(f'--device is "{device}"; give cpu or cuda.')
    if chosen.type == "cuda":
        index = local if chosen.index is None else chosen.index
        if index >= torch.cuda.device_count():
            raise UserError(f"--device {device} needs CUDA device {index}, and torch sees {torch.cuda.device_count()}.")
        chosen = torch.device("cuda", index)
        torch.cuda.set_device(chosen)
    if size == 1:
        yield Group(device=chosen)
        return
    # Imported now, because torch.nn.parallel may bring it, and imported later it would hold the group as a default
    # argument: gloo's threads would outlive destroy_process_group, and could abort a process that is ending.
    importlib.import_module("torch.distributed.nn.functional")

    try:
        distributed.init_process_group("nccl" if chosen.type == "cuda" else "gloo", rank=rank, world_size=size)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"The group of {size} processes cannot be joined ({reason(error)}); {_START}.") from error
    try:
        yield Group(rank, size, chosen)
    except RuntimeError as error:
        if not (isinstance(error, distributed.DistError) or "gloo" in str(error)):
            raise
        raise UserError(
            "Another process of the group has ended, or cannot be reached; see its own message, and start all again."
        ) from error
    finally:
        distributed.destroy_process_group()


_START = "start the processes with torchrun, or one alone without WORLD_SIZE"


def _environment() -> tuple[int, int, int]:
    """The number of processes, this one's rank, and its rank on this machine, as torchrun gives them.

    Raises:
        UserError: where they contradict each other, or some are missing.
    """
    if "WORLD_SIZE" not in os.environ:
        return 1, 0, 0
    size = _number("WORLD_SIZE", 1)
    if size == 1:
        return size, _number("RANK", 0, 0, "0"), _number("LOCAL_RANK", 0, 0, "0")
    port, address = _number("MASTER_PORT", 1, 65535), os.environ.get("MASTER_ADDR", "")
    try:
        socket.getaddrinfo(address, port)  # torch would ask for half an hour
    except (OSError, UnicodeError) as error:
        raise UserError(f'MASTER_ADDR is "{address}", which is no machine that answers here; {_START}.') from error
    return size, _number("RANK", 0, size - 1), _number("LOCAL_RANK", 0, size - 1)


def _number(name: str, least: int, most: int = 2**31 - 1, default: str = "not set") -> int:
    """A number out of the environment.

    Raises:
        UserError: where it is none, or out of range.
    """
    text = os.environ.get(name, default)
    if not re.fullmatch("[0-9]{1,10}", text) or not least <= int(text) <= most:
        raise UserError(f"{name} is {text}; it must be a number from {least} to {most}: {_START}.")
    return int(text)
