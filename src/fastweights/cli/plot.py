"""`fastweights plot`."""

from __future__ import annotations

import sys
from argparse import Namespace

from fastweights.cli.output import make_console, print_json
from fastweights.errors import UserError


def plot(args: Namespace) -> None:
    """Compare runs by a metric over steps, or by the accuracy per group."""
    from fastweights.analysis import figures, plots
    from fastweights.training.display import as_table

    if args.groups and args.metric is not None:
        raise UserError("--groups shows the accuracy alone; leave --metric or --groups out.")
    if args.out is not None:
        figures.check(args.out)

    def on_skip(text: str) -> None:
        print(f"fastweights: {text}", file=sys.stderr)

    found = plots.bars(args.runs, on_skip) if args.groups else plots.curves(args.runs, args.metric, on_skip)
    if args.out is not None:
        found.draw(args.out)
    if args.json:
        print_json(found.to_dict())
    else:
        make_console(False).print(as_table(found.table()))
