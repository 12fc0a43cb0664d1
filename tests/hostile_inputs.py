"""Hostile command lines and hostile files, generated from what commands and recipes declare.

    python tests/hostile_inputs.py 3000        # that many, of seed 0; counts what came of them
    python tests/hostile_inputs.py 3000 0 517  # of these, number 517 alone, with what it prints

A new option is attacked without being named here. Each input must end with exit code 0, or with 2 and a sentence. What
is still at work after three seconds gets SIGINT, as by Ctrl-C, and must end with 130. No code in a file may run.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import re
import resource
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple
from warnings import catch_warnings, simplefilter

import yaml

from fastweights import cli, recipes
from fastweights.bench import measurements, workers
from fastweights.cli.table import COMMANDS, Argument
from hostile_files import SENTINEL, dump_yaml, mutate

MEMORY = 16 * 2**30  # bytes of addresses: what takes more is out of memory, on any machine
NUMBERS = ("-1", "0", "1", "2", "3", "1000000000", "1000000000000000000", "99999999999999999999")
VALUES = (
    *NUMBERS, "", "1.5", "1e-3", "1e400", ".nan", ".inf", "-.inf", "null", "true", "[]", "[1]", "{}", "{a: 1}",
    "{type: x}", "{type: [a]}", "abc", "'", '"', "{", "a: b: c", "../../x", "[red]", "é", "x:y", "1_000", "0x10",
    "os:system", "file.py:X", "-", "--", "!!python/name:os.system", "&a [*a]", "2024-01-01", "a\nb", "\0", "\udcff",
    "lstm", "fwm", "adamw", "sgd", "answers", "a2c", "retrieval", "catbabi", "cuda", "out.svg",
)  # fmt: skip
LOOP = "--training.steps=2 --training.batch_size=2 --training.eval_batch_size=2"
TINY = {
    "catbabi": "--task.segment_length=12 --task.validation_stories=1 --task.babi_tasks=1",
    "retrieval": "--task.examples=5 --task.validation_examples=3 --task.test_examples=3",
    "mqar": "--task.examples=5 --task.validation_examples=3 --task.vocabulary_size=65",
    "graph-rl": "--task.steps=3 --task.graphs=10",
    "gymnasium": "--task.steps=3",
    "text": "--data=stories/qa1_train.txt --task.segment_length=12",
}
NAMES = tuple(name for name in recipes.names() if "/lstm" not in name or name.startswith(("art", "mart")))
KEYS = recipes.known_keys()
ART = f"art/lstm {LOOP} {TINY['retrieval']} --model.embedding_size=8 --model.core.hidden_size=8"
AGENT = f"graph-rl/fwm {LOOP} {TINY['graph-rl']} --model.core.memory_size=4 --training.evaluate_every=1"
WORDS = f"catbabi-qa/fwm {LOOP} {TINY['catbabi']} --model.core.hidden_size=8 --model.core.memory_size=4"
SEARCH = f"{ART.replace('--training.steps=2 ', '')} --over=training.seed=0,1 --rounds=1,2 --keep=1"

SMALL = {
    "bench": "--repeats=1 --batch-size=1 --length=1", "data generate": "--questions=20",
    "search": "--over=training.seed=0,1", "data download": "--mirror=http://127.0.0.1:9",
}  # fmt: skip
SOUND = {  # values of a command's arguments that are no fault, by what its help calls them
    "RECIPE": NAMES, "NAME": NAMES, "RUN_OR_CHECKPOINT": ("run", "agent", "words", "run/last.safetensors"),
    "RUN": ("agent",), "FOLDER": ("sweep",), "DIR": ("stories", "stories/qa1_train.txt"), "REAL": ("stories",),
    "GENERATED": ("stories",),
    "GRAPH": ("0", "3"), "FIGURE": ("out.png", "out.svg"), "DEVICE": ("cpu",), "LIST": ("1", "1-2"),
    "URL": ("sqlite:///out/trials.db",), "CORPUS": ("ptb", "wikitext-2", "babi"),
    "KEY": ("valid.loss", "train.loss"),
}  # fmt: skip
MADE = (
    "data generate --out=stories --questions=20 --babi-tasks=1",
    f"train {ART} --out=run",
    f"train {AGENT} --out=agent",
    f"train {WORDS} --data=stories --out=words",
    f"sweep {ART} --over=training.seed=0,1 --test --out=sweep",
    f"search {SEARCH} --out=search",
    "graphs maps --out=out.png",
)
READERS = {  # what reads a copy of what was made
    "run": ("evaluate copy", "evaluate copy/last.safetensors", "train --resume --out=copy --training.steps=4",
            "plot copy run --out=out.png", "plot copy run --groups --out=out.png", "plot copy --metric=train.loss"),
    "agent": ("evaluate copy --episodes=1", "train --resume --out=copy --training.steps=4",
              "graphs returns copy --out=out.png", "graphs walk copy --json"),
    "words": ("evaluate copy", "evaluate copy --data=stories", "evaluate copy --generated",
              "train --resume --out=copy --training.steps=4"),
    "sweep": ("report copy", "report copy --out=out", "plot copy/art/lstm/seed=0/test.json --groups",
              f"sweep {ART} --over=training.seed=0,1 --test --out=copy"),
    "search": (f"search {SEARCH} --out=copy", f"search {SEARCH} --test --out=copy", "train copy/best.yaml --out=out"),
    "stories": ("data stats copy", "data compare copy stories", "data compare stories copy",
                f"train {WORDS} --data=copy --out=out", "evaluate words --data=copy"),
    "recipes": ("recipes copy/recipe.yaml", "train copy/recipe.yaml --out=out", "sweep copy/recipe.yaml --out=out"),
}  # fmt: skip


class Outcome(NamedTuple):
    """What came of an input: its words, "code 0", "code 2", "code 130" or the fault, what it printed, and seconds."""

    words: list[str]
    kind: str
    printed: str
    seconds: float


def fine(outcome: Outcome) -> bool:
    """Whether it is no fault."""
    return outcome.kind in ("code 0", "code 2", "code 130")


class WorkerHere(workers.Worker):
    """A benchmark's worker in this process, which measures what is small, once, and passes over the rest."""

    def __init__(self, backend: str, threads: int):
        self.backend, self.memory_gb = backend, 0.0

    def __exit__(self, *error: object) -> None:
        pass

    def measure(self, measurement: str, work: measurements.Work) -> float:
        """Run it once."""
        if work.batch_size * work.length <= 64:
            known = measurements.MEASUREMENTS | {"training_episode": workers.training_episode}
            known[measurement](work, self.backend)()
        return 1.0


class Hang(BaseException):
    """A minute has passed."""


def value(rng: random.Random, argument: Argument) -> str:
    """A value of an argument, more often a sound one."""
    metavar = argument.options.get("metavar", "")
    if metavar == "KEY=VALUE,VALUE":
        return f"{rng.choice(KEYS)}={rng.choice(VALUES)},{rng.choice(VALUES)}"
    return rng.choice(SOUND[metavar] if metavar in SOUND and rng.random() < 0.8 else _odd(argument))


def _odd(argument: Argument) -> tuple[str, ...]:
    return (*VALUES, *NUMBERS * 5) if argument.options.get("type") is int else VALUES


def command_line(rng: random.Random) -> list[str]:
    """The arguments of one hostile command line."""
    command = rng.choices(COMMANDS, [12 if command.name == "train" else 1 for command in COMMANDS])[0]
    words = [*command.name.split(), *SMALL.get(command.name, "").split()]
    for argument in command.arguments:
        name = argument.names[0]
        if name == "--out":
            words.append(f"--out={'out.png' if argument.options['metavar'] == 'FIGURE' else 'out'}")
        elif not name.startswith("-"):
            words.append(value(rng, argument))
        elif rng.random() < 0.2:
            words.append(name if argument.options.get("action") == "store_true" else f"{name}={value(rng, argument)}")
    for name in {*words} & {*NAMES} if command.takes_overrides else ():
        words += f"{LOOP} {TINY[recipes.load(name).task['type']]}".split()
    if command.takes_overrides:
        words += [f"--{rng.choice(KEYS)}={rng.choice(VALUES)}" for _ in range(rng.choice((0, 1, 1, 2)))]
    return words


def hostile_file(rng: random.Random) -> list[str]:
    """A command that reads a copy of something with one changed file; the last word says what was changed."""
    thing = rng.choice([*READERS])
    shutil.copytree(thing, "copy")
    path = rng.choice(sorted(path for path in Path("copy").rglob("*") if path.is_file() and path.name != "lock"))
    return [*shlex.split(rng.choice(READERS[thing])), f"({thing}: {path}, {mutate(path, rng)})"]


def attack(words: list[str], patience: float = 3) -> Outcome:
    """Run a command line in this process and say what came of it."""
    printed, began = io.StringIO(), time.monotonic()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    signal.signal(signal.SIGALRM, _interrupt)
    signal.setitimer(signal.ITIMER_REAL, patience)
    try:
        with contextlib.redirect_stdout(io.StringIO()) as shown, contextlib.redirect_stderr(printed), catch_warnings():
            simplefilter("ignore", ResourceWarning)  # of a file that a library was writing when the interrupt came
            code = cli.main([word for word in words if not word.startswith("(")])
    except SystemExit as error:
        code = error.code
    except BaseException as error:
        return Outcome(words, f"{type(error).__name__}: {error}", printed.getvalue(), time.monotonic() - began)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    text, kind = printed.getvalue(), f"code {code}"
    if code == 2 and words[0] != "sweep" and not all(line.startswith("fastweights: ") for line in text.splitlines()):
        kind = "code 2 with something else than sentences"
    if code == 2 and not (text + shown.getvalue()).strip():
        kind = "code 2 without a sentence"
    # Python itself reports an interrupt that arrives while it frees an object, and goes on
    told = re.sub(r"Exception ignored in:.*?\nKeyboardInterrupt: ?\n", "", text + shown.getvalue(), flags=re.DOTALL)
    if re.search(r"Traceback|<class '|Exception raised from|frame #", told):
        kind = f"code {code} with Python's words"
    return Outcome(words, kind, text + shown.getvalue(), time.monotonic() - began)


def _interrupt(*unused: object) -> None:
    signal.signal(signal.SIGALRM, _hang)
    signal.setitimer(signal.ITIMER_REAL, 57)
    signal.raise_signal(signal.SIGINT)


def _hang(*unused: object) -> None:
    raise Hang


def attacks(count: int, seed: int, folder: str, only: int | None = None) -> list[Outcome]:
    """Attack with so many inputs, in a folder that holds nothing else; faults are printed."""
    outcomes = []
    limits = resource.getrlimit(resource.RLIMIT_AS)
    with contextlib.chdir(folder), contextlib.ExitStack() as stack:
        stack.callback(setattr, workers, "Worker", workers.Worker)
        workers.Worker = WorkerHere
        Path("hostile_sentinel.py").write_text(SENTINEL)
        sys.path.insert(0, folder)
        stack.callback(sys.path.remove, folder)
        for line in MADE:
            made = attack(line.split(), patience=60)
            assert made.kind == "code 0", made
        Path("recipes").mkdir()
        dump_yaml(Path("recipes/recipe.yaml"), yaml.safe_load(Path("run/config.yaml").read_text())["recipe"])
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, limits[1]))
        stack.callback(resource.setrlimit, resource.RLIMIT_AS, limits)
        for number in range(count) if only is None else [only]:
            rng = random.Random(f"{seed} {number}")
            words = hostile_file(rng) if rng.random() < 1 / 3 else command_line(rng)
            outcomes.append(attack(words))
            if Path("marker").exists():
                outcomes[-1] = outcomes[-1]._replace(kind="code that a file names has run")
                Path("marker").unlink()
                del sys.modules["hostile_sentinel"]
            if not fine(outcomes[-1]):
                print(number, outcomes[-1].kind[:300], words, outcomes[-1].printed[-300:], flush=True)
            for name in ("copy", "out", "runs"):
                shutil.rmtree(name, ignore_errors=True)
    return outcomes


def main() -> int:
    """Attack and print the counts."""
    count, seed, only = (*map(int, sys.argv[1:4]), *(3000, 0, None)[len(sys.argv) - 1 :])
    with tempfile.TemporaryDirectory() as folder:
        outcomes = attacks(count, seed, folder, only)
    for outcome in outcomes if only is not None else ():
        print(*outcome, sep="\n")
    faults = sum(not fine(outcome) for outcome in outcomes)
    for source in (False, True):
        kinds = Counter(o.kind for o in outcomes if o.words[-1].startswith("(") == source)
        print("files" if source else "command lines", {k: n for k, n in sorted(kinds.items()) if k.startswith("code")})
    slowest = max(outcomes, key=lambda outcome: outcome.seconds)
    print(f"{len(outcomes)} inputs, {faults} faults; the slowest took {slowest.seconds:.0f} s: {slowest.words}")
    return bool(faults)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
