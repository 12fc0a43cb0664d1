"""A sweep's runs as a table (mean ± standard deviation over seeds) and as learning curves."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

from fastweights.analysis.figures import COLORS, new_figure, write
from fastweights.errors import UserError
from fastweights.training.runs import RunFolder
from fastweights.training.sweep import SEED

COLUMNS = 3  # panels side by side


class Spread(NamedTuple):
    """A mean and a standard deviation over seeds; the deviation of one seed is None."""

    mean: float
    deviation: float | None

    def __str__(self) -> str:
        return f"{self.mean:.1%}" + ("" if self.deviation is None else f" ± {self.deviation:.1%}")


class Row(NamedTuple):
    """All seeds of a recipe with the same settings.

    validation and test are accuracies at the answers as fractions, of each seed's best model (by validation loss);
    steps and minutes are means; curves hold a list of (step, validation accuracy) for each seed.
    """

    recipe: str
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
        kept = {name: value for name, value in self._asdict().items() if name not in ("curves", *spreads)}
        return kept | {name: None if found is None else found._asdict() for name, found in spreads.items()}


def collect(folder: str | Path) -> list[Row]:
    """The rows of a sweep's folder, in the order of their names; runs without any validation are left out.

    Raises:
        UserError: where the folder holds no run of a sweep.
    """
    groups: dict[tuple, list[tuple[str, RunFolder, list[dict]]]] = {}
    for config in sorted(Path(folder).rglob("config.yaml")):
        run = RunFolder.open(config.parent)
        sweep = run.read_config().get("sweep")
        validations = [record for record in run.records() if "answer_accuracy" in record.get("valid", {})]
        if sweep and validations:
            settings = tuple((key, value) for key, value in sweep["settings"].items() if key != SEED)
            seed = sweep["settings"].get(SEED, "0")
            groups.setdefault((sweep["recipe"], settings), []).append((seed, run, validations))
    if not groups:
        raise UserError(
            f"{folder} holds no run of a sweep that has been validated; "
            f"make some with `fastweights sweep … --out {folder}`."
        )
    rows = [_row(recipe, dict(settings), runs) for (recipe, settings), runs in groups.items()]
    return sorted(rows, key=lambda row: [_sortable(part) for part in (*row.settings.values(), row.recipe)])


def _sortable(text: str) -> tuple[float, str]:
    try:
        return float(text), ""
    except ValueError:
        return math.inf, text


def _row(recipe: str, settings: dict[str, str], runs: list[tuple[str, RunFolder, list[dict]]]) -> Row:
    best = [min(validations, key=lambda record: record["valid"]["loss"]) for _, _, validations in runs]
    tests = [_test(run) for _, run, _ in runs]
    return Row(
        recipe,
        settings,
        [seed for seed, _, _ in runs],
        _spread([record["valid"]["answer_accuracy"] for record in best]),
        None if None in tests else _spread(tests),
        mean(validations[-1]["step"] for _, _, validations in runs),
        mean(sum(timing["seconds"] for timing in run.timings()) / 60 for _, run, _ in runs),
        [[(record["step"], record["valid"]["answer_accuracy"]) for record in found] for _, _, found in runs],
    )


def _test(run: RunFolder) -> float | None:
    path = run.path / "test.json"
    return json.loads(path.read_text(encoding="utf-8"))["answer_accuracy"] if path.exists() else None


def _spread(values: Sequence[float]) -> Spread:
    return Spread(mean(values), stdev(values) if len(values) > 1 else None)


def cells(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """The headings and the lines of a table of rows."""
    keys = list(dict.fromkeys(key for row in rows for key in row.settings))
    headings = ["recipe", *(key.rpartition(".")[2] for key in keys), "seeds", "validation", "test", "steps", "minutes"]
    lines = [
        [
            row.recipe,
            *(row.settings.get(key, "") for key in keys),
            ", ".join(row.seeds),
            str(row.validation),
            "" if row.test is None else str(row.test),
            f"{row.steps:,.0f}",
            f"{row.minutes:.1f}",
        ]
        for row in rows
    ]
    return headings, lines


def markdown(rows: Sequence[Row]) -> str:
    """The rows as a table in Markdown."""
    headings, lines = cells(rows)
    table = [headings, ["---"] * len(headings), *lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in table)


def draw(rows: Sequence[Row], *paths: str | Path) -> None:
    """Draw validation accuracy against steps, a panel for each combination of settings, a colour for each recipe.

    The mean over seeds is thick, each seed thin; a run that stopped early stays where it was.

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
    for axes, settings in zip(grid.flat, panels, strict=False):
        shown = [row for row in rows if tuple(row.settings.items()) == settings]
        last = max(step for row in shown for curve in row.curves for step, _ in curve)
        for row in shown:
            color = COLORS[names.index(row.recipe) % len(COLORS)]
            steps = sorted({step for curve in row.curves for step, _ in curve} | {last})
            values = [[_at(curve, step) for step in steps] for curve in row.curves]
            for one in values if len(values) > 1 else ():
                axes.plot(steps, one, color=color, lw=0.6, alpha=0.5)
            axes.plot(steps, [mean(found) for found in zip(*values, strict=True)], color=color, lw=2, label=row.recipe)
        axes.set(title=", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in settings), ylim=(0, 1.02))
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.yaxis.set_major_formatter(lambda y, _: f"{y:.0%}")
        axes.grid(alpha=0.3)
    for axes in grid[:, 0]:
        axes.set_ylabel("validation accuracy")
    for axes in grid[-1]:
        axes.set_xlabel("steps")
    handles = {
        label: handle for axes in grid.flat for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside right upper", frameon=False)
    for path in paths:
        write(figure, path)


def _at(curve: Sequence[tuple[int, float]], step: int) -> float:
    """The accuracy at the last validation up to a step; before the first, that of the first."""
    return next((value for at, value in reversed(curve) if at <= step), curve[0][1])
