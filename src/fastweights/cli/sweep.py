"""`fastweights sweep` and `fastweights report`."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from fastweights.cli.output import make_console, print_json, set_threads

if TYPE_CHECKING:
    from fastweights.training.display import ProgressObserver


def sweep(args: Namespace) -> int:
    """Train recipes with every combination of settings."""
    from fastweights.training import sweep as sweeps
    from fastweights.training.display import ProgressObserver
    from fastweights.training.loop import Interrupted

    set_threads(args.threads)
    points = sweeps.points(args.recipes, args.over, args.overrides)
    for point in points:
        sweeps.build(point, args.data)  # what cannot be built is refused before there is a run folder
    console = make_console(args.json)
    outcomes: dict[str, list[str]] = {"made": [], "done": [], "in use": [], "failed": []}

    @contextmanager
    def observe(path: str) -> Iterator[ProgressObserver]:
        console.print(f"{path} …")
        with ProgressObserver(console) as observer:
            yield observer

    try:
        for point, outcome in sweeps.run(points, Path(args.out), args.data, args.test, observe):
            path = str(point.path(Path(args.out)))
            if outcome not in outcomes:
                console.print(f"{path} failed: {outcome}")
                outcome = "failed"
            outcomes[outcome].append(path)
    except Interrupted as interrupted:
        console.print("Stopped, all saved. Resume with the same command.")
        return 128 + interrupted.number
    if args.json:
        print_json(outcomes)
    else:
        counts = ", ".join(f"{len(paths)} {outcome}" for outcome, paths in outcomes.items() if paths)
        console.print(f"{len(points)} runs: {counts}. Table and curves: fastweights report {args.out}")
    return 2 if outcomes["failed"] else 0


def report(args: Namespace) -> None:
    """Show a sweep as a table, and write it with its learning curves."""
    from fastweights.analysis import figures
    from fastweights.analysis import report as reports
    from fastweights.training.checkpoint import write_atomically
    from fastweights.training.display import as_table

    if args.out is not None:
        table, *drawings = (Path(f"{args.out}.{ending}") for ending in ("md", "png", "svg"))
        figures.check(*drawings)
        figures.check_writable(table)
    rows = reports.collect(args.folder, on_skip=lambda text: print(f"fastweights: {text}", file=sys.stderr))
    if args.out is not None:
        reports.draw(rows, *drawings)
        write_atomically(table, reports.markdown(*reports.cells(rows)).encode())
    if args.json:
        print_json([row.to_dict() for row in rows])
        return
    headings, lines = reports.cells(rows)
    make_console(False).print(as_table([headings, *lines]))
