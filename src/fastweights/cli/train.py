"""`fastweights train`."""

from __future__ import annotations

from argparse import Namespace
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastweights.cli.output import make_console, print_json, set_threads
from fastweights.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from fastweights.distributed import Group
    from fastweights.recipes import Recipe
    from fastweights.training.loop import Trainer
    from fastweights.training.runs import RunFolder


def train(args: Namespace) -> int:
    """Train a recipe, in every process of the group."""
    from fastweights import distributed

    with distributed.join(args.device) as group:
        return _train(group, args)


def _train(group: Group, args: Namespace) -> int:
    from fastweights import recipes
    from fastweights.training.display import ProgressObserver
    from fastweights.training.loop import Interrupted, Trainer, run_config
    from fastweights.training.runs import RunFolder

    set_threads(args.threads)
    if args.recipe is None and not (args.resume and args.out):
        raise UserError("Give a recipe: `fastweights train RECIPE`, a name from `fastweights recipes`.")
    name = Path(args.recipe).stem if str(args.recipe).endswith((".yaml", ".yml")) else args.recipe
    out = args.out or f"runs/{name}"
    recipe, data, run = _resumed_run(args, out) if args.resume else _new_recipe(args)
    assembly = recipes.assemble(recipe, data)
    if run is None:
        assembly.objective.check_data(assembly.task, data)
    console = make_console(args.json)
    with ExitStack() as stack:
        observer = None
        if group.is_first:  # the others are silent and write nothing
            observer = stack.enter_context(ProgressObserver(console))
            if run is not None:
                stack.enter_context(run)
        trainer = Trainer(assembly, run or RunFolder(out), data, observer, group)
        if run is None and group.is_first:  # all that can be refused is: only now there is a folder
            trainer.run.begin({"name": args.recipe, **run_config(assembly, data)})
            stack.callback(trainer.run.unlock)
            stack.callback(trainer.run.withdraw)
        if args.resume:
            if group.is_first and not trainer.run.config.exists():
                trainer.run.write_config({"name": args.recipe, **run_config(assembly, data)})
                console.print(f"note: {trainer.run.config} was removed, and is restored from the last checkpoint")
            group.barrier()
            trainer.resume()
            if (args.overrides or args.data) and group.is_first:
                changed = {"recipe": recipe.to_dict(), "data": data}
                trainer.run.write_config(trainer.run.read_config() | changed)
        if group.is_first:
            _announce(console, trainer, data, out)
        try:
            metrics = trainer.train()
        except Interrupted as interrupted:
            if observer is not None:
                observer.stop()
                console.print(
                    f"Stopped after step {trainer.step}, all saved. Resume with: fastweights train --resume --out {out}"
                )
            return 128 + interrupted.number
    if group.is_first:
        _show(args, console, trainer, metrics or (trainer.run.records() or [{}])[-1].get("valid", {}), out)
    return 0


def _new_recipe(args: Namespace) -> tuple[Recipe, str | None, None]:
    from fastweights import recipes

    overrides = list(args.overrides)
    if args.seed is not None:
        overrides.append(f"--training.seed={args.seed}")
    if args.babi_tasks is not None:
        overrides.append(f"--task.babi_tasks={args.babi_tasks}")
    return recipes.load(args.recipe, overrides), args.data, None


def _resumed_run(args: Namespace, out: str) -> tuple[Recipe, str | None, RunFolder]:
    """The recipe and the data of a run to resume; only the number of steps may change."""
    from fastweights import recipes
    from fastweights.specs import import_paths
    from fastweights.training.runs import RunFolder
    from fastweights.training.trained import refuse_outside_code

    run = RunFolder(out)
    config = _config_of(run, args.data)
    if args.data is not None and config.get("data") is None:
        raise UserError(f"{out} was not trained on files; leave --data out.")
    given = {word.partition("=")[0] for word in args.overrides}
    if not given <= {"--training.steps"} or args.seed is not None or args.babi_tasks is not None:
        others = [f"--{name}" for name in ("seed", "babi-tasks") if getattr(args, name.replace("-", "_")) is not None]
        others += [word for word in args.overrides if not word.startswith("--training.steps")]
        raise UserError(
            f"A resumed run has the settings of {run.config}, except --training.steps; leave {', '.join(others)} out."
        )
    if not {"recipe", "data"} <= config.keys():
        raise UserError(f"{run.config} does not say what was trained; mend it or choose another run.")
    if args.recipe is not None and config.get("name") not in (None, args.recipe):
        raise UserError(f"{out} is a run of {config['name']}, not of {args.recipe}; leave the recipe out.")
    named = set() if args.recipe is None else set(import_paths(recipes.load(args.recipe).to_dict()))
    refuse_outside_code(run.config, config["recipe"], args.trust or named >= set(import_paths(config["recipe"])))
    try:
        recipe = recipes.load(config["recipe"])
    except UserError as error:
        raise UserError(f"{run.config}: {error}") from error
    if given:
        steps = recipes.load(recipe.to_dict(), args.overrides).training.steps
        recipe = recipes.with_more_steps(recipe, steps)
    return recipe, args.data or config["data"], run  # the directory may have moved


def _config_of(run: RunFolder, data: str | None) -> dict[str, Any]:
    """The configuration of a run; where its file was removed, as the last checkpoint has it."""
    from fastweights.training import checkpoint

    if run.config.exists() or not run.last.exists():
        return run.open(run.path).read_config()
    _, metadata = checkpoint.load(run.last)
    if metadata.get("generated"):
        data = None
    elif data is None:
        raise UserError(f"{run.config} is missing, and the run was trained on files; give their directory with --data.")
    return {"recipe": metadata.get("recipe"), "data": data}


def _announce(console: Console, trainer: Trainer, data: str | None, out: str) -> None:
    from fastweights.recipes import model_size

    weights, state = model_size(trainer.model)
    processes = f", {trainer.group.size} processes" if trainer.group.size > 1 else ""
    description = trainer.task.describe(data)
    console.print(f"Training {weights:,} weights (state {state:,}) on {description}{processes}; run folder {out}")


def _show(args: Namespace, console: Console, trainer: Trainer, metrics: dict[str, Any], out: str) -> None:
    from fastweights.training.display import as_table

    if args.json:
        print_json({"run": str(out), "step": trainer.step, **metrics})
    elif metrics:
        console.print(as_table(trainer.objective.table(metrics, trainer.task)))
        console.print(f"Evaluate it with: fastweights evaluate {out}")
