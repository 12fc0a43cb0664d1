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

from fastweights.tasks.contract import Batch, ControlTask
from fastweights.training import loop

FIGURES = {
    "loss": "loss {:.3f}",
    "answers": "answers {:.1%}",
    "reward": "reward {:.2f}",
    "entropy": "entropy {:.2f}",
}


class ProgressObserver(loop.Observer):
    """A progress bar with a few figures, tokens (or moves) per second and time left; a line for each validation."""

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
        self._figures: dict[str, float] = {}
        self._rate, self._unit = math.nan, ""
        self._then = time.perf_counter()

    def __enter__(self) -> ProgressObserver:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Take the bar away."""
        self._bar.stop()

    def step(self, progress: loop.Progress) -> None:
        now = time.perf_counter()
        self._rate, self._unit = _smooth(self._rate, progress.count / (now - self._then)), progress.unit
        self._then = now
        for name, figure in progress.figures.items():
            if not math.isnan(figure):
                self._figures[name] = _smooth(self._figures.get(name, math.nan), figure)
        if self._job is None:
            self._job = self._bar.add_task("", total=progress.steps, now="", completed=progress.step - 1)
        self._bar.update(self._job, completed=progress.step, now=self._shown("  ", *self._figures))

    def validation(self, step: int, metrics: dict[str, Any], best: bool) -> None:
        if "reward" in metrics:
            others = [f"{key.removesuffix('_reward')} {metrics[key]:.2f}" for key in metrics if key != "reward"]
            found, figure = "  ".join([f"valid: reward {metrics['reward']:.2f}", *others]), "reward"
        else:
            figure = "answers"
            found = f"valid: answers {metrics['answer_accuracy']:.2%}  perplexity {metrics['answer_perplexity']:.3f}"
        self.console.print(
            f"step {step:>6,}  {found}  (training: {self._shown(', ', figure)})" + ("  best so far" if best else "")
        )
        self._then = time.perf_counter()

    def _shown(self, separator: str, *names: str) -> str:
        figures = [FIGURES[name].format(self._figures.get(name, math.nan)) for name in names]
        return separator.join([*figures, f"{self._rate:,.0f} {self._unit}/s"])

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


def result_table(metrics: dict[str, Any], task: Any) -> Table:
    """What was measured, as a table."""
    return reward_table(metrics, task) if isinstance(task, ControlTask) else task_table(metrics, task)


def reward_table(metrics: dict[str, Any], task: ControlTask) -> Table:
    """An agent's mean reward beside the bounds of its task, as a table."""
    table = Table("", "reward of an episode", "", box=None, pad_edge=False)
    bounds = task.bounds(metrics.get("split", "valid"))
    best = max(bounds.values(), default=metrics["reward"])
    rows = {"the agent": metrics["reward"]}
    rows |= {f"the agent, {key.removesuffix('_reward')}": metrics[key] for key in metrics if key.endswith("_reward")}
    rows |= {"at random": bounds["random"], "knowing the map": bounds["best"]} if bounds else {}
    for name, reward in rows.items():
        table.add_row(name, f"{reward:.2f}", "█" * max(0, round(20 * reward / best)) if best > 0 else "")
    return table


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
