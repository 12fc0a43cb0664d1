"""What all benchmarks share: the machine and the sizes of a result, and the backends that are compared."""

from __future__ import annotations

from typing import Any

import torch

from fastweights.doctor import processor_name
from fastweights.errors import UserError
from fastweights.ops import cpu

MOST_REPEATS = 1000
MOST_STEPS = 100_000  # of all sequences: the step-by-step loop keeps 0.8 MB for each


def describe(batch_size: int, length: int, repeats: int) -> dict[str, Any]:
    """The machine and the sizes of a benchmark, as a result records them.

    Raises:
        UserError: where a size is below 1 or too large to be measured.
    """
    sizes = {"batch_size": batch_size, "length": length, "repeats": repeats}
    check_sizes(**sizes)
    return {
        "processor": processor_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "kernels": cpu.instruction_set(),
        **sizes,
    }


def check_sizes(batch_size: int = 1, length: int = 1, repeats: int = 1) -> None:
    """Refuse sizes that cannot be measured.

    Raises:
        UserError: where a size is below 1 or too large.
    """
    for name, value in {"batch-size": batch_size, "length": length, "repeats": repeats}.items():
        if value < 1:
            raise UserError(f"--{name} is {value}; it must be at least 1.")
    if batch_size * length > MOST_STEPS:
        raise UserError(
            f"--batch-size times --length is {batch_size * length}; give at most {MOST_STEPS:,}, as the step-by-step "
            "loop keeps a memory for each step."
        )
    if repeats > MOST_REPEATS:
        raise UserError(f"--repeats is {repeats}; the median needs at most {MOST_REPEATS:,}.")


def caption(machine: dict[str, Any], rows: str, steps: str) -> str:
    """The machine and the sizes in words.

    >>> machine = {"processor": "CPU", "threads": 2, "torch": "2.13.0", "batch_size": 32, "length": 200, "repeats": 5}
    >>> caption(machine, "sequences", "tokens")
    'CPU, 2 threads, torch 2.13.0; 32 sequences of 200 tokens, medians of 5'
    """
    return (
        f"{machine['processor']}, {machine['threads']} threads, torch {machine['torch']}; "
        f"{machine['batch_size']} {rows} of {machine['length']} {steps}, medians of {machine['repeats']}"
    )


def compared_backends(*chosen: str) -> list[str]:
    """The backends that are timed: "auto" beside "plain" only where it chooses another one.

    >>> compared_backends("plain"), compared_backends("cpu")
    (['reference', 'plain'], ['reference', 'plain', 'auto'])
    """
    return ["reference", "plain"] if set(chosen) == {"plain"} else ["reference", "plain", "auto"]
