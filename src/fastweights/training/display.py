"""Training and results for people: a progress bar, a line for each validation, a table."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from fastweights.objectives import Objective, Sums
from fastweights.training import loop

SMOOTHING = 0.95  # of the bar's figures, per step
REFRESH = 0.25  # seconds between two refreshes


class ProgressObserver(loop.Observer):
    """A progress bar with metrics, units per second and the time left; a line for each validation."""

    def __init__(self, console: Console):
        self.console = console
        self._bar = Progress(
            TextColumn("step {task.completed:,.0f}/{task.total:,.0f}"),
            BarColumn(),
            TextColumn("{task.fields[now]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
            refresh_per_second=round(1 / REFRESH),
        )
        self._job: Any = None
        self._objective: Objective | None = None
        self._sums = Sums()
        self._count = self._seconds = 0.0
        self._then = self._shown_at = time.perf_counter()

    def __enter__(self) -> ProgressObserver:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Remove the bar."""
        self._bar.stop()

    def begin(self, objective: Objective) -> None:
        self._objective = objective
        self._then = time.perf_counter()

    def step(self, progress: loop.Progress) -> None:
        now = time.perf_counter()
        self._sums.add(progress.sums, SMOOTHING)
        self._count = SMOOTHING * self._count + progress.count
        self._seconds = SMOOTHING * self._seconds + now - self._then
        self._then = now
        if self._job is None:
            self._job = self._bar.add_task("", total=progress.steps, now="", completed=progress.step - 1)
        if now - self._shown_at > REFRESH:
            self._shown_at = now
            self._bar.update(self._job, completed=progress.step, now=self._now("  "))

    def validation(self, step: int, metrics: Mapping[str, Any], best: bool) -> None:
        assert self._objective is not None
        line = f"step {step:>6,}  valid: {self._objective.summarize(metrics)}  (training: {self._now(', ')})"
        self.console.print(line + ("  best so far" if best else ""))
        self._then = time.perf_counter()

    def _now(self, separator: str) -> str:
        """The metrics of the last steps, weighted towards the present."""
        assert self._objective is not None
        metrics = self._objective.metrics(self._sums)
        figures = [metric.show(metrics[metric.name]) for metric in self._objective.progress]
        unit = self._objective.unit.replace("_", " ")
        return separator.join([*figures, f"{self._count / self._seconds:,.0f} {unit}/s"])

    def note(self, text: str) -> None:
        self.console.print(f"note: {text}")


@contextmanager
def evaluation_progress(console: Console, unit: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A progress bar over the units of an evaluation; the total may be unknown."""
    of = "" if total is None else " of {task.total:,.0f}"
    with Progress(
        TextColumn("evaluating"),
        BarColumn(),
        TextColumn("{task.completed:,.0f}" + of + f" {unit.replace('_', ' ')}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as progress:
        job = progress.add_task("", total=total)
        yield lambda count: progress.advance(job, count)


def as_table(lines: Sequence[Sequence[str]]) -> Table:
    """Lines, headings first, as a table."""
    headings, *rows = lines
    table = Table(*headings, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    return table
