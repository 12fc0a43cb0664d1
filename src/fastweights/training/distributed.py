"""Several processes that train one model together, started by torchrun; without it, a group of one.

The recipe's rows are shared out: each process reads its own rows of the same streams and carries their state. So the
number of processes changes the speed and, but for rounding, nothing else, and a run saved by two goes on with four.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, distributed

from fastweights.errors import UserError


class Group:
    """The processes of a training: who this one is, and the few things they do together.

    Args:
        rank: this process's number.
        size: the number of processes.
        device: where this process computes.
    """

    def __init__(self, rank: int = 0, size: int = 1, device: torch.device | str = "cpu"):
        self.rank, self.size, self.device = rank, size, torch.device(device)

    @property
    def is_first(self) -> bool:
        """Whether this process keeps the run folder and speaks."""
        return self.rank == 0

    def share_of(self, rows: int) -> slice:
        """The rows that this process reads.

        Raises:
            UserError: where the rows cannot be shared out evenly.
        """
        if rows % self.size:
            raise UserError(
                f"{rows} rows cannot be shared evenly by {self.size} processes; set training.rows to a multiple of it."
            )
        each = rows // self.size
        return slice(self.rank * each, (self.rank + 1) * each)

    def total(self, *numbers: float) -> list[float]:
        """The sums of numbers over all processes."""
        if self.size == 1:
            return list(numbers)
        tensor = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        distributed.all_reduce(tensor)
        return tensor.tolist()

    def largest(self, number: float) -> float:
        """The largest of all processes' numbers."""
        if self.size == 1:
            return number
        tensor = torch.tensor(number, dtype=torch.float64, device=self.device)
        distributed.all_reduce(tensor, distributed.ReduceOp.MAX)
        return tensor.item()

    def all_rows(self, share: Tensor) -> Tensor:
        """The rows of all processes `[B, …]`, from each one's own."""
        if self.size == 1:
            return share
        parts = [torch.empty_like(share) for _ in range(self.size)]
        distributed.all_gather(parts, share.contiguous())
        return torch.cat(parts)

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.size > 1:
            distributed.barrier()


@contextmanager
def join(device: str = "cpu") -> Iterator[Group]:
    """Join the processes that torchrun started, if it did, and leave them at the end.

    Args:
        device: "cpu", or "cuda" for the graphics card of this process's number.

    Raises:
        UserError: where the device does not exist.
    """
    size, rank, local = (int(os.environ.get(name, start)) for name, start in
                         (("WORLD_SIZE", 1), ("RANK", 0), ("LOCAL_RANK", 0)))  # fmt: skip
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise UserError(f'--device is "{device}"; give cpu or cuda.') from error
    if chosen.type == "cuda":
        index = local if chosen.index is None else chosen.index
        if index >= torch.cuda.device_count():
            raise UserError(f"--device {device} needs CUDA device {index}, and torch sees {torch.cuda.device_count()}.")
        chosen = torch.device("cuda", index)
        torch.cuda.set_device(chosen)
    if size == 1:
        yield Group(device=chosen)
        return
    # Imported now, because DistributedDataParallel brings it, and imported later it would hold the group as a default
    # argument: gloo's threads would outlive destroy_process_group, and could abort a process that is ending.
    importlib.import_module("torch.distributed.nn.functional")

    distributed.init_process_group("nccl" if chosen.type == "cuda" else "gloo", rank=rank, world_size=size)
    try:
        yield Group(rank, size, chosen)
    finally:
        distributed.destroy_process_group()
