"""Training and results as people see them: a progress bar, lines for validations, a table per task."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from fastweights.tasks.contract import Batch
from fastweights.training import supervised


class ProgressObserver(supervised.Observer):
    """A progress bar with loss, accuracy, tokens per second and time left; a line for each validation."""

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
            refresh_per_second=4,
        )
        self._job: Any = None
        self._loss = self._accuracy = self._rate = math.nan
        self._then = time.perf_counter()

    def __enter__(self) -> ProgressObserver:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Take the bar away."""
        self._bar.stop()

    def step(self, progress: supervised.Progress) -> None:
        now = time.perf_counter()
        self._rate = _smooth(self._rate, progress.tokens / (now - self._then))
        self._then = now
        self._loss = _smooth(self._loss, progress.loss)
        if not math.isnan(progress.accuracy):
            self._accuracy = _smooth(self._accuracy, progress.accuracy)
        if self._job is None:
            self._job = self._bar.add_task("", total=progress.steps, now="", completed=progress.step - 1)
        text = f"loss {self._loss:.3f}  answers {self._accuracy:.1%}  {self._rate:,.0f} tokens/s"
        self._bar.update(self._job, completed=progress.step, now=text)

    def validation(self, step: int, metrics: dict[str, Any], best: bool) -> None:
        self.console.print(
            f"step {step:>6,}  valid: answers {metrics['answer_accuracy']:.2%}  perplexity "
            f"{metrics['answer_perplexity']:.3f}  (training: answers {self._accuracy:.1%}, {self._rate:,.0f} tokens/s)"
            + ("  best so far" if best else "")
        )
        self._then = time.perf_counter()

    def note(self, text: str) -> None:
        self.console.print(f"note: {text}")


def _smooth(old: float, new: float) -> float:
    return new if math.isnan(old) else 0.95 * old + 0.05 * new


@contextmanager
def evaluation_progress(console: Console, tokens: int) -> Iterator[Callable[[Batch], None]]:
    """A progress bar over the tokens of an evaluation."""
    with Progress(
        TextColumn("reading"),
        BarColumn(),
        TextColumn("{task.completed:,.0f} of {task.total:,.0f} tokens"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as bar:
        job = bar.add_task("", total=tokens)
        yield lambda batch: bar.advance(job, int(batch.valid.sum()))


def task_table(metrics: dict[str, Any], task: Any) -> Table:
    """Accuracy per task and over all, as a table."""
    table = Table("task", "questions", "accuracy", "", box=None, pad_edge=False)
    names = task.group_names()
    for number, row in metrics["tasks"].items():
        bar = "█" * round(20 * row["accuracy"])
        table.add_row(
            f"{number:>2} {names.get(int(number), '')}",
            f"{row['questions']:,}",
            f"{row['accuracy']:.1%}",
            bar,
        )
    table.add_row(
        "all",
        f"{metrics['questions']:,}",
        f"{metrics['answer_accuracy']:.2%}",
        f"perplexity {metrics['answer_perplexity']:.3f}",
    )
    return table
