"""Several processes: the same curve as one with all the rows, and an exact resume. They talk over loopback (gloo)."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch

from fastweights import cli, distributed
from fastweights.distributed import Group
from fastweights.errors import UserError
from fastweights.training import checkpoint
from tolerances import assert_near

TINY = (
    "catbabi-qa/fwm",
    "--babi-tasks=1,2",
    "--model.embedding_size=16",
    "--model.core.hidden_size=16",
    "--model.core.memory_size=8",
    "--task.segment_length=20",
    "--task.validation_stories=2",
    "--training.batch_size=4",
    "--training.eval_batch_size=2",
    "--training.steps=100",
    "--training.report_every=3",
    "--training.evaluate_every=7",
)
TOGETHER = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "fastweights", "train")
ALONE = ("-m", "fastweights", "train")

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or os.name != "posix", reason="needs torch.distributed and POSIX signals"
)


def start(folder, launcher, *arguments):
    return subprocess.Popen(
        [sys.executable, *launcher, *arguments],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(folder, launcher, *arguments):
    process = start(folder, launcher, *arguments)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def records(run_folder):
    return [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Holds the run `two`, made by two processes, and `one`, made by one with the same rows."""
    folder = tmp_path_factory.mktemp("distributed")
    output = run(folder, TOGETHER, *TINY, "--out=two")
    assert output.count("Training ") == 1 and "2 processes" in output  # one of them speaks
    run(folder, ALONE, *TINY, "--out=one")
    return folder


def test_two_processes_learn_as_one_with_all_the_rows(folder):
    two, one = records(folder / "two"), records(folder / "one")
    assert [record["step"] for record in two] == [record["step"] for record in one]
    for found, expected in zip(two, one, strict=True):
        kind = "train" if "train" in found else "valid"
        assert found[kind]["loss"] == pytest.approx(expected[kind]["loss"], rel=1e-5)
        assert found[kind].get("tokens") == expected[kind].get("tokens")
        for metric in ("answer_accuracy", "questions"):
            assert found[kind].get(metric) == expected[kind].get(metric)
        assert found[kind]["answer_perplexity"] == pytest.approx(expected[kind]["answer_perplexity"], rel=1e-4)
    found, expected = (checkpoint.load(folder / name / "last.safetensors")[0] for name in ("two", "one"))
    for name in expected:
        if name != "random/torch":
            assert_near(found[name], expected[name], name, tolerance=1e-3)


OTHER_OPTIONS = (
    "catbabi-lm/fwm",
    *TINY[1:-3],
    "--objective.type=language-model",
    "--model.core={type: fwm, memory_size: 8, slow: {type: 'training_cores:LearnedMeta', hidden_size: 16}}",
    "--training.accumulate=2",
    "--training.average={decay: 0.8}",
    "--training.optimizer={type: sgd, momentum: 0.9}",
    "--training.early_stopping.patience=100",
    "--training.steps=10",
    "--training.report_every=5",
    "--training.evaluate_every=5",
    "--training.save_every=2",
)


def test_two_processes_are_as_one_with_averages_and_a_core_of_ones_own(folder, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.path.dirname(__file__))
    other = tuple(word for word in OTHER_OPTIONS if "model.core." not in word)
    run(folder, TOGETHER, *other, "--out=other-two")
    run(folder, ALONE, *other, "--out=other-one")
    two, one = records(folder / "other-two"), records(folder / "other-one")
    assert [record["step"] for record in two] == [record["step"] for record in one] == [5, 5, 10, 10]
    for found, expected in zip(two, one, strict=True):
        kind = "train" if "train" in found else "valid"
        assert found[kind] == pytest.approx(expected[kind], rel=1e-5)
        assert "perplexity" in found[kind] and ("meta_loss" in found[kind]) == (kind == "train")
    (found, two), (expected, one) = (
        checkpoint.load(folder / name / "last.safetensors") for name in ("other-two", "other-one")
    )
    assert two["optimization"] == one["optimization"] and two["cursor"] == one["cursor"]
    assert found.keys() == expected.keys() and any(name.startswith("average/") for name in found)
    for name in expected:
        if name != "random/torch":
            assert_near(found[name], expected[name], name, tolerance=1e-3)


def test_killed_and_resumed_is_as_if_nothing_had_happened(folder):
    process = start(folder, TOGETHER, *TINY, "--out=killed")
    deadline = time.monotonic() + 120
    while not (folder / "killed" / "last.safetensors").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(int((folder / "killed" / "lock").read_text()), signal.SIGKILL)  # torchrun ends the other
    process.communicate(timeout=120)
    assert process.returncode
    assert not any(record["step"] == 100 for record in records(folder / "killed")), "it had ended already"
    run(folder, TOGETHER, "--resume", "--out=killed")
    for name in ("metrics.jsonl", "last.safetensors", "best.safetensors"):
        assert (folder / "killed" / name).read_bytes() == (folder / "two" / name).read_bytes(), name


def test_one_process_goes_on_where_two_stopped(folder, capsys, monkeypatch):
    process = start(folder, TOGETHER, *TINY, "--out=stopped")
    deadline = time.monotonic() + 120
    while not (folder / "stopped" / "last.safetensors").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGTERM)  # a polite kill: both stop after the same step and save
    process.communicate(timeout=120)
    monkeypatch.chdir(folder)
    assert cli.main(["train", "--resume", "--out=stopped"]) == 0
    assert "saved with processes 2, resumed with 1" in capsys.readouterr().out
    losses = [record["valid"]["loss"] for record in records(folder / "stopped") if "valid" in record]
    expected = [record["valid"]["loss"] for record in records(folder / "one") if "valid" in record]
    assert losses == pytest.approx(expected, rel=1e-5)


LEAVES = """
import os
import time
from pathlib import Path

import torch
from torch.nn.parallel import DistributedDataParallel

from fastweights import distributed

def threads():
    return [task for task in os.listdir("/proc/self/task") if "gloo" in name(task)]

def name(task):
    try:
        return Path("/proc/self/task", task, "comm").read_text()
    except (FileNotFoundError, ProcessLookupError):  # it ended since it was listed
        return ""

with distributed.join() as group:
    model = DistributedDataParallel(torch.nn.Linear(3, 2))
    model(torch.ones(4, 3)).sum().backward()
    group.barrier()
    during = threads()
    del model
patience = time.monotonic() + 10  # the kernel lists a thread for a moment after it was joined
while threads() and time.monotonic() < patience:
    time.sleep(0.01)
Path(f"threads-{os.environ['RANK']}").write_text(f"{len(during)} while it lasts, {len(threads())} after")
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="counts threads by Linux's /proc")
def test_no_thread_of_the_group_outlives_it(folder):
    """One that did, and still held a tensor while Python was ending, aborted a training that had succeeded."""
    (folder / "leaves.py").write_text(LEAVES)
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "leaves.py")
    run(folder, launcher)
    for rank in range(2):
        assert re.fullmatch("[1-9][0-9]* while it lasts, 0 after", (folder / f"threads-{rank}").read_text())


def test_rows_are_shared_out_evenly_or_refused():
    shards = [Group(rank, 4).shard(32) for rank in range(4)]
    assert [row for shard in shards for row in range(32)[shard]] == list(range(32))
    with pytest.raises(UserError, match="A batch of 30 cannot be divided evenly among 4 processes"):
        Group(1, 4).shard(30)


def test_a_device_that_is_not_there_is_named(capsys):
    if torch.cuda.is_available():
        pytest.skip("this machine has one")
    assert cli.main(["train", *TINY, "--device=cuda"]) == 2
    assert "--device cuda needs CUDA device 0, and torch sees 0" in capsys.readouterr().err
    assert cli.main(["train", *TINY, "--device=abacus"]) == 2
    assert '--device is "abacus"' in capsys.readouterr().err


JOINED = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"WORLD_SIZE": "abc"}, "WORLD_SIZE is abc; it must be a number from 1"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is 0"),
        ({"WORLD_SIZE": "1", "RANK": "3"}, "RANK is 3; it must be a number from 0 to 0"),
        ({"RANK": "2"}, "RANK is 2; it must be a number from 0 to 1"),
        ({"RANK": None}, "RANK is not set"),
        ({"LOCAL_RANK": "-1"}, "LOCAL_RANK is -1"),
        ({"MASTER_PORT": "99999"}, "MASTER_PORT is 99999; it must be a number from 1 to 65535"),
        ({"MASTER_PORT": None}, "MASTER_PORT is not set"),
        ({"MASTER_ADDR": "a.invalid"}, 'MASTER_ADDR is "a.invalid", which is no machine that answers here'),
        ({"MASTER_ADDR": None}, 'MASTER_ADDR is ""'),
    ],
)
def test_an_odd_environment_of_torchrun_is_one_sentence(monkeypatch, capsys, tmp_path, changed, message):
    for name, value in (JOINED | changed).items():
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    assert cli.main(["train", *TINY, f"--out={tmp_path / 'run'}"]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"fastweights: {message}") and printed.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_port_in_use_is_one_sentence(monkeypatch, capsys):
    with socket.create_server(("127.0.0.1", 0)) as other:
        for name, value in (JOINED | {"MASTER_PORT": str(other.getsockname()[1])}).items():
            monkeypatch.setenv(name, value)
        assert cli.main(["train", *TINY]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("fastweights: The group of 2 processes cannot be joined (The server socket has failed")
    assert printed.count("\n") == 1


def test_the_end_of_another_process_is_one_sentence(monkeypatch):
    def lost(*_):
        raise RuntimeError("[/gloo/transport/tcp/pair.cc:547] Connection closed by peer")

    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *_, **__: None)
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: None)
    for name, value in JOINED.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="Another process of the group has ended"), distributed.join() as group:
        monkeypatch.setattr(torch.distributed, "all_reduce", lost)
        group.all_reduce_sum(1.0)
    with pytest.raises(RuntimeError, match="a fault of our own"), distributed.join():
        raise RuntimeError("a fault of our own")
