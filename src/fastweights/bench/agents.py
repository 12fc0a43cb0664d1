"""How fast the paper's agent trains on graphs, as a ratio to environments and gradients that go step by step."""

from __future__ import annotations

from typing import Any

import torch
from rich.console import Console, RenderableType

from fastweights.bench.measurements import Work, backends
from fastweights.bench.workers import medians, team_of
from fastweights.doctor import processor_name
from fastweights.errors import UserError
from fastweights.ops import cpu

LABELS = {
    "reference": "environments one by one, step-by-step core",
    "plain": "arrays, replay in one call, plain torch",
    "auto": "the same, compiled",
}


def run(rows: int, length: int, repeats: int, console: Console) -> dict[str, Any]:
    """Time a training episode of `rows` agents and `length` steps with every backend, and give medians.

    Raises:
        UserError: where a size makes no sense or a measurement fails.
    """
    for name, value in {"rows": rows, "length": length, "repeats": repeats}.items():
        if value < 1:
            raise UserError(f"--{name} is {value}; it must be at least 1.")
    threads = torch.get_num_threads()
    compiled = backends()["fwm"] != "plain"
    names = ["reference", "plain", *(["auto"] if compiled else [])]
    console.print(f"training episode, {rows} × {length} steps …")
    with team_of(names, threads) as team:
        seconds = medians(team, "training_episode", Work("rl", rows, length), repeats, warm_up=True)
    return {
        "machine": {
            "processor": processor_name(),
            "threads": threads,
            "torch": torch.__version__,
            "kernels": cpu.instruction_set(),
            "rows": rows,
            "length": length,
            "repeats": repeats,
        },
        "seconds": seconds,
        "ratio": {name: seconds["reference"] / seconds[name] for name in names},
    }


def table(result: dict[str, Any]) -> RenderableType:
    """Lay a result out for people."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    machine = result["machine"]
    times = Table("training episode, FWM 32/16", "", "", box=None, pad_edge=False)
    for name, seconds in result["seconds"].items():
        times.add_row(LABELS[name], f"{seconds * 1000:,.1f} ms", f"{result['ratio'][name]:.1f} × faster")
    words = (
        f"{machine['processor']}, {machine['threads']} threads, torch {machine['torch']}; {machine['rows']} graphs, "
        f"{machine['length']} steps, medians of {machine['repeats']}; the reference is torch.nn.LSTM with a "
        "step-by-step memory that keeps every step for the gradient."
    )
    return Group(times, "", Text(words))
