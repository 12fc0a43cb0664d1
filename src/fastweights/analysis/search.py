"""A search's results as a table and as the figures of the FWM paper's appendix F, and its best recipe as a file."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from fastweights.analysis import report
from fastweights.analysis.figures import legend, new_figure, style
from fastweights.analysis.figures import write as write_figure
from fastweights.analysis.plots import average, draw_curve, show_percent
from fastweights.analysis.report import COLUMNS
from fastweights.objectives import Metric
from fastweights.recipes import Recipe
from fastweights.training import space
from fastweights.training.checkpoint import write_atomically
from fastweights.training.search import Search

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FILES = ("search.md", "curves.png", "parameters.png")
LABELLED = 12  # settings with a style of their own; the others are thin and grey


class SearchRow(NamedTuple):
    """A setting: its recipe, its results at the ends of rounds, why it failed, and what its run folder holds."""

    recipe: Recipe
    settings: dict[str, str]
    run: str
    values: list[float]
    failure: str | None
    curve: list[tuple[int, float]]
    test: float | None
    minutes: float

    def to_dict(self) -> dict[str, Any]:
        """The row for `--json`, without recipe and curve."""
        return {name: value for name, value in self._asdict().items() if name not in ("recipe", "curve")}

    def label(self, without: str | None = None) -> str:
        """Its settings in words."""
        shown = (f"{_name(key)} {short(value)}" for key, value in self.settings.items() if key != without)
        return ", ".join(shown)


def _name(key: str) -> str:
    return key.rpartition(".")[2]


def short(value: str) -> str:
    """A value with three digits where it has many.

    >>> short("0.0003187243"), short("0.00025"), short("fw-lstm-and-more")
    ('0.000319', '0.00025', 'fw-lstm-and-more')
    """
    try:
        return value if len(value) <= 8 else f"{float(value):.3g}"
    except ValueError:
        return value


def collect(search: Search) -> list[SearchRow]:
    """The settings of a search, the best first, those that failed last."""
    rows = []
    for result in search.results():
        path = result.point.path(search.folder)
        read = report.read(path, on_skip=lambda text: None) if (path / "config.yaml").exists() else None
        curve, test, minutes = ([], None, 0.0) if read is None else (read.curve, read.test, read.minutes)
        point = result.point
        rows.append(
            SearchRow(point.recipe, point.settings, str(path), result.values, result.failure, curve, test, minutes)
        )
    return rows


def write(search: Search) -> list[SearchRow]:
    """Write table, figures and best recipe into the folder of a search, and return its rows.

    Raises:
        UserError: where matplotlib is missing or a file cannot be written.
    """
    rows = collect(search)
    table, curves, parameters = (search.folder / name for name in FILES)
    with search.locked():
        write_atomically(table, report.markdown(*cells(search, rows)).encode())
        draw_curves(search, rows, curves)
        draw_parameters(search, rows, parameters)
        best = rows[0]
        if best.failure is None:
            end = search.plan.rounds[len(best.values) - 1]
            text = yaml.safe_dump(best.recipe.to_dict(), sort_keys=False, allow_unicode=True)
            head = f"# the best of a search: validation {search.metric.show(best.values[-1])} by step {end:,}\n"
            write_atomically(search.folder / "best.yaml", (head + text).encode())
    return rows


def cells(search: Search, rows: Sequence[SearchRow]) -> tuple[list[str], list[list[str]]]:
    """The headings and the lines of a table of rows."""
    metric = search.metric
    ends = [f"validation {metric.label} by step {step:,}" for step in search.plan.rounds]
    notes = [re.split(r" \(|\. ", row.failure)[0] if row.failure else "" for row in rows]
    tested = any(row.test is not None for row in rows)
    headings = [*map(_name, search.plan.axes), *ends, *(["test"] if tested else []), "minutes"]
    lines = []
    for row in rows:
        values = [metric.format.format(value) for value in row.values]
        test = [] if not tested else [""] if row.test is None else [metric.format.format(row.test)]
        settings = map(short, row.settings.values())
        lines.append([*settings, *values, *[""] * (len(ends) - len(values)), *test, f"{row.minutes:.1f}"])
    if any(notes):
        headings.append("failed")
        lines = [[*line, note] for line, note in zip(lines, notes, strict=True)]
    return headings, lines


def draw_curves(search: Search, rows: Sequence[SearchRow], path: Path) -> None:
    """Draw every setting's validations against steps, the best first in the legend; lines are at the ends of rounds."""
    figure = new_figure(9, 4.5)
    axes = figure.subplots()
    drawn = {}
    for place, row in enumerate(row for row in rows if row.curve):
        steps, spreads = average([row.curve])
        if place < LABELLED:
            drawn[row.label() + (" (failed)" if row.failure else "")] = draw_curve(axes, place, steps, spreads)
        else:
            axes.plot(steps, [spread.mean for spread in spreads], color="0.75", lw=0.8, zorder=1)
    for step in search.plan.rounds[:-1]:
        axes.axvline(step, color="0.4", lw=0.8, ls=":")
    axes.set(xlabel="steps", ylabel=f"validation {search.metric.label}")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    _set_metric(axes, search.metric)
    legend(figure, list(drawn.values()), list(drawn))
    write_figure(figure, path)


def draw_parameters(search: Search, rows: Sequence[SearchRow], path: Path) -> None:
    """Draw every parameter against the result of the first round; lines join settings that differ in it alone.

    A star is the result of the last round, a cross a setting that failed in the first.
    """
    plan = search.plan
    columns = min(COLUMNS, len(plan.axes))
    height = math.ceil(len(plan.axes) / columns)
    figure = new_figure(4.5 * columns, 3.8 * height)
    grid = figure.subplots(height, columns, sharey=True, squeeze=False)
    for panel in grid.flat[len(plan.axes) :]:
        panel.axis("off")
    rows = sorted(rows, key=lambda row: [_places(key, axis, [row]) for key, axis in plan.axes.items()])
    for panel, (key, axis) in zip(grid.flat, plan.axes.items(), strict=False):
        _draw_parameter(panel, key, axis, rows)
        if len(plan.rounds) > 1:
            last = [row for row in rows if len(row.values) == len(plan.rounds)]
            values = [row.values[-1] for row in last]
            label = f"by step {plan.rounds[-1]:,}"
            panel.plot(_places(key, axis, last), values, "*", color="black", ms=10, label=label)
        _set_metric(panel, search.metric)
        if panel.get_legend_handles_labels()[0]:
            panel.legend(fontsize="x-small")
    for panel in grid[:, 0]:
        panel.set_ylabel(f"validation {search.metric.label} by step {plan.rounds[0]:,}")
    write_figure(figure, path)


def _draw_parameter(panel: Axes, key: str, axis: space.Axis, rows: Sequence[SearchRow]) -> None:
    groups: dict[str, list[SearchRow]] = {}
    for row in rows:
        groups.setdefault(row.label(without=key), []).append(row)
    is_grid = len(groups) <= LABELLED and any(len(group) > 1 for group in groups.values())
    for number, (label, group) in enumerate(groups.items() if is_grid else [("", rows)]):
        done = [row for row in group if row.values]
        points = sorted(zip(_places(key, axis, done), (row.values[0] for row in done), strict=True))
        if points:
            look = style(number)
            line = look.line if is_grid else "none"
            panel.plot(
                *zip(*points, strict=True),
                color=look.color,
                ls=line,
                marker=look.marker,
                lw=1,
                ms=5,
                label=_plain(label),
            )
    failed = [row for row in rows if not row.values]
    if failed:
        bottom = panel.get_xaxis_transform()
        panel.plot(_places(key, axis, failed), [0.03] * len(failed), "kx", transform=bottom, label="failed")
    panel.set(xlabel=_name(key))
    if isinstance(axis, space.Range):
        panel.set_xscale("log" if axis.log else "linear")
    else:
        panel.set_xticks(range(len(axis.texts)), [_plain(short(text)) for text in axis.texts])
        panel.set_xlim(-0.5, len(axis.texts) - 0.5)


def _places(key: str, axis: space.Axis, rows: Sequence[SearchRow]) -> list[float]:
    """Where settings stand on a parameter's axis: at their number, or at their place in the list."""
    texts = [row.settings[key] for row in rows]
    return [float(text) if isinstance(axis, space.Range) else list(axis.texts).index(text) for text in texts]


def _plain(text: str) -> str:
    """A text in which a dollar begins no formula."""
    return text.replace("$", r"\$")


def _set_metric(axes: Axes, metric: Metric) -> None:
    axes.grid(alpha=0.3)
    if "%" in metric.format:
        show_percent(axes.yaxis)
    elif not metric.higher_is_better:  # a perplexity or a loss, which falls by orders of magnitude
        axes.set_yscale("log")
