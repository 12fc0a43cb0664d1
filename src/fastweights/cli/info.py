"""`fastweights recipes`, `fastweights bench` and `fastweights doctor`."""

from __future__ import annotations

from argparse import Namespace

from fastweights.cli.output import make_console, print_json
from fastweights.errors import UserError


def recipes(args: Namespace) -> None:
    """List the recipes, or show one."""
    from fastweights import recipes as shipped
    from fastweights.training.display import as_table

    if args.name:
        recipe = shipped.load(args.name)
        if args.json:
            print_json(recipe.to_dict())
        else:
            print(shipped.path(args.name).read_text(encoding="utf-8") + "\n" + shipped.explain(recipe))
        return
    if args.json:
        print_json(shipped.names())
        return
    lines = [["recipe", "weights", "state", "description"]]
    for name in shipped.names():
        recipe = shipped.load(name)
        weights, state = shipped.size(recipe)
        lines.append([name, f"{weights:,}", f"{state:,}", recipe.description])
    make_console(False).print(as_table(lines))


def bench(args: Namespace) -> None:
    """Time the training step, or what the options name."""
    if args.growth is not None:
        from fastweights.analysis import figures
        from fastweights.bench import growth

        if args.core or args.agent or args.profile or args.batch_size is not None or args.length is not None:
            raise UserError(
                "--growth has sizes of its own; leave --core, --agent, --profile, --batch-size and --length out."
            )
        figures.check(args.growth)
        found = growth.run(args.repeats, make_console(args.json))
        growth.draw(found, args.growth)
        if args.json:
            print_json(found)
        return
    from fastweights import bench
    from fastweights.bench import agents, cores, profile

    if bool(args.core) + args.agent + args.profile > 1:
        raise UserError("--core, --agent and --profile are different measurements; give one of them.")
    console = make_console(args.json)
    if args.core:
        table, result = cores.table, cores.run(args.core, args.batch_size, args.length, args.repeats, console)
    else:
        module, batch_size, length = (agents, 600, 30) if args.agent else (profile if args.profile else bench, 32, 200)
        batch_size = batch_size if args.batch_size is None else args.batch_size
        length = length if args.length is None else args.length
        table, result = module.table, module.run(batch_size, length, args.repeats, console)
    if args.json:
        print_json(result)
    else:
        make_console(False).print(table(result))


def doctor(args: Namespace) -> None:
    """Report what this machine can run."""
    from fastweights import doctor

    report = doctor.report()
    if args.json:
        print_json(report)
    else:
        make_console(False).print(doctor.text(report))
