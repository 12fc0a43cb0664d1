"""Time of the memory against sequence length, batch size and key size, as a figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from fastweights.analysis.figures import new_figure, write
from fastweights.bench import measurements
from fastweights.bench.machine import check_sizes, compared_backends
from fastweights.bench.measurements import Work
from fastweights.bench.workers import medians, team_of

AXES = {  # the step-by-step loop keeps every memory: 5 GB at B 32, T 200, d 32, in proportion to B T d³
    "length": ("T, tokens", (25, 50, 100, 200, 400)),
    "batch_size": ("B, batch size", (2, 4, 8, 16, 32)),
    "memory_size": ("d, size of keys and values", (8, 16, 32)),
}
LABELS = {"reference": "step by step", "plain": "chunkwise, plain torch", "cpu": "chunkwise, compiled"}


def run(repeats: int, console: Console, axes: dict[str, tuple[str, tuple[int, ...]]] = AXES) -> dict[str, Any]:
    """The memory's seconds, forward and backward, per axis and backend; off the axis `[B 32, T 200, d 32]`.

    Raises:
        UserError: where the number of repeats makes no sense, or a measurement fails.
    """
    check_sizes(repeats=repeats)
    backends = compared_backends(measurements.backends()["fwm"])
    found: dict[str, Any] = {}
    for axis, (_, values) in axes.items():
        lines: dict[str, list[float]] = {backend: [] for backend in backends}
        with team_of(backends, torch.get_num_threads()) as team:
            for value in values:
                console.print(f"memory alone, {axis} {value} …")
                work = Work()._replace(**{axis: value})  # type: ignore[arg-type]  # a field's name
                for backend, seconds in medians(team, "memory_op", work, repeats).items():
                    lines[backend].append(seconds)
        found[axis] = {"values": list(values), **lines}
    return found


def draw(found: dict[str, Any], path: str | Path) -> None:
    """Draw a result of `run`, as PNG, SVG or PDF by the path's ending.

    Raises:
        UserError: where matplotlib is missing or the figure cannot be written.
    """
    chosen = measurements.backends()["fwm"]
    figure = new_figure(11, 3.6)
    panels = figure.subplots(1, len(found), sharey=True, squeeze=False)[0]
    for panel, (axis, line) in zip(panels, found.items(), strict=True):
        for backend in [name for name in line if name != "values"]:
            name = chosen if backend == "auto" else backend
            style = {"reference": ("#999999", "o"), "plain": ("#d17a22", "s")}.get(name, ("#1f5fa8", "^"))
            panel.plot(line["values"], line[backend], color=style[0], marker=style[1], label=LABELS.get(name, name))
        panel.set(xscale="log", yscale="log", xlabel=AXES[axis][0])
        panel.set_xticks(line["values"], [str(value) for value in line["values"]], minor=False)
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("seconds, forward and backward")
    panels[-1].legend(frameon=False, loc="upper left")
    figure.suptitle("Fast weight memory, three reads at every step; off the axis: B 32, T 200, d 32", fontsize=10)
    write(figure, path)
