"""The table of commands: names, help texts, arguments, and the functions that run them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from fastweights.cli import data, evaluate, graphs, info, plot, search, sweep, train
from fastweights.data.download import CORPORA, find


class Argument(NamedTuple):
    """The arguments of `argparse.ArgumentParser.add_argument`."""

    names: tuple[str, ...]
    options: dict[str, Any]


def argument(*names: str, **options: Any) -> Argument:
    """One argument of a command."""
    return Argument(names, options)


class Command(NamedTuple):
    """A command; a name of two words is in a group."""

    name: str
    run: Callable[[Any], int | None]
    summary: str
    arguments: tuple[Argument, ...] = ()
    epilog: str = ""
    takes_overrides: bool = False


GROUPS = {
    "data": "Download corpora; count bAbI's stories, generate new ones, and compare them.",
    "graphs": "Look at graphs and at agents on them.",
}

DATA = argument(
    "--data",
    metavar="DIR",
    type=find,
    help="the directory of the task's files, a text file, or what `fastweights data download` fetched, such as ptb; "
    "without it, data are generated",
)
THREADS = argument("--threads", type=int, metavar="N", help="processor threads (default: torch's choice)")
DEVICE = argument("--device", default="cpu", metavar="DEVICE", help="cpu (default), or cuda for a graphics card")
TRUST = argument("--trust", action="store_true", help="import code outside the package that the checkpoint names")
MODEL = argument("path", metavar="RUN_OR_CHECKPOINT", help="a run folder, or a checkpoint out of one")
SPLIT = argument("--split", default="test", choices=("train", "valid", "test"), help="default: test")
FIGURE = argument("--out", metavar="FIGURE", required=True, help="a PNG, SVG or PDF file")

COMMANDS = (
    Command(
        "recipes",
        info.recipes,
        "List the recipes, with each model's weights and state size.",
        (argument("name", metavar="NAME", nargs="?", help="show this recipe whole, with the meaning of its values"),),
        """\
A recipe is a YAML file: a task, a model and its training. To change much of one, save it as a file and train that:
  fastweights recipes catbabi-qa/fwm
  fastweights train my-recipe.yaml
""",
    ),
    Command(
        "train",
        train.train,
        "Train a recipe; the run folder holds configuration, metrics and checkpoints.",
        (
            argument("recipe", metavar="RECIPE", nargs="?", help="a name from `fastweights recipes`, or a YAML file"),
            DATA,
            argument("--out", metavar="RUN", help="the run folder (default: runs/RECIPE)"),
            argument("--seed", type=int, metavar="N", help="seed of weights, data order and dropout (training.seed)"),
            argument("--babi-tasks", metavar="LIST", help="bAbI's tasks, such as 1,2,4-20 (task.babi_tasks)"),
            argument("--resume", action="store_true", help="resume the run in --out, bit for bit"),
            THREADS,
            DEVICE,
            TRUST,
        ),
        """\
Every value of a recipe can be changed on the command line:
  fastweights train catbabi-qa/fwm --training.steps 1000 --model.core.memory_size 16
  fastweights train catbabi-qa/fwm --training.optimizer '{type: adamw, weight_decay: 0.01}'
  fastweights train catbabi-qa/fwm --data en-valid-10k --babi-tasks 1,2,4-20
  fastweights train text/fwm --data my-text.txt      # a language model of any text; or --data ptb
  fastweights train catbabi-qa/fwm --model.core '{type: my_core.py:MyCore, hidden_size: 64}'   # your own core
  fastweights train catbabi-qa/fwm --resume          # after Ctrl-C, a crash or a power cut
  fastweights train --resume --out runs/catbabi-qa/fwm --training.steps 60000  # more steps (constant learning rate)
`fastweights recipes NAME` shows all values of a recipe and their meaning.
""",
        takes_overrides=True,
    ),
    Command(
        "sweep",
        sweep.sweep,
        "Train recipes with every combination of settings and seeds.",
        (
            argument("recipes", metavar="RECIPE", nargs="+", help="names from `fastweights recipes`, or YAML files"),
            argument(
                "--over",
                metavar="KEY=VALUE,VALUE",
                action="append",
                default=[],
                help="a setting and its values, such as task.pairs=8,16; may be repeated",
            ),
            argument("--out", metavar="FOLDER", required=True, help="the folder of the run folders"),
            DATA,
            argument("--test", action="store_true", help="evaluate each run's best model on the test split"),
            THREADS,
        ),
        """\
Each run has a folder of its own. The same command resumes the sweep; several processes that give it, on any machines
with the folder on a shared filesystem, divide the runs among them (one thread each is best):
  fastweights sweep art/fw-lstm art/lstm --over task.pairs=8,16 --over training.seed=0,1,2 --out sweeps/art --threads 1
Other settings change all runs, as with `fastweights train`:
  fastweights sweep art/fwm --over model.core.memory_size=8,16 --training.steps 500 --out sweeps/sizes
Table and learning curves:
  fastweights report sweeps/art --out art
""",
        takes_overrides=True,
    ),
    Command(
        "search",
        search.search,
        "Search over a recipe's settings in rounds: the best go on from their checkpoints.",
        (
            argument("recipe", metavar="RECIPE", help="a name from `fastweights recipes`, or a YAML file"),
            argument(
                "--over",
                metavar="KEY=VALUE,VALUE",
                action="append",
                default=[],
                help="a setting and its values, or its range, such as 'training.learning_rate=1e-4..1e-2 log'; may be "
                "repeated",
            ),
            argument("--rounds", metavar="STEPS", help="the step at which each round ends, such as 3000,10000"),
            argument("--keep", metavar="NUMBERS", help="how many settings go on to each round after the first"),
            argument("--out", metavar="FOLDER", required=True, help="the folder of run folders, journal and results"),
            argument(
                "--sampler",
                default="grid",
                choices=("grid", "random", "tpe"),
                help="how settings are chosen: every combination (default), or --trials of them at random or by TPE",
            ),
            argument("--trials", type=int, metavar="N", help="the number of sampled settings"),
            argument("--storage", metavar="URL", help="a database that keeps the trials (default: a journal in --out)"),
            DATA,
            argument("--test", action="store_true", help="evaluate the last round's best models on the test split"),
            THREADS,
        ),
        """\
Appendix F of the FWM paper, a grid for 3,000 steps of which the best two go on to 10,000:
  fastweights search catbabi-qa/fwm --over training.batch_size=64,128 \\
      --over training.learning_rate=0.0001,0.00025,0.0005,0.001,0.002 --rounds 3000,10000 --keep 2 --out searches/fwm
The same command joins the search from another process (one thread each is best) or machine with the folder on a shared
filesystem, goes on after a kill, and when all is trained writes the results again. FOLDER then holds search.md,
curves.png, parameters.png and best.yaml:
  fastweights train searches/fwm/best.yaml
A setting is one run with the steps of the last round, which pauses at the end of each round: so a falling learning rate
falls over all rounds. It is judged by the best validation so far. The runs are those of a sweep:
  fastweights report searches/fwm
Sampled settings, kept in a database of Optuna's:
  fastweights search art/fwm --over 'training.learning_rate=1e-4..1e-2 log' --over model.core.memory_size=8,16 \\
      --sampler tpe --trials 20 --out searches/art --storage sqlite:///searches.db
""",
        takes_overrides=True,
    ),
    Command(
        "report",
        sweep.report,
        "Show a sweep's runs as a table and learning curves.",
        (
            argument("folder", metavar="FOLDER", help="the --out of `fastweights sweep`"),
            argument("--out", metavar="NAME", help="also write NAME.md, NAME.png and NAME.svg"),
        ),
    ),
    Command(
        "plot",
        plot.plot,
        "Compare any runs: a recorded metric over steps, or the accuracy per group, as figure and table.",
        (
            argument(
                "runs",
                metavar="RUN",
                nargs="+",
                help="NAME=RUN or RUN: a run folder, a folder of run folders, a file of records (.jsonl), or what "
                "`fastweights evaluate --json` printed (.json)",
            ),
            argument(
                "--metric",
                metavar="KEY",
                help="as in metrics.jsonl: valid.loss, train.answer_accuracy, valid.groups.3.accuracy … "
                "(default: the headline metric of the validations)",
            ),
            argument(
                "--groups",
                action="store_true",
                help="instead, bars of the accuracy per group (bAbI's tasks) at each run's best validation",
            ),
            argument("--out", metavar="FIGURE", help="also draw a PNG, SVG or PDF file"),
        ),
        """\
Runs of one NAME are one line: their mean, with a band from the least to the greatest value. So are runs without a name
that differ in nothing but the seed; they are labelled by what differs between their recipes.
  fastweights plot runs/catbabi-qa/fwm runs/catbabi-qa/lstm --out curves.png
  fastweights plot sweeps/reads --metric valid.groups.3.accuracy --out task-3.svg
  fastweights plot "product=runs/catbabi-qa/fwm" "concatenation=runs/concatenation" --groups --out tasks.pdf
On the test split, with an evaluation in each run folder:
  fastweights evaluate runs/catbabi-qa/fwm --split test --json > runs/catbabi-qa/fwm/test.json
  fastweights plot runs/catbabi-qa/*/test.json --groups --out tasks.png
""",
    ),
    Command(
        "evaluate",
        evaluate.evaluate,
        "Evaluate a trained model: accuracy and perplexity, or an agent's return.",
        (
            MODEL,
            argument("--data", metavar="DIR", type=find, help="the task's files (default: those of training)"),
            argument("--generated", action="store_true", help="evaluate on generated data, whatever it was trained on"),
            argument("--split", default="valid", choices=("valid", "test"), help="default: valid"),
            argument(
                "--babi-tasks", metavar="LIST", help="bAbI's tasks, such as 1,2,4-20 (default: those of training)"
            ),
            argument(
                "--batch-size",
                type=int,
                metavar="N",
                help="rows side by side: 1 for a final figure of streams (their default), 128 for speed",
            ),
            argument("--initial-state", action="store_true", help="start from the initial state, not from training's"),
            argument("--episodes", type=int, metavar="N", help="episodes of each environment (agents; default: 10)"),
            DEVICE,
            TRUST,
        ),
        """\
Examples:
  fastweights evaluate runs/catbabi-qa/fwm                            # new stories of the kind of its training
  fastweights evaluate runs/catbabi-qa/fwm --data en-valid-10k        # bAbI's own questions
  fastweights evaluate runs/catbabi-qa/fwm --task.distractors 2       # harder stories
  fastweights evaluate runs/catbabi-qa/fwm/best.safetensors --babi-tasks 1-3 --json
  fastweights evaluate runs/graph-rl/fwm --split test --episodes 20   # unseen graphs
  fastweights evaluate runs/ptb/fwm --split test --objective.temperature tuned  # the softmax's, on validation
""",
        takes_overrides=True,
    ),
    Command(
        "data stats",
        data.stats,
        "Count stories, questions and tokens (the paper's table 3), and name missing files.",
        (
            argument("directory", metavar="DIR", help="a directory of bAbI's files, such as en-valid-10k"),
            argument(
                "--as-published",
                action="store_true",
                help="count as the authors' script does, which loses each file's last story",
            ),
        ),
    ),
    Command(
        "data download",
        data.download,
        "Download a corpus from the web; files that differ from the known ones are left out.",
        (
            argument("corpus", metavar="CORPUS", choices=tuple(CORPORA), help=", ".join(CORPORA)),
            argument("--out", metavar="FOLDER", help="where the files are kept (default: the user's cache)"),
            argument("--mirror", metavar="URL", help="another folder of the web that has the files"),
        ),
        f"""\
Example:
  fastweights data download ptb
  fastweights train text/fwm --data ptb
ptb: Penn Treebank as Mikolov prepared it, train, valid and test. wikitext-2: the same of WikiText-2. babi: bAbI v1.2,
en-valid-10k; its archive is downloaded whole, and the files whose hashes are known are kept: training and validation
of all tasks except the training file of task 3 (so --babi-tasks 1,2,4-20), no test files. A second call downloads only
what is missing. From:
{chr(10).join(f"  {name:11} {corpus.url}" for name, corpus in CORPORA.items())}
""",
    ),
    Command(
        "data generate",
        data.generate,
        "Write generated stories as files in bAbI's own format.",
        (
            argument("--out", metavar="DIR", required=True, help="an empty or new directory"),
            argument(
                "--questions",
                type=int,
                default=9000,
                metavar="N",
                help="questions of a training file; validation and test have a ninth (default: 9000, as bAbI's 10k)",
            ),
            argument("--seed", type=int, default=0, metavar="N", help="seed of the stories (default: 0)"),
            argument("--babi-tasks", metavar="LIST", help="such as 1-3,6 (default: all)"),
            *(argument(f"--{size}", type=int, metavar="N", help=text) for size, text in data.STORY_SIZES.items()),
        ),
        "Example:\n  fastweights data generate --out stories --questions 9000 --seed 0 --babi-tasks 1-3,6\n",
    ),
    Command(
        "data compare",
        data.compare,
        "Measure the distance of generated stories from real ones, task by task, beside that of chance.",
        (
            argument("real", metavar="REAL", help="a directory of bAbI's files, such as en-valid-10k"),
            argument("generated", metavar="GENERATED", help="a directory from `fastweights data generate`"),
            argument("--babi-tasks", metavar="LIST", help="such as 1-3,6 (default: those of both directories)"),
            argument("--split", default="train", choices=("train", "valid", "test"), help="default: train"),
        ),
        """\
Each measure counts something in every story (words, sentences, answers, distances of supporting facts …). The distance
is the total variation between the two distributions: 0 for equal ones, 1 for disjoint ones. The floor is the 95th
percentile of the distances between random halves of the real stories: that of chance alone. A ratio of distance to
floor up to 2 means that the stories can hardly be told apart by this measure.

Example:
  fastweights data generate --out stories --seed 0
  fastweights data compare en-valid-10k stories
""",
    ),
    Command(
        "graphs maps",
        graphs.maps,
        "Draw graphs, with an agent and its goal.",
        (
            argument("numbers", metavar="GRAPH", type=int, nargs="*", default=[0, 1], help="which (default: 0 1)"),
            FIGURE,
            SPLIT,
        ),
        "Other rules of the graphs:  fastweights graphs maps 0 --out map.png --task.places 7\n",
        takes_overrides=True,
    ),
    Command(
        "graphs returns",
        graphs.returns,
        "Draw runs' returns against episodes, with the exact bounds.",
        (argument("runs", metavar="RUN", nargs="+", help="run folders of agents on graphs"), FIGURE),
    ),
    Command(
        "graphs walk",
        graphs.walk,
        "Let an agent walk a graph, and show its first and later paths to each goal.",
        (
            MODEL,
            argument("--graph", type=int, default=0, metavar="N", help="which graph (default: 0)"),
            argument("--seed", type=int, default=0, metavar="N", help="seed of goals and actions (default: 0)"),
            SPLIT,
            TRUST,
        ),
        takes_overrides=True,
    ),
    Command(
        "bench",
        info.bench,
        "Time the training step, the memory op and streaming, per backend, as ratios.",
        (
            argument(
                "--repeats", type=int, default=5, metavar="N", help="timed runs, of which the median (default: 5)"
            ),
            argument(
                "--batch-size",
                type=int,
                metavar="N",
                help="sequences or agents (default: 32; with --agent 600; with --core the recipe's)",
            ),
            argument("--length", type=int, metavar="N", help="steps of each (default: 200; with --agent 30)"),
            argument(
                "--core",
                metavar="NAME",
                help="instead, time a training step of the recipe catbabi-qa/NAME, beside its reference and roofline",
            ),
            argument("--agent", action="store_true", help="instead, time a training episode of the agent on graphs"),
            argument("--profile", action="store_true", help="instead, show the step's time by part"),
            argument(
                "--growth",
                metavar="FIGURE",
                help="instead, draw the memory's time against length, batch size and size (some minutes)",
            ),
        ),
        """\
A backend is an implementation of the recurrences: reference is step by step, as in the paper; plain is chunkwise in
torch's own operations; auto is the default, compiled where possible. Close other programs first, and compare only
figures of one run. `fastweights doctor` lists the backends.
""",
    ),
    Command("doctor", info.doctor, "Say what this machine can run, which backends are chosen, and why."),
)
