"""Runs that are killed at random moments and resumed must leave the files of a run that was not, byte for byte.

    python tests/kills.py 50 0      # so many runs of one process and a fifth as many of two under torchrun, by a seed

Of two processes one is killed; the other must end as well.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from fastweights import cli

LOOP = (
    "--training.steps=60", "--training.batch_size=4", "--training.eval_batch_size=4", "--training.report_every=3",
    "--training.evaluate_every=7", "--training.save_every=4",
)  # fmt: skip
STORIES = (
    *LOOP, "--model.embedding_size=8", "--model.core.hidden_size=8", "--model.core.memory_size=4",
    "--task.segment_length=20", "--task.validation_stories=2", "--babi-tasks=1,2",
)  # fmt: skip
KINDS = {
    "sequences": (
        "art/fw-lstm", *LOOP, "--model.embedding_size=8", "--model.core.hidden_size=8", "--model.head_size=8",
        "--task.pairs=2", "--task.examples=11", "--task.validation_examples=5",
    ),
    "stories": ("catbabi-qa/fwm", *STORIES),
    "words, averages": ("catbabi-lm/fwm", *STORIES, "--training.average={decay: 0.8}", "--training.accumulate=2"),
}  # fmt: skip
FREE = ("lock", "timing.jsonl")  # files that the clock and the process determine
FORKS = multiprocessing.get_context("forkserver" if os.name == "posix" else "spawn")
FORKS.set_forkserver_preload(["torch._dynamo", "fastweights.cli", "fastweights.training.trained"])


class Moment(NamedTuple):
    """When to kill: some seconds after a run's records are of a size."""

    size: int
    seconds: float

    def wait(self, out: Path, is_alive: Callable[[], bool]) -> None:
        """Wait for it, or for the end of the run in the folder `out`."""
        metrics = out / "metrics.jsonl"
        while is_alive() and (metrics.stat().st_size if metrics.exists() else 0) < self.size:
            time.sleep(0.001)
        time.sleep(self.seconds)


class Outcome(NamedTuple):
    """What came of a run: its kind, how often it was killed, and the files in which it differs from a whole one."""

    kind: str
    kills: int
    different: list[str]


def _train(folder: Path, arguments: list[str]) -> None:
    os.chdir(folder)
    with open("log.txt", "w") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        torch.set_num_threads(1)
        raise SystemExit(cli.main(["train", *arguments]))


def alone(folder: Path, arguments: list[str], out: Path, moment: Moment | None, rng: random.Random) -> int:
    """Train in one process, which is killed at a moment, and return its exit code."""
    process = FORKS.Process(target=_train, args=(folder, arguments))
    process.start()
    if moment is not None:
        moment.wait(out, process.is_alive)
        process.kill()
    process.join()
    return process.exitcode


def together(folder: Path, arguments: list[str], out: Path, moment: Moment | None, rng: random.Random) -> int:
    """Train in two processes, one of which is killed at a moment, and return torchrun's exit code."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "fastweights", "train")
    with open(folder / "log.txt", "w") as log:
        process = subprocess.Popen(
            [sys.executable, *launcher, *arguments],
            cwd=folder,
            stdout=log,
            stderr=log,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    if moment is not None:
        moment.wait(out, lambda: process.poll() is None)
        with contextlib.suppress(ProcessLookupError, IndexError, FileNotFoundError):  # it has ended
            workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            os.kill(int(rng.choice(workers)), signal.SIGKILL)
    return process.wait(timeout=120)


def files(folder: Path) -> dict[str, bytes]:
    """The files that a run's recipe and seed determine."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in FREE}


def attack(train: Callable[..., int], count: int, seed: int, folder: Path, kinds: list[str]) -> list[Outcome]:
    """Kill so many runs, each up to three times, and compare them with whole ones."""
    rng, wholes, outcomes = random.Random(seed), {}, []
    for number in range(count):
        kind = kinds[number % len(kinds)]
        if kind not in wholes:
            whole = folder / f"whole{len(wholes)}"
            code = train(folder, [*KINDS[kind], f"--out={whole}"], whole, None, rng)
            assert code == 0, (folder / "log.txt").read_text()
            wholes[kind] = files(whole)
        expected, out, kills = wholes[kind], folder / f"run{number}", 0
        sizes = sorted(rng.randrange(len(expected["metrics.jsonl"])) for _ in range(rng.choice((1, 2, 3))))
        for moment in [*(Moment(size, rng.uniform(0, 0.03)) for size in sizes), None]:
            arguments = ["--resume"] if (out / "config.yaml").exists() else KINDS[kind]
            code = train(folder, [*arguments, f"--out={out}"], out, moment, rng)
            if code == 0:
                break
            assert moment is not None, (folder / "log.txt").read_text()
            kills += 1
        found = files(out)
        different = [name for name in {*found, *expected} if found.get(name) != expected.get(name)]
        outcomes.append(Outcome(kind, kills, different))
    return outcomes


def main() -> int:
    """Kill runs, and print the counts and every difference."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 50
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    failed = 0
    for name, train, number in (("one process", alone, count), ("two processes", together, count // 5)):
        kinds = list(KINDS) if train is alone else ["stories"]
        with tempfile.TemporaryDirectory() as folder:
            outcomes = attack(train, number, seed, Path(folder), kinds)
        for outcome in outcomes:
            if outcome.different:
                print(outcome)
        different = sum(bool(outcome.different) for outcome in outcomes)
        kills = sum(outcome.kills for outcome in outcomes)
        killed = sum(outcome.kills > 0 for outcome in outcomes)
        print(f"{name}: {number} runs, {killed} of them killed, {kills} kills, {different} differ", flush=True)
        failed += different
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
