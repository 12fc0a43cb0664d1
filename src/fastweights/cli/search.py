"""`fastweights search`."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from fastweights.cli.output import make_console, print_json, set_threads
from fastweights.errors import UserError

if TYPE_CHECKING:
    from fastweights.training.display import ProgressObserver


def search(args: Namespace) -> int:
    """Search over a recipe's settings in rounds, and write table, figures and the best recipe."""
    from fastweights.analysis import figures
    from fastweights.analysis import search as results
    from fastweights.training.display import ProgressObserver, as_table
    from fastweights.training.loop import Interrupted
    from fastweights.training.search import Plan, Search

    set_threads(args.threads)
    figures.new_figure(1, 1)  # without matplotlib nothing is trained
    plan = Plan(
        args.recipe,
        args.over,
        args.overrides,
        rounds=_numbers("--rounds", args.rounds),
        keep=_numbers("--keep", args.keep),
        sampler=args.sampler,
        trials=args.trials,
    )
    found = Search(plan, args.out, args.data, args.storage)
    console = make_console(args.json)

    @contextmanager
    def observe(path: str) -> Iterator[ProgressObserver]:
        console.print(f"{path} …")
        with ProgressObserver(console) as observer:
            yield observer

    try:
        for point, trial in found.run(observe):
            outcome = f"failed: {trial.failure}" if trial.value is None else found.metric.show(trial.value)
            console.print(f"{point.path(found.folder)} to step {plan.rounds[trial.round]:,}: {outcome}")
        if args.test:
            found.test(observe)
    except Interrupted as interrupted:
        console.print("Stopped, all saved. Resume with the same command.")
        return 128 + interrupted.number
    rows = results.write(found)
    best = next((row for row in rows if row.failure is None), None)
    if args.json:
        print_json({"best": best and best.to_dict(), "settings": [row.to_dict() for row in rows]})
    else:
        headings, lines = results.cells(found, rows)
        console.print(as_table([headings, *lines]))
    if best is None:
        raise UserError(f"Every setting of the search in {args.out} failed, one with: {rows[0].failure}")
    console.print(f"Best recipe: {found.folder / 'best.yaml'}; table and figures beside it: {', '.join(results.FILES)}")
    return 0


def _numbers(option: str, text: str | None) -> list[int]:
    """The whole numbers in a list such as 3000,10000."""
    try:
        return [int(word) for word in text.split(",")] if text else []
    except ValueError:
        raise UserError(
            f'{option} is "{text}"; give whole numbers with commas between them, such as 3000,10000.'
        ) from None
