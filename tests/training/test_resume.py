"""A run that was interrupted and resumed leaves the same bytes as one that was not."""

import contextlib
import json
import multiprocessing
import os
import random
import re
import signal
from functools import partial
from pathlib import Path

import pytest
import torch

from fastweights import cli, load_model
from fastweights.data.babi import Question
from fastweights.data.generate import generate_story
from fastweights.training import checkpoint
from fastweights.training.display import ProgressObserver
from fastweights.training.runs import RunFolder
from trainings import assert_same_run

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals and limits")

STEPS = 30
TINY = (
    "--model.embedding_size=8",
    "--model.core.hidden_size=8",
    "--task.segment_length=20",
    "--task.validation_stories=2",
    "--training.batch_size=2",
    "--training.eval_batch_size=2",
    f"--training.steps={STEPS}",
    "--training.report_every=3",
    "--training.evaluate_every=7",
)
KINDS = {
    "fw-lstm, sequences": (
        "art/fw-lstm",
        "--model.embedding_size=8",
        "--model.core.hidden_size=8",
        "--model.head_size=8",
        "--task.pairs=2",
        "--task.examples=11",
        "--task.validation_examples=5",
        "--training.batch_size=3",
        "--training.eval_batch_size=2",
        f"--training.steps={STEPS}",
        "--training.report_every=3",
        "--training.evaluate_every=7",
    ),
    "fwm, generated stories": ("catbabi-qa/fwm", *TINY, "--model.core.memory_size=4", "--babi-tasks=1,2"),
    "lstm with dropout": ("catbabi-qa/lstm", *TINY, "--babi-tasks=1,6"),
    "agent": (
        "graph-rl/fwm",
        "--model.core.slow={type: lstm, hidden_size: 16}",
        "--model.core.memory_size=4",
        "--task.steps=5",
        "--task.graphs=20",
        "--training.batch_size=4",
        *TINY[-4:],
    ),
    "language model, nt-asgd": (
        "catbabi-lm/fwm",
        "--objective.type=language-model",
        *TINY,
        "--model.core.memory_size=4",
        "--babi-tasks=1,2",
        "--training.accumulate=2",
        "--training.save_every=5",
        "--training.learning_rate=0.5",  # so high that a validation gets worse
        "--training.average={patience: 1, optimizer: {type: sgd, momentum: 0.9}, learning_rate: 0.1}",
    ),
    "fwm, files": ("catbabi-lm/fwm", *TINY, "--model.core.memory_size=4", "--babi-tasks=1,6", "--data=stories"),
}
FORKS = multiprocessing.get_context("forkserver" if os.name == "posix" else "spawn")
FORKS.set_forkserver_preload(["torch._dynamo", "fastweights.cli", "fastweights.training.trained"])


def write_stories(folder: Path, split: str, tasks: tuple[int, ...], count: int) -> None:
    folder.mkdir(exist_ok=True)
    for task in tasks:
        lines = []
        for index in range(count):
            for number, line in enumerate(generate_story(task, 0, index).lines, start=1):
                end = f" \t{line.answer}\t{' '.join(map(str, line.support))}" if isinstance(line, Question) else ""
                lines.append(f"{number} {line.text}{end}\n")
        (folder / f"qa{task}_{split}.txt").write_text("".join(lines))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder to train in, with few enough stories that a run reads them more than twice."""
    folder = tmp_path_factory.mktemp("runs")
    write_stories(folder / "stories", "train", (1, 6), 2)
    write_stories(folder / "stories", "valid", (1, 6), 1)
    return folder


def train_here(folder, arguments, sabotage):
    """What the process of a training does."""
    os.chdir(folder)
    with open("log.txt", "w") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        torch.set_num_threads(1)
        if sabotage:
            sabotage()
        code = cli.main(["train", *arguments])
    raise SystemExit(code)


def start(folder, arguments, sabotage=None):
    process = FORKS.Process(target=train_here, args=(folder, arguments, sabotage))
    process.start()
    return process


def train(folder, *arguments, sabotage=None) -> int:
    """Train in a process of its own and return its exit code, negative where a signal ended it."""
    process = start(folder, arguments, sabotage)
    process.join()
    return process.exitcode


def log(folder) -> str:
    return " ".join((folder / "log.txt").read_text().split())


def signal_after_step(step: int, number: int) -> None:
    """Make this process send itself a signal when it has made a step."""
    original = ProgressObserver.step

    def observe(observer, progress):
        original(observer, progress)
        if progress.step == step:
            os.kill(os.getpid(), number)

    ProgressObserver.step = observe


def kill_in_save(name: str, count: int) -> None:
    """Make this process die when half of its count-th save to the file `name` is written."""
    original = checkpoint.write_atomically
    paths = []

    def write_half(path, content):
        if Path(path).name == name:
            paths.append(path)
            if len(paths) == count:
                partial_file = Path(path).with_name(f".{name}.0123456789abcdef.partial")
                partial_file.write_bytes(content[: len(content) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
        original(path, content)

    checkpoint.write_atomically = write_half


def kill_in_record(step: int) -> None:
    """Make this process die when half a line of its metrics is written."""
    original = RunFolder.record

    def record_half(run, metrics, timing=None):
        if metrics["step"] == step:
            with open(run.metrics, "ab") as file:
                file.write(json.dumps(metrics).encode()[:9])
            os.kill(os.getpid(), signal.SIGKILL)
        original(run, metrics, timing)

    RunFolder.record = record_half


def fill_the_disk_after_step(step: int) -> None:
    """Let no file of this process grow beyond a few kilobytes from a step on."""
    import resource

    original = ProgressObserver.step

    def observe(observer, progress):
        original(observer, progress)
        if progress.step == step:
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))

    ProgressObserver.step = observe


@pytest.fixture(scope="module")
def uninterrupted(place):
    """Return, for a kind of training, the folder of its uninterrupted run."""
    runs = {}

    def run_of(kind):
        if kind not in runs:
            name = f"whole-{len(runs)}"
            assert train(place, *KINDS[kind], f"--out={name}") == 0, log(place)
            runs[kind] = place / name
        return runs[kind]

    return run_of


def assert_same(run: Path, whole: Path) -> None:
    assert_same_run(RunFolder.open(run), RunFolder.open(whole))


def test_the_runs_compared_here_are_worth_comparing(place, uninterrupted):
    for kind in KINDS:
        run = RunFolder.open(uninterrupted(kind))
        records = run.records()
        steps = [record["step"] for record in records if "train" in record]
        assert steps == list(range(3, STEPS + 1, 3))
        assert [record["step"] for record in records if "valid" in record] == [7, 14, 21, 28, 30]
        losses = [record["train"]["loss"] for record in records if "train" in record]
        assert len(set(losses)) == len(losses)
    metadata = checkpoint.read_metadata(uninterrupted("fwm, files") / "last.safetensors")
    assert metadata["cursor"]["next"] > 2 * metadata["cursor"]["epoch_length"]
    metadata = checkpoint.read_metadata(uninterrupted("language model, nt-asgd") / "last.safetensors")
    assert 2 < metadata["optimization"]["averaged_steps"] < STEPS - 7  # the optimizer changed in the middle


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("sabotages", "codes"),
    [
        pytest.param(
            [partial(signal_after_step, 8, signal.SIGINT), partial(signal_after_step, 12, signal.SIGTERM)],
            [130, 143],
            id="asked politely",
        ),
        pytest.param(
            [
                partial(signal_after_step, 2, signal.SIGKILL),
                partial(kill_in_save, "last.safetensors", 2),
                partial(kill_in_save, "best.safetensors", 1),
                partial(kill_in_record, 18),
                partial(signal_after_step, 28, signal.SIGKILL),
            ],
            [-signal.SIGKILL] * 5,
            id="killed",
        ),
    ],
)
def test_an_interrupted_run_leaves_the_same(place, uninterrupted, kind, sabotages, codes):
    whole = uninterrupted(kind)
    out = f"interrupted-{len(list(place.iterdir()))}"
    arguments = KINDS[kind]
    for sabotage, code in zip(sabotages, codes, strict=True):
        ended = train(place, *arguments, f"--out={out}", sabotage=sabotage)
        assert ended in (code, 0), log(place)
        arguments = ["--resume"]
        if code > 0:
            assert ended == code
            assert f"Resume with: fastweights train --resume --out {out}" in log(place)
    assert train(place, "--resume", f"--out={out}") == 0, log(place)
    assert_same(place / out, whole)


def test_interruptions_at_many_steps_leave_the_same(place, uninterrupted):
    kind = "fwm, files"
    out = "many-interruptions"
    arguments = KINDS[kind]
    for step in range(1, STEPS, 4):  # across the ends of epochs, where rows are padded
        sabotage = partial(signal_after_step, step, signal.SIGTERM)
        assert train(place, *arguments, f"--out={out}", sabotage=sabotage) == 143, log(place)
        arguments = ["--resume"]
        assert checkpoint.read_metadata(place / out / "last.safetensors")["step"] == step
    assert train(place, "--resume", f"--out={out}") == 0, log(place)
    assert_same(place / out, uninterrupted(kind))


@pytest.mark.parametrize("kind", ["fwm, generated stories", "lstm with dropout"])
def test_kills_at_random_moments_leave_the_same(place, uninterrupted, kind):
    whole = uninterrupted(kind)
    out = f"random-kills-{len(list(place.iterdir()))}"
    moments = random.Random(0)
    killed = 0
    for _ in range(6):
        arguments = ["--resume"] if (place / out / "config.yaml").exists() else KINDS[kind]
        process = start(place, [*arguments, f"--out={out}"])
        process.join(moments.uniform(0.05, 0.4))
        process.kill()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
        assert process.exitcode in (0, -signal.SIGKILL), log(place)
    arguments = ["--resume"] if (place / out / "config.yaml").exists() else KINDS[kind]
    assert train(place, *arguments, f"--out={out}") == 0, log(place)
    assert killed > 0
    assert_same(place / out, whole)


def test_resuming_a_finished_run_changes_nothing(place, uninterrupted):
    whole = uninterrupted("fwm, generated stories")
    before = {path.name: path.read_bytes() for path in whole.iterdir() if path.name != "lock"}
    assert train(place, "--resume", f"--out={whole.name}", "--json") == 0
    assert {path.name: path.read_bytes() for path in whole.iterdir() if path.name != "lock"} == before
    assert f'"step": {STEPS}' in log(place)


def test_a_finished_run_goes_on_to_a_later_end(place, uninterrupted):
    kind, out = "fwm, generated stories", "prolonged"
    assert train(place, *KINDS[kind], "--training.steps=14", f"--out={out}") == 0, log(place)
    assert train(place, "--resume", f"--out={out}", "--training.steps", str(STEPS)) == 0, log(place)
    for name in ("config.yaml", "metrics.jsonl", "last.safetensors"):
        assert (place / out / name).read_bytes() == (uninterrupted(kind) / name).read_bytes(), name


def test_a_full_disk_while_saving_leaves_the_old_checkpoint(place, uninterrupted):
    kind, out = "fwm, generated stories", "full-disk"
    stop = partial(signal_after_step, 8, signal.SIGINT)
    assert train(place, *KINDS[kind], f"--out={out}", sabotage=stop) == 130
    run = RunFolder.open(place / out)
    before = run.last.read_bytes()
    assert train(place, "--resume", f"--out={out}", sabotage=partial(fill_the_disk_after_step, 11)) == 2
    message = log(place)
    assert re.search(r"fastweights: cannot write \S+\.safetensors \(File too large\); free some space", message)
    assert "Traceback" not in message
    assert run.last.read_bytes() == before
    load_model(run.last)
    assert train(place, "--resume", f"--out={out}") == 0, log(place)
    assert_same(run.path, uninterrupted(kind))


def test_another_number_of_threads_is_noted(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    threads = torch.get_num_threads()
    try:
        arguments = [*KINDS["fwm, generated stories"], "--training.steps=1", "--out=threads"]
        assert cli.main(["train", *arguments, "--threads=1"]) == 0
        capsys.readouterr()
        assert cli.main(["train", "--resume", "--out=threads", "--threads=1"]) == 0
        assert "note:" not in capsys.readouterr().out
        assert cli.main(["train", "--resume", "--out=threads", "--threads=2"]) == 0
    finally:
        torch.set_num_threads(threads)
    shown = " ".join(capsys.readouterr().out.split())
    assert "note: saved with threads 1, resumed with 2: results may differ in the last digits" in shown
