"""`fastweights graphs`."""

from __future__ import annotations

from argparse import Namespace

from fastweights.cli.output import print_json
from fastweights.errors import UserError


def maps(args: Namespace) -> None:
    """Draw graphs."""
    from fastweights import recipes, tasks
    from fastweights.analysis import figures
    from fastweights.analysis.graphs import draw_maps

    _refuse_other_settings(args)
    figures.check(args.out)
    recipe = recipes.load({"task": {"type": "graph-rl"}}, args.overrides)
    task = tasks.build(recipe.task)
    if not isinstance(task, tasks.GraphRL):
        raise UserError("Maps are of the task graph-rl; leave --task.type out.")
    draw_maps(task, args.split, args.numbers, args.out)
    _written(args)


def returns(args: Namespace) -> None:
    """Draw returns against episodes."""
    from fastweights.analysis import figures
    from fastweights.analysis.graphs import draw_returns

    figures.check(args.out)
    draw_returns(args.runs, args.out)
    _written(args)


def walk(args: Namespace) -> None:
    """Let an agent walk a graph."""
    from fastweights import tasks
    from fastweights.analysis.graphs import walk, walk_text
    from fastweights.models import ActorCritic
    from fastweights.training.trained import load_model

    if args.seed < 0:
        raise UserError(f"--seed is {args.seed}; give 0 or more.")
    _refuse_other_settings(args)
    trained = load_model(args.path, args.overrides, trust=args.trust)
    model, task = trained.model, trained.assembly.task
    if not isinstance(task, tasks.GraphRL) or not isinstance(model, ActorCritic):
        raise UserError(f"{args.path} is no agent on graphs; choose another run.")
    found = walk(model, task, args.split, args.graph, args.seed)
    if args.json:
        print_json(found)
    else:
        print(walk_text(found))


def _refuse_other_settings(args: Namespace) -> None:
    for override in args.overrides:
        if not override.startswith("--task"):
            raise UserError(f"Graphs are the task's, so only its settings matter here; leave {override} out.")


def _written(args: Namespace) -> None:
    if args.json:
        print_json({"figure": args.out})
    else:
        print(f"drawn in {args.out}")
