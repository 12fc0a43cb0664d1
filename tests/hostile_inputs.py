"""Hostile command lines, generated from what the table of commands and the recipes declare.

    python tests/hostile_inputs.py 3000      # that many, from seed 0; counts what came of them

A new option is attacked without being named here. Each input must end with exit code 0, or with 2 and one sentence.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import sys
import tempfile
import time
from collections import Counter
from typing import NamedTuple

from fastweights import cli, recipes
from fastweights.cli.table import COMMANDS

VALUES = (
    "", "-1", "0", "1", "2", "1.5", "1e-3", "1e400", ".nan", ".inf", "-.inf", "null", "true", "[]", "[1]", "{}",
    "{a: 1}",
    "{type: x}", "{type: [a]}", "abc", "'", '"', "{", "a: b: c", "99999999999999999999", "../../x", "[red]", "é", "x:y",
    "os:system", "file.py:X", "-", "--", "!!python/name:os.system", "&a [*a]", "2024-01-01", "0x10", "1_000", "a\nb",
    "lstm", "fwm", "adamw", "sgd", "answers", "a2c", "retrieval", "catbabi",
)  # fmt: skip
LARGE = ("99999999999999999999", "1_000", "0x10")  # sizes that are accepted and then take long
LOOP = ("--training.steps=2", "--training.batch_size=2", "--training.eval_batch_size=2")
TINY = {
    "catbabi": ("--task.segment_length=12", "--task.validation_stories=1", "--task.babi_tasks=1"),
    "retrieval": ("--task.examples=5", "--task.validation_examples=3", "--task.test_examples=3"),
    "mqar": ("--task.examples=5", "--task.validation_examples=3", "--task.vocabulary_size=65"),
    "graph-rl": ("--task.steps=3", "--task.graphs=10"),
    "gymnasium": ("--task.steps=3",),
}
NAMES = [name for name in recipes.names() if "/lstm" not in name or name.startswith(("art", "mart"))]
SLOW = ("bench", "sweep", "data compare", "graphs maps")


class Outcome(NamedTuple):
    """What came of an input: its arguments, "code 0", "code 2" or the fault, and what was printed."""

    arguments: list[str]
    kind: str
    printed: str


def settings(rng: random.Random) -> list[str]:
    """One or two settings of a recipe, with values of any kind."""
    found = []
    for _ in range(rng.choice((1, 1, 2))):
        key, value = rng.choice(KEYS), rng.choice(VALUES)
        found.append(f"--{key}={'3' if value in LARGE else value}")
    return found


KEYS = recipes.known_keys()


def generate(rng: random.Random) -> list[str]:
    """The arguments of one hostile command line; words `OUT` and `RUN` stand for a new folder and a trained run."""
    if rng.random() < 0.6:
        name = rng.choice(NAMES)
        task = recipes.load(name).task
        return ["train", name, *LOOP, *TINY[task["type"]], *settings(rng), "--out=OUT"]
    command = rng.choice([command for command in COMMANDS if command.name not in SLOW])
    arguments = command.name.split()
    for argument in command.arguments:
        name, options = argument.names[0], argument.options
        if name in ("--growth", "--device"):
            continue
        if not name.startswith("-"):
            arguments.append(rng.choice(("RUN", "RUN", *VALUES)))
        elif name == "--out":
            arguments.append("--out=OUT")
        elif rng.random() < 0.3:
            flag = options.get("action") == "store_true"
            value = rng.choice([value for value in VALUES if value not in LARGE])
            arguments.append(name if flag else f"{name}={value}")
    return [*arguments, *(settings(rng) if command.takes_overrides and rng.random() < 0.5 else [])]


def attack(arguments: list[str]) -> Outcome:
    """Run a command line in this process and say what came of it."""
    printed, began = io.StringIO(), time.perf_counter()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(printed):
            code = cli.main(arguments)
    except SystemExit as error:
        code = error.code
    except BaseException as error:
        return Outcome(arguments, f"{type(error).__name__}: {error}", printed.getvalue())
    if time.perf_counter() - began > 60:
        return Outcome(arguments, "more than 60 seconds", printed.getvalue())
    if code == 2 and not printed.getvalue().strip():
        return Outcome(arguments, "exit code 2 without a sentence", "")
    return Outcome(arguments, f"code {code}", printed.getvalue())


def attacks(count: int, seed: int, folder: str) -> list[Outcome]:
    """Attack with so many inputs, in a folder that holds nothing else."""
    rng, outcomes = random.Random(seed), []
    with contextlib.chdir(folder):
        assert cli.main(["train", "art/lstm", *LOOP, *TINY["retrieval"], "--out=run"]) == 0
        for number in range(count):
            words = {"OUT": f"out{number}", "RUN": "run"}
            arguments = generate(rng)
            arguments = [words.get(word, word.replace("=OUT", f"=out{number}")) for word in arguments]
            outcomes.append(attack(arguments))
    return outcomes


def main() -> int:
    """Attack and print the counts, and every fault."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 3000
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    with tempfile.TemporaryDirectory() as folder:
        outcomes = attacks(count, seed, folder)
    faults = [outcome for outcome in outcomes if outcome.kind not in ("code 0", "code 2")]
    for outcome in faults:
        print(outcome.kind[:200], outcome.arguments)
    print(dict(Counter(outcome.kind for outcome in outcomes if outcome not in faults)), f"{len(faults)} faults")
    return bool(faults)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
