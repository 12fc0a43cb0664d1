"""A sweep's runs as a table (mean ± standard deviation over seeds) and as learning curves."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

from fastweights.analysis.figures import legend, new_figure, write
from fastweights.analysis.plots import average, draw_curve, show_percent
from fastweights.analysis.records import UNREADABLE, finite, left_out
from fastweights.errors import UserError
from fastweights.objectives import Metric
from fastweights.training.runs import RunFolder
from fastweights.training.sweep import SEED

COLUMNS = 3  # panels side by side


class Spread(NamedTuple):
    """A mean and a standard deviation over seeds; the deviation of one seed is None."""

    mean: float
    deviation: float | None

    def show(self, metric: Metric) -> str:
        """Mean ± deviation, in the metric's format."""
        return " ± ".join(metric.format.format(value) for value in self if value is not None)


class Row(NamedTuple):
    """All seeds of a recipe with the same settings.

    validation and test are the headline metric of each seed's best model; steps and minutes are means; curves hold a
    list of (step, validation) for each seed.
    """

    recipe: str
    metric: Metric
    settings: dict[str, str]
    seeds: list[str]
    validation: Spread
    test: Spread | None
    steps: float
    minutes: float
    curves: list[list[tuple[int, float]]]

    def to_dict(self) -> dict[str, Any]:
        """The row for `--json`, without its curves."""
        spreads = {"validation": self.validation, "test": self.test}
        plain = {name: value for name, value in self._asdict().items() if name not in ("curves", *spreads)}
        plain["metric"] = self.metric.name
        return plain | {name: None if found is None else found._asdict() for name, found in spreads.items()}


class SweptRun(NamedTuple):
    """One run of a sweep: its settings without the seed, its validations (step, headline metric), test, and minutes."""

    recipe: str
    metric: Metric
    settings: dict[str, str]
    seed: str
    curve: list[tuple[int, float]]
    test: float | None
    minutes: float


def collect(folder: str | Path, on_skip: Callable[[str], None] = lambda reason: None) -> list[Row]:
    """The rows of a sweep's folder, in the order of their names; runs without any validation are left out.

    Args:
        folder: the folder of the run folders.
        on_skip: called with a sentence for each run that cannot be read and is left out.

    Raises:
        UserError: where the folder holds no run of a sweep.
    """
    groups: dict[tuple, list[SweptRun]] = {}
    for path in sorted(Path(folder).rglob("config.yaml")):
        run = read(path.parent, on_skip)
        if run is not None:
            groups.setdefault((run.recipe, run.metric, tuple(run.settings.items())), []).append(run)
    if not groups:
        raise UserError(
            f"{folder} holds no run of a sweep that has been validated; "
            f"make some with `fastweights sweep … --out {folder}`."
        )
    rows = [_row(runs) for runs in groups.values()]
    return sorted(rows, key=lambda row: [_sortable(part) for part in (*row.settings.values(), row.recipe)])


def read(path: Path, on_skip: Callable[[str], None]) -> SweptRun | None:
    """A run of a sweep, or None where it has no validation or cannot be read; then `on_skip` is called with why."""
    try:
        return _read(RunFolder.open(path))
    except UNREADABLE as error:
        on_skip(left_out(path, error))
        return None


def _read(run: RunFolder) -> SweptRun | None:
    """A run of a sweep with a validation, or None; whatever is wrong in its files is an error."""
    config = run.read_config()
    sweep, validations = config.get("sweep"), [record for record in run.records() if "valid" in record]
    if not sweep or not validations:
        return None
    metric = Metric(**config["headline"])
    if not isinstance(metric.label, str):
        raise TypeError("the label of the headline is no text")
    metric.show(0.0)
    hash(metric)  # rows are grouped by it, and a list in its place has none
    settings = {str(key): str(value) for key, value in sweep["settings"].items()}
    seed = settings.pop(SEED, "0")
    curve = [(record["step"], finite(record["valid"][metric.name])) for record in validations]
    test = run.path / "test.json"
    tested = finite(json.loads(test.read_text(encoding="utf-8"))[metric.name]) if test.exists() else None
    minutes = sum(finite(timing["seconds"]) for timing in run.timings()) / 60
    return SweptRun(str(sweep["recipe"]), metric, settings, seed, curve, tested, minutes)


def _sortable(text: str) -> tuple[float, str]:
    try:
        return float(text), ""
    except ValueError:
        return math.inf, text


def _row(runs: list[SweptRun]) -> Row:
    first = runs[0]
    best = max if first.metric.higher_is_better else min
    tests = [run.test for run in runs if run.test is not None]
    return Row(
        first.recipe,
        first.metric,
        first.settings,
        [run.seed for run in runs],
        _spread([best(value for _, value in run.curve) for run in runs]),
        _spread(tests) if len(tests) == len(runs) else None,
        mean(run.curve[-1][0] for run in runs),
        mean(run.minutes for run in runs),
        [run.curve for run in runs],
    )


def _spread(values: Sequence[float]) -> Spread:
    return Spread(mean(values), stdev(values) if len(values) > 1 else None)


def cells(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """The headings and the lines of a table of rows."""
    keys = list(dict.fromkeys(key for row in rows for key in row.settings))
    label = " / ".join(dict.fromkeys(row.metric.label for row in rows))
    headings = [
        "recipe",
        *(key.rpartition(".")[2] for key in keys),
        "seeds",
        f"validation {label}",
        "test",
        "steps",
        "minutes",
    ]
    lines = [
        [
            row.recipe,
            *(row.settings.get(key, "") for key in keys),
            ", ".join(row.seeds),
            row.validation.show(row.metric),
            "" if row.test is None else row.test.show(row.metric),
            f"{row.steps:,.0f}",
            f"{row.minutes:.1f}",
        ]
        for row in rows
    ]
    return headings, lines


def markdown(headings: list[str], lines: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    table = [headings, ["---"] * len(headings), *lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in table)


def draw(rows: Sequence[Row], *paths: str | Path) -> None:
    """Draw learning curves: the validations' headline metric against steps.

    A panel for each combination of settings, a line for each recipe: the mean over seeds, and a band from the least to
    the greatest. The curve of a run that stopped early goes on at its last value.

    Args:
        rows: as from `collect`.
        paths: PNG, SVG or PDF files, by their ending.

    Raises:
        UserError: where matplotlib is missing or a figure cannot be written.
    """
    panels = list(dict.fromkeys(tuple(row.settings.items()) for row in rows))
    names = list(dict.fromkeys(row.recipe for row in rows))
    columns = min(COLUMNS, len(panels))
    height = math.ceil(len(panels) / columns)
    figure = new_figure(1.5 + 3.6 * columns, 3.2 * height)
    grid = figure.subplots(height, columns, sharey=True, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.axis("off")
    drawn: dict[str, Any] = {}
    for axes, settings in zip(grid.flat, panels, strict=False):
        shown = [row for row in rows if tuple(row.settings.items()) == settings]
        last = max(step for row in shown for curve in row.curves for step, _ in curve)
        for row in shown:
            curves = [[*curve, (last, curve[-1][1])] for curve in row.curves]
            drawn[row.recipe] = draw_curve(axes, names.index(row.recipe), *average(curves))
        title = ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in settings)
        axes.set_title(title, parse_math=False)
        axes.xaxis.set_major_formatter("{x:,.0f}")
        if all("%" in row.metric.format for row in rows):
            axes.set_ylim(0, 1.02)
            show_percent(axes.yaxis)
        axes.grid(alpha=0.3)
    for axes in grid[:, 0]:
        axes.set_ylabel(f"validation {rows[0].metric.label}", parse_math=False)
    for axes in grid[-1]:
        axes.set_xlabel("steps")
    legend(figure, list(drawn.values()), list(drawn))
    for path in paths:
        write(figure, path)
