"""Speed of training the paper's agent on graphs, as a ratio to environments and gradients that go step by step."""

from __future__ import annotations

from typing import Any

from rich.console import Console, RenderableType

from fastweights.bench import measurements
from fastweights.bench.machine import caption, compared_backends, describe
from fastweights.bench.measurements import Work
from fastweights.bench.workers import medians, team_of

LABELS = {
    "reference": "environments one by one, step-by-step core",
    "plain": "vectorised rollout, loss in one call, plain torch",
    "auto": "the same, compiled",
}


def run(batch_size: int, length: int, repeats: int, console: Console) -> dict[str, Any]:
    """Time a training episode with every backend.

    Args:
        batch_size: agents, each on a graph of its own.
        length: steps of an episode.
        repeats: timed runs, of which the median is taken.
        console: where progress is shown.

    Returns:
        The medians, as plain values.

    Raises:
        UserError: where a size is below 1 or a measurement fails.
    """
    machine = describe(batch_size, length, repeats)
    console.print(f"training episode, {batch_size} × {length} steps …")
    with team_of(compared_backends(measurements.backends()["fwm"]), machine["threads"]) as team:
        seconds = medians(team, "training_episode", Work(batch_size=batch_size, length=length), repeats)
    ratio = {name: seconds["reference"] / value for name, value in seconds.items()}
    return {"machine": machine, "seconds": seconds, "ratio": ratio}


def table(result: dict[str, Any]) -> RenderableType:
    """A result of `run` for people."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    times = Table("training episode, FWM 32/16", "", "", box=None, pad_edge=False)
    for name, seconds in result["seconds"].items():
        times.add_row(LABELS[name], f"{seconds * 1000:,.1f} ms", f"{result['ratio'][name]:.1f} × faster")
    words = f"{caption(result['machine'], 'graphs', 'steps')}. Reference: torch.nn.LSTM, step-by-step memory, autograd."
    return Group(times, "", Text(words))
