"""Figures of any runs: a recorded metric over steps, and the accuracy per group as bars; each is a table too."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastweights import recipes, tasks
from fastweights.analysis.figures import legend, new_figure, style, write
from fastweights.analysis.records import Run, best_evaluation, collect, finite, headline
from fastweights.errors import UserError, nearest
from fastweights.objectives import OBJECTIVES
from fastweights.tasks import SequenceTask
from fastweights.training.trained import refuse_outside_code

SPLITS = {"train": "training", "valid": "validation", "test": "test"}
ALL = "all"
MARKERS = 8  # along a curve
GROUPS = 11  # in a panel
WIDTH = 0.86  # of a group's bars together, where groups are 1 apart
NAME_WIDTH = 12  # characters of a line of a group's name


class Spread(NamedTuple):
    """Mean, least and greatest value over the runs of a line, such as seeds."""

    mean: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """That of one value or more."""
        return cls(sum(value / len(values) for value in values), min(values), max(values))

    def show(self, format: str) -> str:
        """The mean, and where the values differ their range."""
        mean, least, most = (format.format(value) for value in self)
        return mean if self.least == self.most else f"{mean} ({least} to {most})"


class Curve(NamedTuple):
    """The spreads of runs at steps."""

    label: str
    runs: list[Path]
    steps: list[int]
    spreads: list[Spread]


class Curves(NamedTuple):
    """A metric over steps, by its dotted key in the records."""

    metric: str
    lines: list[Curve]

    def table(self) -> list[list[str]]:
        """Each curve's end, and its lowest and highest mean, headings first."""
        cells = [["line", "runs", "step", words_of(self.metric), "lowest", "highest"]]
        show = format_of(self.metric)
        for line in self.lines:
            means = [spread.mean for spread in line.spreads]
            end = [str(len(line.runs)), f"{line.steps[-1]:,}", line.spreads[-1].show(show)]
            cells.append([line.label, *end, show.format(min(means)), show.format(max(means))])
        return cells

    def to_dict(self) -> dict[str, Any]:
        """All numbers of the figure, for `--json`."""
        lines = [
            {"label": line.label, "runs": [str(path) for path in line.runs], "steps": line.steps}
            | {name: [getattr(spread, name) for spread in line.spreads] for name in Spread._fields}
            for line in self.lines
        ]
        return {"metric": self.metric, "lines": lines}

    def draw(self, path: str | Path) -> None:
        """Draw the curves; the legend names them in the order in which they end, the highest first.

        Raises:
            UserError: where matplotlib is missing or the figure cannot be written.
        """
        figure = new_figure(8.5, 4.2)
        axes = figure.subplots()
        drawn = [draw_curve(axes, index, line.steps, line.spreads) for index, line in enumerate(self.lines)]
        axes.set_xlabel("steps")
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.set_ylabel(words_of(self.metric), parse_math=False)
        if "%" in format_of(self.metric):
            show_percent(axes.yaxis)
        axes.grid(alpha=0.3)
        order = sorted(range(len(drawn)), key=lambda index: -self.lines[index].spreads[-1].mean)
        legend(figure, [drawn[index] for index in order], [self.lines[index].label for index in order])
        write(figure, path)


class Bar(NamedTuple):
    """The accuracy of each group and of `ALL`, at these steps of the runs."""

    label: str
    runs: list[Path]
    steps: list[int]
    groups: dict[str, Spread]


class Bars(NamedTuple):
    """The accuracy per group on a split; groups are names by keys, empty where the task is not known."""

    split: str
    groups: dict[str, str]
    lines: list[Bar]

    def table(self) -> list[list[str]]:
        """A line for each group, headings first."""
        cells = [[f"{SPLITS[self.split]} accuracy", *(line.label for line in self.lines)]]
        for key, name in self.groups.items():
            shown = [line.groups[key].show("{:.1%}") if key in line.groups else "" for line in self.lines]
            cells.append([f"{key:>2} {name}", *shown])
        return cells

    def to_dict(self) -> dict[str, Any]:
        """All numbers of the figure, for `--json`."""
        lines = [
            {"label": line.label, "runs": [str(path) for path in line.runs], "steps": line.steps}
            | {"groups": {key: spread._asdict() for key, spread in line.groups.items()}}
            for line in self.lines
        ]
        return {"split": self.split, "groups": self.groups, "lines": lines}

    def draw(self, path: str | Path) -> None:
        """Draw the groups in panels of up to `GROUPS`, a bar for each line; several runs with their range.

        Raises:
            UserError: where matplotlib is missing or the figure cannot be written.
        """
        panels = math.ceil(len(self.groups) / GROUPS)
        count = math.ceil(len(self.groups) / panels)
        figure = new_figure(3.5 + count * max(0.85, 0.16 * len(self.lines)), 0.4 + 2.5 * panels)
        for number, axes in enumerate(figure.subplots(panels, 1, squeeze=False)[:, 0]):
            keys = list(self.groups)[number * count : (number + 1) * count]
            drawn = [self._draw_line(axes, index, keys) for index in range(len(self.lines))]
            names = ["\n".join([key, *textwrap.wrap(self.groups[key], NAME_WIDTH)]) for key in keys]
            axes.set_xticks(range(len(keys)), names, fontsize=8, parse_math=False)
            axes.set(xlim=(-0.5, count - 0.5), ylim=(0, 1.02), ylabel=f"{SPLITS[self.split]} accuracy")
            show_percent(axes.yaxis)
            axes.grid(axis="y", alpha=0.3)
            axes.set_axisbelow(True)
        legend(figure, drawn, [line.label for line in self.lines])
        write(figure, path)

    def _draw_line(self, axes: Any, index: int, keys: Sequence[str]) -> Any:
        line, look, width = self.lines[index], style(index), WIDTH / len(self.lines)
        first = (index + 0.5) * width - WIDTH / 2
        shown = {place + first: line.groups[key] for place, key in enumerate(keys) if key in line.groups}
        places, means = list(shown), [spread.mean for spread in shown.values()]
        bars = axes.bar(places, means, width, color=look.color, hatch=look.hatch, edgecolor="white", lw=0.5)
        if len(line.runs) > 1:
            ranges = [(spread.mean - spread.least, spread.most - spread.mean) for spread in shown.values()]
            for color, lw in (("white", 2.5), ("black", 1.0)):  # visible on dark bars too
                axes.errorbar(places, means, np.transpose(ranges), fmt="none", ecolor=color, lw=lw, capsize=2)
        for place, key in enumerate(keys):
            if key not in line.groups:  # no bar, but not of height 0 either
                axes.text(place + first, 0, "–", color=look.color, ha="center", va="bottom")
        return bars


def curves(words: Sequence[str], metric: str | None, on_skip: Callable[[str], None]) -> Curves:
    """A metric over steps.

    Args:
        words: runs, as in `records.collect`.
        metric: dotted as in `metrics.jsonl`, such as "valid.loss" or "valid.groups.3.accuracy"; None for the headline
            metric of the validations.
        on_skip: called with a sentence for each run that is left out.

    Raises:
        UserError: where none is left, the runs have different headline metrics, or those of a line no step in common.
    """

    def extract(run: Run) -> tuple[str, list[tuple[int, float]]]:
        key = metric or f"valid.{headline(run).name}"
        points = [(record["step"], finite(value)) for record in run.records for value in look_up(record, key)]
        if not points:
            known = {name for record in run.records for name in keys_of(record)}
            raise UserError(f"its records have no {key}{nearest(key, sorted(known))}")
        return key, points

    lines = collect(words, extract, on_skip)
    keys = sorted({key for line in lines for key, _ in line.values})
    if len(keys) > 1:
        raise UserError(f"The runs have different headline metrics ({', '.join(keys)}); choose one with --metric.")
    found = [Curve(line.label, line.runs, *average([points for _, points in line.values])) for line in lines]
    for curve in found:
        if not curve.steps:
            raise UserError(f"The runs of {curve.label} have no steps in common; name them apart, NAME=RUN.")
    return Curves(keys[0], found)


def bars(words: Sequence[str], on_skip: Callable[[str], None]) -> Bars:
    """The accuracy per group, at each run's best validation.

    Args:
        words: runs, as in `records.collect`.
        on_skip: called with a sentence for each run that is left out.

    Raises:
        UserError: where none is left, or some are of the validation split and others of the test split.
    """
    names: dict[str, str] = {}

    def extract(run: Run) -> tuple[int, str, dict[str, float]]:
        step, split, metrics = best_evaluation(run)
        if "groups" not in metrics:
            raise UserError("its evaluations are not by group")
        accuracy = {group: finite(row["accuracy"]) for group, row in metrics["groups"].items()}
        names.update(_group_names(run))
        return step, split, accuracy | {ALL: finite(metrics["answer_accuracy"])}

    lines = collect(words, extract, on_skip)
    splits = {split for line in lines for _, split, _ in line.values}
    if len(splits) > 1:
        raise UserError("Some runs are of the validation split, others of the test split; give those of one.")
    groups = {group for line in lines for *_, accuracy in line.values for group in accuracy}
    keys = sorted(groups, key=lambda group: (group == ALL, len(group), group))
    found = []
    for line in lines:
        values = {key: [accuracy[key] for *_, accuracy in line.values if key in accuracy] for key in keys}
        spreads = {key: Spread.of(some) for key, some in values.items() if some}
        found.append(Bar(line.label, line.runs, [step for step, *_ in line.values], spreads))
    return Bars(splits.pop(), {key: names.get(key, "") for key in keys}, found)


def _group_names(run: Run) -> dict[str, str]:
    """The task's names of its groups, where the run has a configuration of today's form and of this package's parts."""
    try:
        refuse_outside_code(run.path, run.config["recipe"], trust=False)
        task = tasks.build(recipes.load(run.config["recipe"]).task)
    except (KeyError, UserError):
        return {}
    return {str(key): name for key, name in task.group_names().items()} if isinstance(task, SequenceTask) else {}


def average(runs: Sequence[Sequence[tuple[int, float]]]) -> tuple[list[int], list[Spread]]:
    """Steps and spreads of several runs' points, from where all have begun to where the first ends.

    A run is interpolated linearly between its points.

    >>> average([[(10, 0.5), (20, 0.75)], [(10, 0.0), (20, 0.25), (30, 1.0)]])[0]
    [10, 20]
    """
    first, last = max(points[0][0] for points in runs), min(points[-1][0] for points in runs)
    steps = sorted({step for points in runs for step, _ in points if first <= step <= last})
    values = [np.interp(steps, [step for step, _ in points], [value for _, value in points]) for points in runs]
    return steps, [Spread.of(found) for found in np.transpose(values).tolist()]


def look_up(record: Any, key: str) -> list[Any]:
    """The value of a dotted key in a record, or nothing.

    >>> look_up({"step": 1, "valid": {"groups": {"3": {"accuracy": 0.5}}}}, "valid.groups.3.accuracy")
    [0.5]
    """
    for name in key.split("."):
        if name not in record:
            return []
        record = record[name]
    return [record]


def keys_of(record: dict[str, Any]) -> Iterable[str]:
    """The dotted keys of a record.

    >>> list(keys_of({"step": 1, "valid": {"loss": 0.5, "groups": {"3": {"accuracy": 0.5}}}}))
    ['step', 'valid.loss', 'valid.groups.3.accuracy']
    """
    for name, value in record.items():
        if isinstance(value, dict):
            yield from (f"{name}.{key}" for key in keys_of(value))
        else:
            yield name


def format_of(metric: str) -> str:
    """The format of a metric's values by its dotted key: an objective's, or percent for any accuracy.

    >>> format_of("valid.groups.3.accuracy"), format_of("valid.perplexity")
    ('{:.2%}', '{:.3f}')
    """
    name = metric.rpartition(".")[2]
    known = [found for objective in OBJECTIVES.entries.values() for found in (objective.headline, *objective.summary)]
    other = "{:.2%}" if name.endswith("accuracy") else "{:.4g}"
    return next((found.format for found in known if found.name == name), other)


def words_of(metric: str) -> str:
    """A metric in words, for an axis.

    >>> words_of("valid.answer_accuracy")
    'validation answer accuracy'
    """
    first, _, rest = metric.partition(".")
    return f"{SPLITS.get(first, first)} {rest}".replace("_", " ").replace(".", " ")


def show_percent(axis: Any) -> None:
    """Label an axis of fractions in percent."""
    from matplotlib.ticker import PercentFormatter

    axis.set_major_formatter(PercentFormatter(1.0))


def draw_curve(axes: Any, index: int, steps: Sequence[int], spreads: Sequence[Spread]) -> Any:
    """Draw the mean of a curve, in the style of its number, on the band of its runs; return the line."""
    look = style(index)
    means, least, most = zip(*spreads, strict=True)
    axes.fill_between(steps, least, most, color=look.color, alpha=0.2, lw=0)
    every = max(1, len(steps) // MARKERS)
    (line,) = axes.plot(
        steps, means, color=look.color, linestyle=look.line, marker=look.marker, markersize=5, lw=1.6,
        markevery=(index % every, every),  # so that markers do not hide each other
    )  # fmt: skip
    return line
