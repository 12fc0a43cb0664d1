"""`fastweights evaluate`."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

from fastweights.cli.output import make_console, print_json
from fastweights.errors import UserError
from fastweights.specs import Size, check

EPISODES = 10
MOST_EPISODES = 10_000  # of each environment


def evaluate(args: Namespace) -> None:
    """Evaluate a trained model on a split."""
    from fastweights.cores import map_state
    from fastweights.distributed import join
    from fastweights.training.display import as_table, evaluation_progress
    from fastweights.training.trained import load_model

    overrides = [*args.overrides, *([f"--task.babi_tasks={args.babi_tasks}"] if args.babi_tasks is not None else [])]
    model, state, metadata, (recipe, task, objective, _, _) = load_model(args.path, overrides, trust=args.trust)
    episodes = EPISODES if args.episodes is None and objective.episodic else args.episodes
    _refuse_misfits(args, objective.episodic)
    data = None if args.generated or objective.episodic else args.data or _data_of(args.path, metadata)
    batch_size = args.batch_size or objective.final_batch_size(task, recipe.training.eval_batch_size)
    counts = objective.evaluation_counts(task, data, args.split)
    console = make_console(args.json)
    with join(args.device) as group, evaluation_progress(console, objective.unit, counts.get(objective.unit)) as bar:
        state = None if args.initial_state else map_state(lambda tensor: tensor.to(group.device), state)
        metrics = objective.evaluate(
            model.to(group.device), task, data, args.split, batch_size, state, episodes=episodes, on_progress=bar
        )
    metrics = {"split": args.split, "step": metadata["step"], **counts, **metrics}
    if args.json:
        print_json(metrics)
    else:
        console.print(as_table(objective.table(metrics, task)))


def _refuse_misfits(args: Namespace, acts: bool) -> None:
    """Refuse options that have no meaning for an agent, or for a token model."""
    if args.batch_size is not None:
        check("--batch-size", args.batch_size, Size)
    if args.episodes is not None and not 1 <= args.episodes <= MOST_EPISODES:
        raise UserError(f"--episodes is {args.episodes}; give 1 to {MOST_EPISODES:,}.")
    if args.data and args.generated:
        raise UserError("--data and --generated contradict each other; give one of them.")
    of_token_models = {"data": args.data, "generated": args.generated, "initial-state": args.initial_state}
    for name, value in of_token_models.items():
        if acts and value:
            raise UserError(f"--{name} is for token models, and {args.path} is an agent; leave it out.")


def _data_of(path: str, metadata: dict[str, Any]) -> str | None:
    """The data of training; a checkpoint does not name it, so that it holds no path of its maker."""
    from fastweights.training.runs import RunFolder

    if metadata.get("generated"):
        return None
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    if (folder / "config.yaml").is_file() and (data := RunFolder.open(folder).read_config().get("data")):
        return data
    raise UserError(f"{path} was trained on files; give their directory with --data DIR, or --generated.")
