"""Where a training step's time goes, in parts that add up."""

from __future__ import annotations

import time
from statistics import median
from typing import Any

from rich.console import Console, RenderableType
from torch.autograd.profiler import profile

from fastweights.bench import limits
from fastweights.bench.machine import caption, describe
from fastweights.bench.measurements import HIDDEN, MODES, QUESTIONS, Work, flops, memory_multiplications, step
from fastweights.training.allocator import keep_freed_blocks

PARTS = {  # by a part of an operator's name; the first that fits
    "LSTM, backward": ("lstm_cpu_backward", "lstm_plain_backward", "gather_backward"),
    "LSTM, forward": ("lstm_cpu", "lstm_plain"),
    "memory, backward": ("fwm_cpu_backward", "fwm_plain_backward"),
    "memory, forward": ("fwm_cpu", "fwm_plain"),
    "large products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "mkldnn::"),
    "optimizer": ("adam", "Optimizer"),
}
REST = "everything else"


def run(batch_size: int, length: int, repeats: int, console: Console) -> dict[str, Any]:
    """Time a training step as a whole and in parts, in both modes, with the backends that "auto" takes.

    Args:
        batch_size: sequences of a batch.
        length: tokens of a sequence.
        repeats: steps, of which the median is taken.
        console: where progress is shown.

    Returns:
        For each mode the seconds and the operations of each part, and the processor's limits.

    Raises:
        UserError: where a size is below 1.
    """
    machine = describe(batch_size, length, repeats)
    keep_freed_blocks()  # as training does
    found: dict[str, Any] = {"machine": machine, "limits": limits.run(machine["threads"], repeats)}
    for mode in MODES:
        console.print(f"training step, {mode} …")
        work = Work(mode, batch_size, length)
        seconds = _seconds(work, repeats)
        operations = _operations(work)
        found[mode] = {part: {"seconds": seconds[part], "flops": operations.get(part)} for part in seconds}
    return found


def _seconds(work: Work, repeats: int) -> dict[str, float]:
    """The seconds of each part; those of the whole step are measured without the profiler, and the rest is the rest."""
    run = step(work, "auto")
    for _ in range(3):
        run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    with profile(use_kineto=False) as profiler:
        for _ in range(repeats):
            run()
    found = dict.fromkeys(PARTS, 0.0)
    for event in profiler.key_averages():
        part = next((part for part, names in PARTS.items() if any(name in event.key for name in names)), None)
        if part is not None:
            found[part] += event.self_cpu_time_total / 1e6 / repeats
    whole = median(times)
    return {**found, REST: max(0.0, whole - sum(found.values())), "the whole step": whole}


def _operations(work: Work) -> dict[str, float]:
    """The floating point operations of the parts that are mostly products."""
    positions, d = work.batch_size * work.length, work.memory_size
    outputs = positions * (QUESTIONS if work.mode == "qa" else 1)
    recurrence = 2.0 * positions * HIDDEN * 4 * HIDDEN
    forward = 2.0 * memory_multiplications(positions, outputs, d, backward=False)
    both = 2.0 * memory_multiplications(positions, outputs, d, backward=True)
    found = {"LSTM, forward": recurrence, "LSTM, backward": recurrence, "memory, forward": forward}
    found["memory, backward"] = both - forward
    whole = flops(work)
    return {**found, "large products": whole - sum(found.values()), "the whole step": whole}


def table(result: dict[str, Any]) -> RenderableType:
    """A result of `run` for people."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    limit = result["limits"]["gflop_per_s"][result["limits"]["limit"]] * 1e9
    times = Table("training step", box=None, pad_edge=False)
    for mode in MODES:
        for heading in (mode, "of the step", "of the limit"):
            times.add_column(heading, justify="right")
    for part in result[MODES[0]]:
        cells = []
        for mode in MODES:
            seconds, operations = result[mode][part].values()
            share = f"{operations / limit / seconds:.0%}" if operations and seconds else ""
            cells += [f"{seconds * 1000:,.1f} ms", f"{seconds / result[mode]['the whole step']['seconds']:.0%}", share]
        times.add_row(part, *cells)
    rates = Table.grid(padding=(0, 2))
    for line in limits.lines(result["limits"]):
        rates.add_row(*line)
    words = f"{caption(result['machine'], 'sequences', 'tokens')}. Large products go to {result['limits']['products']}."
    return Group(times, "", rates, "", Text(words))
