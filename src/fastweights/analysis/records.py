"""Recorded runs, read to be compared: what each recorded, and labels that say what differs between them."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from fastweights.errors import UserError, reason
from fastweights.objectives import OBJECTIVES, Metric
from fastweights.training.runs import RunFolder, read_records

T = TypeVar("T")

CORE = "model.core"
ALIKE = ("description", *(f"training.{key}" for key in ("seed", "report_every", "evaluate_every", "save_every")))
"""Settings in which the runs of one line may differ: the seed, and what changes nothing that is learned."""
UNREADABLE = (
    ArithmeticError, AttributeError, LookupError, OSError, RecursionError, TypeError, ValueError, UserError,
)  # fmt: skip
"""What a file with odd content may raise where it is read."""


class Run(NamedTuple):
    """A run by its path: its configuration (empty where there is none) and its records."""

    path: Path
    config: Mapping[str, Any]
    records: list[dict[str, Any]]


class Line(NamedTuple, Generic[T]):
    """The runs that are shown as one, and what was extracted from each."""

    label: str
    runs: list[Path]
    values: list[T]


def left_out(path: Path, error: Exception) -> str:
    """A sentence on a run that cannot be shown."""
    why = reason(error)[:200]
    if not isinstance(error, UserError):
        why = f"it cannot be read ({type(error).__name__}: {why})"
    return f"{path} is left out: {why}"


def collect(words: Sequence[str], extract: Callable[[Run], T], on_skip: Callable[[str], None]) -> list[Line[T]]:
    """The lines of a figure, in the order of the words.

    Args:
        words: `RUN` or `NAME=RUN`, where RUN is a run folder, a folder of run folders, a file of records (.jsonl), or
            an evaluation (.json, from `fastweights evaluate --json`). Runs of one name are one line; so are runs
            without a name whose recipes differ in nothing but `ALIKE`.
        extract: what is shown of a run; its exceptions leave the run out.
        on_skip: called with a sentence for each run that is left out.

    Raises:
        UserError: where there is no such run, or none is left.
    """
    found: dict[tuple[str | None, str], tuple[Run, T]] = {}
    for word in words:
        name, place = _split(word)
        for path in _runs_in(place):
            try:
                run = _read(path)
                found.setdefault((name, os.path.realpath(path)), (run, extract(run)))
            except UNREADABLE as error:
                on_skip(left_out(path, error))
    if not found:
        raise UserError("No run can be shown, for the reasons above; give others.")
    unnamed = [key for key in found if key[0] is None]
    labels = dict(zip(unnamed, differences([settings_of(found[key][0].config) for key in unnamed]), strict=True))
    lines: dict[str, Line[T]] = {}
    for key, (run, value) in found.items():
        label = key[0] or labels[key] or str(run.path)
        line = lines.setdefault(label, Line(label, [], []))
        line.runs.append(run.path)
        line.values.append(value)
    return list(lines.values())


def _split(word: str) -> tuple[str | None, Path]:
    """The name and the path of `NAME=RUN` or `RUN`; paths too may have equals signs in them."""
    places = [-1, *(place for place, letter in enumerate(word) if letter == "=")]
    for place in places:
        if os.path.exists(path := word[place + 1 :]) and path:
            return word[:place] if place > 0 else None, Path(path)
    raise UserError(f"There is no run {word}; give a run folder, or NAME=RUN.")


def _runs_in(path: Path) -> Iterator[Path]:
    """The path of a file or of a run folder, or the run folders beneath it.

    Raises:
        UserError: where there is none.
    """
    if not path.is_dir() or any((path / name).exists() for name in ("config.yaml", "metrics.jsonl")):
        yield path
        return
    beneath = sorted(found.parent for found in path.rglob("metrics.jsonl"))
    if not beneath:
        raise UserError(f"{path} holds no run; check the path.")
    yield from beneath


def _read(path: Path) -> Run:
    folder = RunFolder(path if path.is_dir() else path.parent)
    config = folder.read_config() if folder.config.exists() else {}
    if path.suffix == ".json":
        evaluation = json.loads(path.read_text(encoding="utf-8"))
        if type(evaluation["step"]) is not int:
            raise ValueError("its step is no number")
        return Run(path, config, [{"step": evaluation["step"], evaluation["split"]: evaluation}])
    if not path.is_dir() and path.suffix != ".jsonl":
        raise UserError("it is no run folder, no file of records (.jsonl) and no evaluation (.json)")
    return Run(path, config, read_records(folder.metrics if path.is_dir() else path))


def settings_of(config: Mapping[str, Any]) -> dict[str, str]:
    """What a run is made of, by dotted keys without those of `ALIKE`; a part's type stands under the part's own key.

    >>> settings_of({"recipe": {"model": {"core": {"type": "fwm", "num_reads": 1}}, "training": {"seed": 3}}})
    {'model.core': 'fwm', 'model.core.num_reads': '1'}
    """
    flat: dict[str, str] = {}

    def flatten(key: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for name, part in value.items():
                flatten(key if name == "type" else f"{key}.{name}".lstrip("."), part)
        elif value is not None and key not in ALIKE:
            flat[key] = str(value)

    flatten("", config.get("recipe", {}))
    flatten("data", config.get("data"))
    return flat


def differences(settings: Sequence[Mapping[str, str]]) -> list[str]:
    """For each of many settings, what differs: the core, and the values of the keys that are not equal for all.

    The model's keys are compared among equal cores alone. Without any difference it is the core.

    >>> differences([{"model.core": "lstm"}, {"model.core": "fwm", "a.b": "1"}, {"model.core": "fwm", "a.b": "2"}])
    ['lstm', 'fwm, b 1', 'fwm, b 2']
    """
    cores = {mine.get(CORE) for mine in settings}
    last = {key: key.rpartition(".")[2] for mine in settings for key in mine}
    labels = []
    for mine in settings:
        rivals = [other for other in settings if other.get(CORE) == mine.get(CORE)]
        parts = [mine[CORE]] if len(cores) > 1 and CORE in mine else []
        for key, value in mine.items():
            compared = rivals if key.startswith("model.") else settings
            if any(other.get(key) != value for other in compared):
                name = last[key] if list(last.values()).count(last[key]) == 1 else key
                parts.append(f"{name} {value}")
        labels.append(", ".join(parts) or mine.get(CORE, ""))
    return labels


def evaluations(run: Run) -> list[tuple[int, str, dict[str, Any]]]:
    """Step, split and metrics of each validation, or of the evaluation that the run is.

    Raises:
        UserError: where there is none.
    """
    splits = ("valid", "test")
    found = [(record["step"], split, record[split]) for record in run.records for split in splits if split in record]
    if not found:
        raise UserError("it has no validation yet")
    return found


def headline(run: Run) -> Metric:
    """The headline metric of a run; without a configuration, that of the objective whose validations these are."""
    if "headline" in run.config:
        return Metric(**run.config["headline"])
    for objective in OBJECTIVES.entries.values():
        if all(objective.headline.name in metrics for _, _, metrics in evaluations(run)):
            return objective.headline
    raise UserError("its validations are of no known objective")


def best_evaluation(run: Run) -> tuple[int, str, dict[str, Any]]:
    """Step, split and metrics of the evaluation with the best headline metric."""
    metric = headline(run)
    best = max if metric.higher_is_better else min
    return best(evaluations(run), key=lambda found: finite(found[2][metric.name]))


def finite(value: Any) -> float:
    """The value, where it is a finite number."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r} is no finite number")
    return float(value)
