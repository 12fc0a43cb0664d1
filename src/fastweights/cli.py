"""The command line: `fastweights train|sweep|report|evaluate|recipes|data|graphs|bench|doctor`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastweights.errors import UserError

if TYPE_CHECKING:
    from fastweights.models import ActorCritic
    from fastweights.recipes import Recipe
    from fastweights.tasks import ControlTask
    from fastweights.training.distributed import Group

# of a walk on graphs
RULES = {
    "variant": (str, "NAME", "the rules of the walk, paper or as-published"),
    "places": (int, "N", "places of each graph"),
    "actions": (int, "N", "actions at each place"),
    "steps": (int, "N", "steps of an episode"),
    "patience": (int, "N", "steps without success after which agent and goal are placed anew"),
}


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit code: 0, 2 for what the user can mend, 130 after Ctrl-C."""
    namespace = parse(sys.argv[1:] if arguments is None else arguments)
    try:
        return namespace.run(namespace) or 0
    except UserError as error:
        print(f"fastweights: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 0


def parse(arguments: list[str]) -> argparse.Namespace:
    """What a command line asks for; `overrides` are the values of a recipe that it changes."""
    parser = _parser()
    namespace, namespace.overrides = parser.parse_known_args(_joined(arguments))
    if namespace.overrides and not getattr(namespace, "takes_overrides", False):
        parser.error(f"unrecognized arguments: {' '.join(namespace.overrides)}")
    return namespace


def _joined(arguments: list[str]) -> list[str]:
    """Arguments with `--training.steps 5` as one word, so that its value is not taken for the recipe's name."""
    joined: list[str] = []
    for word in arguments:
        last = joined[-1] if joined else ""
        if last.startswith("--") and "." in last and "=" not in last and not word.startswith("--"):
            joined[-1] = f"{last}={word}"
        else:
            joined.append(word)
    return joined


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fastweights",
        description="Sequence models that learn facts as they read, store them in fast weights and chain them.",
        epilog="Begin with:  fastweights train catbabi-qa/fwm-quick",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, summary: str, run, epilog: str = "", within=commands) -> argparse.ArgumentParser:
        sub = within.add_parser(
            name,
            help=summary,
            description=summary,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        sub.set_defaults(run=run)
        sub.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
        return sub

    recipes = command(
        "recipes", "List what can be trained, with each model's weights and memory size.", _recipes, RECIPES_HELP
    )
    recipes.add_argument("name", metavar="NAME", nargs="?", help="show this recipe whole, with what its values mean")

    train = command("train", "Train a recipe; the run folder keeps everything.", _train, TRAIN_HELP)
    train.set_defaults(takes_overrides=True)
    train.add_argument(
        "recipe", metavar="RECIPE", nargs="?", help="a name from `fastweights recipes`, or a YAML file of your own"
    )
    train.add_argument("--data", metavar="DIR", help="the task's files; without it, stories are generated")
    train.add_argument("--out", metavar="RUN", help="the run folder (default: runs/RECIPE)")
    train.add_argument("--seed", type=int, help="seed of weights, data order and dropout (training.seed)")
    train.add_argument("--tasks", help="bAbI's tasks to read, such as 1,2,4-20 (task.tasks)")
    train.add_argument("--resume", action="store_true", help="go on where the run in --out stopped, bit for bit")
    train.add_argument("--threads", type=int, help="processor threads (default: torch's choice)")
    train.add_argument("--device", default="cpu", help="cpu (default), or cuda for a graphics card")

    sweep = command("sweep", "Train recipes with every combination of settings and seeds.", _sweep, SWEEP_HELP)
    sweep.set_defaults(takes_overrides=True)
    sweep.add_argument("recipes", metavar="RECIPE", nargs="+", help="names from `fastweights recipes`, or YAML files")
    sweep.add_argument(
        "--over",
        metavar="KEY=VALUE,VALUE",
        action="append",
        default=[],
        help="a setting and its values, such as task.pairs=8,16; may be given again",
    )
    sweep.add_argument("--out", metavar="FOLDER", required=True, help="where the run folders are, or will be")
    sweep.add_argument("--data", metavar="DIR", help="the task's files; without it, data are generated")
    sweep.add_argument("--test", action="store_true", help="ask each run's best model the test split")
    sweep.add_argument("--threads", type=int, help="processor threads (default: torch's choice)")

    report = command("report", "Make a sweep's runs into a table and learning curves.", _report)
    report.add_argument("folder", metavar="FOLDER", help="the --out of `fastweights sweep`")
    report.add_argument("--out", metavar="NAME", help="also write NAME.md, NAME.png and NAME.svg")

    def rules_for(sub: argparse.ArgumentParser, default: str) -> None:
        options = sub.add_argument_group("walks on graphs", f"by default, {default}")
        for name, (kind, value, meaning) in RULES.items():
            options.add_argument(f"--task.{name}", type=kind, metavar=value, help=meaning)

    evaluate = command(
        "evaluate", "Measure a trained model: accuracy and perplexity, or an agent's reward.", _evaluate, EVALUATE_HELP
    )
    evaluate.add_argument("--data", metavar="DIR", help="the task's files (default: what the model was trained on)")
    evaluate.add_argument("--generated", action="store_true", help="ask generated stories, whatever it was trained on")
    evaluate.add_argument("--split", default="valid", choices=("valid", "test"), help="default: valid")
    evaluate.add_argument("--tasks", help="bAbI's tasks to ask, such as 1,2,4-20 (default: the model's)")
    evaluate.add_argument(
        "--rows",
        type=int,
        help="rows read side by side: 1 for a final figure of streams (their default), 128 for speed",
    )
    evaluate.add_argument("--device", default="cpu", help="cpu (default), or cuda for a graphics card")
    evaluate.add_argument(
        "--from-zero",
        action="store_true",
        help="start from an empty state, not from the state carried out of training",
    )

    evaluate.add_argument("--episodes", type=int, default=10, help="episodes that each agent plays (default: 10)")
    rules_for(evaluate, "as the model was trained")

    about = "Count bAbI's stories, generate new ones, and compare them."
    data = commands.add_parser("data", help=about, description=about)
    data_commands = data.add_subparsers(metavar="COMMAND", required=True)
    stats = command(
        "stats",
        "Count stories, questions and tokens (the paper's table 3), and name what is missing.",
        _data_stats,
        within=data_commands,
    )
    stats.add_argument("directory", metavar="DIR", help="a directory of bAbI's files, such as en-valid-10k")
    stats.add_argument(
        "--as-published",
        action="store_true",
        help="count as the authors' script does, which loses each file's last story",
    )

    generate = command(
        "generate",
        "Write generated stories as files in bAbI's own format.",
        _data_generate,
        "Example:\n  fastweights data generate --out stories --questions 9000 --seed 0 --tasks 1-3,6\n",
        within=data_commands,
    )
    generate.add_argument("--out", metavar="DIR", required=True, help="an empty directory, or one to be made")
    generate.add_argument(
        "--questions",
        type=int,
        default=9000,
        help="questions of a task's training file; validation and test have a ninth (default: 9000, as bAbI's 10k)",
    )
    generate.add_argument("--seed", type=int, default=0, help="decides the stories (default: 0)")
    generate.add_argument("--tasks", help="such as 1-3,6 (default: all)")
    for size, meaning in STORY_SIZES.items():
        generate.add_argument(f"--{size}", type=int, help=meaning)

    compare = command(
        "compare",
        "Say how far generated stories are from real ones, task by task, and what chance alone gives.",
        _data_compare,
        COMPARE_HELP,
        within=data_commands,
    )
    compare.add_argument("real", metavar="REAL", help="a directory of bAbI's files, such as en-valid-10k")
    compare.add_argument("generated", metavar="GENERATED", help="a directory from `fastweights data generate`")
    compare.add_argument("--tasks", help="such as 1-3,6 (default: those that both directories have)")
    compare.add_argument("--split", default="train", choices=("train", "valid", "test"), help="default: train")

    bench = command(
        "bench", "Time the training step, the memory op and streaming, per backend, as ratios.", _bench, BENCH_HELP
    )
    bench.add_argument("--repeats", type=int, default=5, help="counted runs of each; medians are printed (default: 5)")
    bench.add_argument("--rows", type=int, help="sequences or agents side by side (default: 32; with --agent 600)")
    bench.add_argument("--length", type=int, help="steps of each of them (default: 200; with --agent 30)")
    bench.add_argument("--agent", action="store_true", help="instead, time a training episode of the agent on graphs")
    bench.add_argument(
        "--growth",
        metavar="FIGURE",
        help="instead, draw how the memory's time grows with length, rows and size (PNG or SVG; a few minutes)",
    )

    about = "Look at graphs and at agents on them."
    graphs = commands.add_parser("graphs", help=about, description=about)
    graphs_commands = graphs.add_subparsers(metavar="COMMAND", required=True)
    maps = command("maps", "Draw graphs, with an agent and its goal.", _graphs_maps, within=graphs_commands)
    maps.add_argument("numbers", metavar="GRAPH", type=int, nargs="*", default=[0, 1], help="which (default: 0 1)")
    maps.add_argument("--out", metavar="FIGURE", required=True, help="a PNG or SVG file")
    rules_for(maps, "as in the paper")
    curves = command("rewards", "Draw runs' rewards against episodes, and the bounds.", _graphs_rewards,
                     within=graphs_commands)  # fmt: skip
    curves.add_argument("runs", metavar="RUN", nargs="+", help="run folders of agents on graphs")
    curves.add_argument("--out", metavar="FIGURE", required=True, help="a PNG or SVG file")
    walk = command("walk", "Let an agent walk a graph, and show its first and later ways to each goal.", _graphs_walk,
                   within=graphs_commands)  # fmt: skip
    walk.add_argument("--graph", type=int, default=0, help="which graph (default: 0)")
    walk.add_argument("--seed", type=int, default=0, help="decides goals and actions (default: 0)")
    rules_for(walk, "as the model was trained")
    for sub in (evaluate, walk):
        sub.add_argument("path", metavar="RUN_OR_CHECKPOINT", help="a run folder, or a checkpoint out of one")
    for sub in (maps, walk):
        sub.add_argument("--split", default="test", choices=("train", "valid", "test"), help="default: test")

    command("doctor", "Say what this machine can run, what would be chosen, and why.", _doctor)
    return parser


STORY_SIZES = {
    "people": "who act in a story (tasks 1-3 and 5-14; default: as in bAbI)",
    "places": "where they go",
    "objects": "what they carry",
    "distractors": "statements between the facts and each question, of people whom no question concerns",
}

COMPARE_HELP = """\
Each measure counts something in every story (words, sentences, answers, how far away a question's facts are …). The
distance is the total variation between the two distributions: 0 the same, 1 nothing in common. The floor is the 95th
percentile of the distances between random halves of the real stories: what chance alone gives. A ratio of distance to
floor up to 2 says that the stories can hardly be told apart by this measure.

Example:
  fastweights data generate --out stories --seed 0
  fastweights data compare en-valid-10k stories
"""

RECIPES_HELP = """\
A recipe is a YAML file: a task, a model and how it is trained. To change much of one, show it, keep it as a file and
train that:
  fastweights recipes catbabi-qa/fwm
  fastweights train my-recipe.yaml
"""

EVALUATE_HELP = """\
Examples:
  fastweights evaluate runs/catbabi-qa/fwm                            # new stories of the kind it was trained on
  fastweights evaluate runs/catbabi-qa/fwm --data en-valid-10k        # bAbI's own questions
  fastweights evaluate runs/catbabi-qa/fwm/best.safetensors --tasks 1-3 --json
  fastweights evaluate runs/graph-rl/fwm --split test --episodes 20   # graphs that it has not seen
"""

BENCH_HELP = """\
A backend is a way to compute the recurrences: the reference reads like the paper, step by step; plain is chunkwise, in
torch's own operations; auto is what a user gets, compiled where it can be. Close other programs first, and compare only
what one run has measured. `fastweights doctor` says which backends there are.
"""

TRAIN_HELP = """\
Every value of a recipe can be changed on the command line:
  fastweights train catbabi-qa/fwm --training.steps 1000 --model.core.memory_size 16
  fastweights train catbabi-qa/fwm --data en-valid-10k --tasks 1,2,4-20
  fastweights train catbabi-qa/fwm --resume          # after Ctrl-C, a crash or a power cut
  fastweights train --resume --out runs/catbabi-qa/fwm --training.steps 60000  # and beyond its end (constant rate)
`fastweights recipes NAME` shows all the values of a recipe and what they mean.
"""


SWEEP_HELP = """\
Each run has a folder of its own. The same command goes on where it stopped; given by several processes, on any machines
that see the folder, it shares the runs among them (one thread each is best):
  fastweights sweep art/fw-lstm art/lstm --over task.pairs=8,16 --over training.seed=0,1,2 --out sweeps/art --threads 1
Other options change all of the runs, as with `fastweights train`:
  fastweights sweep art/fwm --over model.core.memory_size=8,16 --training.steps 500 --out sweeps/sizes
Look at them with:
  fastweights report sweeps/art --out art
"""


def _print_json(value: Any) -> None:
    print(json.dumps(value, allow_nan=False))


def _console(quiet: bool):
    from rich.console import Console

    console = Console(stderr=quiet, highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = 120  # tables in a file need not fit a window
    return console


def _recipes(args: argparse.Namespace) -> None:
    from fastweights import recipes

    if args.name:
        text = recipes.path(args.name).read_text(encoding="utf-8")
        recipe = recipes.load(args.name)
        if args.json:
            _print_json(recipe.to_dict())
        else:
            print(text + "\n" + recipes.explain(recipe))
        return
    if args.json:
        _print_json(recipes.names())
        return
    from rich.table import Table

    table = Table("recipe", "weights", "memory", "what", box=None, pad_edge=False)
    for name in recipes.names():
        recipe = recipes.load(name)
        weights, memory = recipes.size(recipe)
        table.add_row(name, f"{weights:,}", f"{memory:,}", recipe.description)
    _console(False).print(table)


def _train(args: argparse.Namespace) -> int:
    from fastweights.training import distributed

    with distributed.join(args.device) as group:
        return _train_in(group, args)


def _set_threads(threads: int | None) -> None:
    import torch

    if threads is not None:
        if threads < 1:
            raise UserError(f"--threads is {threads}; give at least 1, or leave it out for torch's choice.")
        torch.set_num_threads(threads)


def _sweep(args: argparse.Namespace) -> int:
    from fastweights import recipes
    from fastweights.training import sweep
    from fastweights.training.display import ProgressObserver
    from fastweights.training.loop import Interrupted

    _set_threads(args.threads)
    points = sweep.points(args.recipes, args.over, args.overrides)
    for point in points:
        recipes.check(point.recipe, args.data)
    console = _console(args.json)
    became: dict[str, list[str]] = {"made": [], "done": [], "in use": [], "failed": []}

    @contextmanager
    def observe(path: str) -> Iterator[ProgressObserver]:
        console.print(f"{path} …")
        with ProgressObserver(console) as observer:
            yield observer

    try:
        for point, outcome in sweep.run(points, Path(args.out), args.data, args.test, observe):
            path = str(point.path(Path(args.out)))
            if outcome not in became:
                console.print(f"{path} failed: {outcome}")
                outcome = "failed"
            became[outcome].append(path)
    except Interrupted:
        console.print("Stopped, all saved. Go on with the same command.")
        return 130
    if args.json:
        _print_json(became)
    else:
        counts = ", ".join(f"{len(paths)} {outcome}" for outcome, paths in became.items() if paths)
        console.print(f"{len(points)} runs: {counts}. Look at them with: fastweights report {args.out}")
    return 2 if became["failed"] else 0


def _report(args: argparse.Namespace) -> None:
    from fastweights.analysis import report

    rows = report.collect(args.folder)
    if args.out:
        report.draw(rows, f"{args.out}.png", f"{args.out}.svg")
        try:
            Path(f"{args.out}.md").write_text(report.markdown(rows), encoding="utf-8")
        except OSError as error:
            raise UserError(f"{args.out}.md cannot be written ({error.strerror}); give another --out.") from error
    if args.json:
        _print_json([row.to_dict() for row in rows])
        return
    from rich.table import Table

    headings, lines = report.cells(rows)
    table = Table(*headings, box=None, pad_edge=False)
    for line in lines:
        table.add_row(*line)
    _console(False).print(table)


def _train_in(group: Group, args: argparse.Namespace) -> int:
    from fastweights import recipes, training
    from fastweights.training.display import ProgressObserver, result_table
    from fastweights.training.loop import Interrupted, Observer
    from fastweights.training.runs import RunFolder

    _set_threads(args.threads)
    if args.recipe is None and not (args.resume and args.out):
        raise UserError("Say what to train: `fastweights train RECIPE`, a name from `fastweights recipes`.")
    name = Path(args.recipe).stem if str(args.recipe).endswith((".yaml", ".yml")) else args.recipe
    out = args.out or f"runs/{name}"
    console = _console(args.json)
    if args.resume:
        run = RunFolder.open(out)
        config = run.read_config()
        given = {word.partition("=")[0] for word in args.overrides}
        if not given <= {"--training.steps"} or args.seed is not None or args.tasks:
            raise UserError(
                f"A resumed run keeps the settings in {run.config} but for --training.steps; leave {_given(args)} out."
            )
        if not {"recipe", "data"} <= config.keys():
            raise UserError(f"{run.config} does not say what was trained; mend it or choose another run.")
        recipe, data = recipes.load(None, config["recipe"]), args.data or config["data"]  # the folder may have moved
        if given:
            recipe = recipes.prolonged(recipe, recipes.load(None, args.overrides).training.steps)
    else:
        overrides = list(args.overrides)
        if args.seed is not None:
            overrides.append(f"--training.seed={args.seed}")
        if args.tasks:
            overrides.append(f"--task.tasks={args.tasks}")
        recipe, data = recipes.load(args.recipe, overrides), args.data
        recipes.check(recipe, data)
        config = {"recipe": recipe.to_dict(), "data": data}
        run = RunFolder.create(out, config) if group.is_first else RunFolder(out)
    with ExitStack() as stack:
        observer = Observer()
        if group.is_first:  # the others are silent and write nothing
            stack.enter_context(run)
            observer = stack.enter_context(ProgressObserver(console))
        trainer = training.begin(recipe, run, data, observer, group)
        if args.resume:
            trainer.resume()
            if given and group.is_first:
                run.write_config(config | {"recipe": recipe.to_dict()})
        if group.is_first:
            weights, memory = recipes.size(recipe)
            together = f", {group.size} processes" if group.size > 1 else ""
            console.print(
                f"Training {weights:,} weights (memory {memory:,}) on {trainer.describe()}{together}; run folder {out}"
            )
        try:
            metrics = trainer.train()
        except Interrupted:
            if group.is_first:
                observer.stop()
                console.print(
                    f"Stopped after step {trainer.step}, all saved. Go on with: fastweights train --resume --out {out}"
                )
            return 130
    if not group.is_first:
        return 0
    metrics = metrics or (run.records() or [{}])[-1].get("valid", {})
    if args.json:
        _print_json({"run": str(out), "step": trainer.step, **metrics})
    elif metrics:
        console.print(result_table(metrics, trainer.task))
        console.print(f"Ask it more with: fastweights evaluate {out}")
    return 0


def _given(args: argparse.Namespace) -> str:
    names = [f"--{name}" for name in ("seed", "tasks") if getattr(args, name) is not None]
    return ", ".join([*names, *(word for word in args.overrides if not word.startswith("--training.steps"))])


def _evaluate(args: argparse.Namespace) -> None:
    from fastweights import recipes, tasks
    from fastweights.cores.contract import map_state
    from fastweights.training.display import evaluation_progress, task_table
    from fastweights.training.distributed import join
    from fastweights.training.evaluate import evaluate
    from fastweights.training.loop import load_model

    model, state, metadata = load_model(args.path)
    recipe = recipes.load(None, metadata["recipe"])
    if args.tasks:
        recipe.task["tasks"] = args.tasks
    recipe.task |= _rules(args)
    task = tasks.build(recipe.task)
    if isinstance(task, tasks.ControlTask):
        _evaluate_agent(args, model, task, recipe, metadata)
        return
    data = None if args.generated else args.data or _data_of(args.path, metadata)
    counts = task.evaluation_counts(data, args.split)
    rows = args.rows
    if rows is None:
        rows = 1 if task.carries_state else recipe.training.evaluation_rows
    batches = task.evaluation_batches(data, args.split, rows)
    console = _console(args.json)
    with join(args.device) as group, evaluation_progress(console, counts["tokens"]) as on_batch:
        state = None if args.from_zero else map_state(lambda tensor: tensor.to(group.device), state)
        metrics = evaluate(model.to(group.device), batches, rows, state, on_batch, task.carries_state)
    metrics = {"split": args.split, "step": metadata["step"], **counts, **metrics}
    if args.json:
        _print_json(metrics)
    else:
        console.print(task_table(metrics, task))


def _evaluate_agent(
    args: argparse.Namespace, model: ActorCritic, task: ControlTask, recipe: Recipe, metadata: dict[str, Any]
) -> None:
    from fastweights.training import a2c
    from fastweights.training.display import result_table
    from fastweights.training.distributed import join

    meant_for_words = {"data": args.data, "generated": args.generated, "from-zero": args.from_zero}
    for name, value in meant_for_words.items():
        if value:
            raise UserError(f"--{name} is for models of words, and {args.path} is an agent; leave it out.")
    if args.episodes < 1:
        raise UserError(f"--episodes is {args.episodes}; give at least 1.")
    rows = recipe.training.evaluation_rows
    with join(args.device) as group:
        found = a2c.evaluate(model.to(group.device), task, args.split, rows, args.episodes)
    metrics = {"split": args.split, "step": metadata["step"], **found, "bounds": task.bounds(args.split)}
    if args.json:
        _print_json(metrics)
    else:
        _console(False).print(result_table(metrics, task))


def _rules(args: argparse.Namespace) -> dict[str, Any]:
    """The rules of a task that were given on the command line."""
    given = {name: getattr(args, f"task.{name}") for name in RULES}
    return {name: value for name, value in given.items() if value is not None}


def _data_of(path: str, metadata: dict[str, Any]) -> str | None:
    """Where the data of a trained model lies; a checkpoint does not tell, so that none carries a path of its maker."""
    from fastweights.training.runs import RunFolder

    if metadata.get("generated"):
        return None
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    if (folder / "config.yaml").is_file() and (data := RunFolder.open(folder).read_config().get("data")):
        return data
    raise UserError(
        f"{path} was trained on files; say where they are with --data DIR, or ask it stories with --generated."
    )


def _data_stats(args: argparse.Namespace) -> None:
    from fastweights.data.babi import statistics

    found = statistics(args.directory, args.as_published)
    if args.json:
        _print_json(found)
        return
    from rich.table import Table

    console = _console(False)
    table = Table("split", "stories", "questions", "tokens", "tasks", box=None, pad_edge=False)
    for split, counts in found.items():
        table.add_row(
            split,
            *(f"{counts[key]:,}" for key in ("stories", "questions", "tokens")),
            str(len(counts["tasks"])),
        )
    console.print(table)
    for split, counts in found.items():
        if counts["missing"]:
            console.print(f"missing in {split}: {', '.join(counts['missing'])}")


def _data_generate(args: argparse.Namespace) -> None:
    from rich.progress import track

    from fastweights.data.babi import SPLITS, parse_tasks
    from fastweights.data.generate import TASKS
    from fastweights.data.generate.files import write_files
    from fastweights.data.generate.setting import Setting

    tasks = parse_tasks(args.tasks) if args.tasks else tuple(sorted(TASKS))
    console = _console(args.json)
    sizes = {size: value for size in STORY_SIZES if (value := getattr(args, size)) is not None}
    files = write_files(args.out, args.questions, args.seed, tasks, Setting(**sizes))
    shown = {"console": console, "transient": True, "disable": not console.is_terminal}
    paths = [str(path) for path in track(files, "writing", total=len(tasks) * len(SPLITS), **shown)]
    if args.json:
        _print_json({"files": paths})
    else:
        console.print(f"{len(paths)} files in {args.out}; count them with: fastweights data stats {args.out}")


def _data_compare(args: argparse.Namespace) -> None:
    from rich.progress import track

    from fastweights.data.babi import TASK_NAMES, parse_tasks
    from fastweights.data.compare import compare_directories

    tasks = parse_tasks(args.tasks) if args.tasks else None
    console = _console(args.json)
    progress = {"console": console, "transient": True, "disable": not console.is_terminal}
    compared = compare_directories(args.real, args.generated, args.split, tasks)
    found = dict(track(compared, "comparing", total=len(tasks or TASK_NAMES), **progress))
    if args.json:
        _print_json(
            {
                task: {name: {"distance": c.distance, "floor": c.floor} for name, c in measures.items()}
                for task, measures in found.items()
            }
        )
        return
    from rich.table import Table

    table = Table("task", "measure", "distance", "floor", "ratio", box=None, pad_edge=False)
    for task, measures in found.items():
        for name, c in measures.items():
            table.add_row(str(task), name, f"{c.distance:.4f}", f"{c.floor:.4f}", f"{c.ratio:.2f}")
    console.print(table)
    ratios = [c.ratio for measures in found.values() for c in measures.values()]
    near, far = sum(ratio <= 2 for ratio in ratios), sum(ratio > 4 for ratio in ratios)
    console.print(
        f"{near} of {len(ratios)} measures ({near / len(ratios):.1%}) within twice the floor, {far} above four times."
    )


def _bench(args: argparse.Namespace) -> None:
    if args.growth:
        from fastweights.bench import growth

        found = growth.run(args.repeats, _console(args.json))
        growth.draw(found, args.growth)
        if args.json:
            _print_json(found)
        return
    from fastweights import bench
    from fastweights.bench import agents

    room, rows, length = (agents, 600, 30) if args.agent else (bench, 32, 200)
    rows = rows if args.rows is None else args.rows
    length = length if args.length is None else args.length
    result = room.run(rows, length, args.repeats, _console(args.json))
    if args.json:
        _print_json(result)
    else:
        _console(False).print(room.table(result))


def _graphs_maps(args: argparse.Namespace) -> None:
    from fastweights import tasks
    from fastweights.analysis.graphs import draw_maps

    draw_maps(tasks.build({"type": "graph-rl", **_rules(args)}), args.split, args.numbers, args.out)
    _written(args)


def _graphs_rewards(args: argparse.Namespace) -> None:
    from fastweights.analysis.graphs import draw_rewards

    draw_rewards(args.runs, args.out)
    _written(args)


def _graphs_walk(args: argparse.Namespace) -> None:
    from fastweights import recipes, tasks
    from fastweights.analysis.graphs import walk, walk_text
    from fastweights.training.loop import load_model

    model, _, metadata = load_model(args.path)
    task = tasks.build(recipes.load(None, metadata["recipe"]).task | _rules(args))
    if not isinstance(task, tasks.GraphRL):
        raise UserError(f"{args.path} is no agent on graphs; choose another run.")
    found = walk(model, task, args.split, args.graph, args.seed)
    if args.json:
        _print_json(found)
    else:
        print(walk_text(found))


def _written(args: argparse.Namespace) -> None:
    if args.json:
        _print_json({"figure": args.out})
    else:
        print(f"drawn in {args.out}")


def _doctor(args: argparse.Namespace) -> None:
    from fastweights import doctor

    report = doctor.report()
    if args.json:
        _print_json(report)
    else:
        _console(False).print(doctor.text(report))


if __name__ == "__main__":
    sys.exit(main())
