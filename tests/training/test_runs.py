import errno
import json
import os
import signal
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastweights.errors import UserError
from fastweights.training.runs import RunFolder

posix_only = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals and limits")

HOLD = """
import sys
from fastweights.training.runs import RunFolder
with RunFolder.open(sys.argv[1]):
    print("locked", flush=True)
    sys.stdin.readline()
"""


def start(code: str, *arguments: object) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.fixture
def run(tmp_path):
    with RunFolder.create(tmp_path / "run", {"seed": 1}) as run:
        yield run


def test_create_writes_the_configuration_in_its_order(tmp_path):
    config = {"model": {"name": "fwm", "rate": 1e-5}, "batch": 32, "a": None, "title": "é: 1"}
    with RunFolder.create(tmp_path / "runs" / "first", config) as run:
        assert run.config == tmp_path / "runs" / "first" / "config.yaml"
        assert run.config.read_text(encoding="utf-8").startswith("model:\n  name: fwm\n")
    again = RunFolder.open(tmp_path / "runs" / "first").read_config()
    assert again == config
    assert list(again) == list(config)


def test_the_paths_of_a_run(run):
    names = [path.name for path in (run.best, run.last, run.metrics, run.timing, run.config)]
    assert names == ["best.safetensors", "last.safetensors", "metrics.jsonl", "timing.jsonl", "config.yaml"]
    assert {path.parent for path in (run.best, run.last, run.metrics, run.timing, run.config)} == {run.path}


@pytest.mark.parametrize("name", ["config.yaml", "last.safetensors", "best.safetensors", "metrics.jsonl"])
def test_create_refuses_a_folder_that_holds_a_run(tmp_path, name):
    (tmp_path / name).write_text("kept")
    with pytest.raises(UserError) as caught:
        RunFolder.create(tmp_path, {})
    assert str(caught.value) == (
        f"{tmp_path} already holds a run ({name}); continue it with --resume or choose another --out"
    )
    assert (tmp_path / name).read_text() == "kept"
    assert os.listdir(tmp_path) == [name]


def test_create_takes_a_folder_that_holds_other_files(tmp_path):
    (tmp_path / "notes.txt").write_text("kept")
    with RunFolder.create(tmp_path, {"seed": 2}) as run:
        assert run.read_config() == {"seed": 2}


def test_create_under_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UserError, match=r"cannot write .*file"):
            RunFolder.create(path, {})


def test_create_lets_go_of_the_lock_when_it_fails(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:

        def fail(*_):
            raise OSError(errno.ENOSPC, "No space left on device")

        patch.setattr(os, "replace", fail)
        with pytest.raises(UserError, match="free some space"):
            RunFolder.create(tmp_path, {})
    with RunFolder.create(tmp_path, {"seed": 3}) as run:
        assert run.read_config() == {"seed": 3}


def test_of_two_that_create_the_same_run_at_once_one_is_refused(tmp_path, monkeypatch):
    lock = RunFolder.lock

    def lock_too_late(run):
        monkeypatch.setattr(RunFolder, "lock", lock)
        RunFolder.create(tmp_path, {"seed": "the other's"}).unlock()
        run.lock()

    monkeypatch.setattr(RunFolder, "lock", lock_too_late)
    with pytest.raises(UserError, match="already holds a run"):
        RunFolder.create(tmp_path, {"seed": "mine"})
    with RunFolder.open(tmp_path) as run:
        assert run.read_config() == {"seed": "the other's"}


@pytest.mark.parametrize("name", ["missing", "."])
def test_open_refuses_a_folder_without_a_run(tmp_path, name):
    with pytest.raises(UserError, match=r"holds no run \(no config.yaml\); check the path"):
        RunFolder.open(tmp_path / name)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("content", [b"", b"- 1", b"a: [", b"\xff\xfe\x00", b"!!python/object/apply:os.abort []"])
def test_a_broken_configuration_is_refused(run, content):
    run.config.write_bytes(content)
    with pytest.raises(UserError, match=r"config.yaml.*; mend it or choose another run") as caught:
        run.read_config()
    assert "\n" not in str(caught.value)


def test_a_run_in_use_by_another_process_is_refused_with_its_number(tmp_path):
    RunFolder.create(tmp_path, {}).unlock()
    process = start(HOLD, tmp_path)
    assert process.stdout.readline() == "locked\n"
    reader = RunFolder.open(tmp_path)
    assert reader.records() == []
    with pytest.raises(UserError) as caught, reader:
        pass
    assert str(caught.value) == (
        f"{tmp_path} is in use by process {process.pid}; wait for it to end or choose another --out"
    )
    with pytest.raises(RuntimeError, match="is not locked"):
        reader.record({"step": 1})
    process.communicate("\n")
    assert process.returncode == 0
    with reader:
        reader.record({"step": 1})


@posix_only
def test_a_killed_process_leaves_no_lock(tmp_path):
    RunFolder.create(tmp_path, {}).unlock()
    process = start(HOLD, tmp_path)
    assert process.stdout.readline() == "locked\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with RunFolder.open(tmp_path) as run:
        run.record({"step": 1})


def test_a_run_is_locked_against_this_process_too(run):
    with pytest.raises(UserError, match=f"is in use by process {os.getpid()};"), RunFolder.open(run.path):
        pass
    run.lock()
    run.unlock()
    run.unlock()
    with RunFolder.open(run.path):
        pass


@posix_only
def test_unlocking_frees_the_run_though_a_forked_process_lives_on(tmp_path):
    code = """
import os, signal, sys, time
from fastweights.training.runs import RunFolder
with RunFolder.create(sys.argv[1], {}):
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
with RunFolder.open(sys.argv[1]):
    print("locked again", flush=True)
os.kill(child, signal.SIGKILL)
os.waitpid(child, 0)
"""
    assert start(code, tmp_path).communicate()[0] == "locked again\n"


def test_metrics_and_timings_are_recorded_apart(run):
    run.record({"step": 1, "loss": 0.1}, timing={"seconds": 3.5})
    run.record({"step": 2, "loss": 0.2})
    assert run.metrics.read_bytes() == b'{"step": 1, "loss": 0.1}\n{"step": 2, "loss": 0.2}\n'
    assert run.timing.read_bytes() == b'{"step": 1, "seconds": 3.5}\n'
    assert run.records() == [{"step": 1, "loss": 0.1}, {"step": 2, "loss": 0.2}]
    assert run.timings() == [{"step": 1, "seconds": 3.5}]


def test_numbers_that_json_does_not_know_become_null(run):
    infinity = float("inf")
    run.record({"step": 1, "loss": float("nan"), "tasks": {"one": [infinity, 1.0], "two": (-infinity,)}})
    assert run.metrics.read_text() == '{"step": 1, "loss": null, "tasks": {"one": [null, 1.0], "two": [null]}}\n'


@pytest.mark.parametrize("metrics", [{}, {"step": None}, {"step": 1.0}, {"loss": 1.0}])
def test_a_record_needs_a_step(run, metrics):
    with pytest.raises(ValueError, match="step"):
        run.record(metrics)
    assert not run.metrics.exists()


def test_what_is_no_json_is_not_recorded(run):
    with pytest.raises(TypeError):
        run.record({"step": 1}, timing={"seconds": object()})
    assert not run.metrics.exists()


@settings(max_examples=50, deadline=None)  # a slow disk is no failure
@given(losses=st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=5))
def test_losses_come_back_exactly(tmp_path_factory, losses):
    with RunFolder.create(tmp_path_factory.mktemp("run"), {}) as run:
        for step, loss in enumerate(losses):
            run.record({"step": step, "loss": loss})
        assert repr([record["loss"] for record in run.records()]) == repr(losses)


@pytest.mark.parametrize("killed_after", range(8))
@pytest.mark.parametrize("torn", [b"", b"{", b'{"step": 99, "lo', b'{"step": 99}', b"\xc3", b"{\r"])
def test_a_killed_and_resumed_run_leaves_the_same_metrics(tmp_path, killed_after, torn):
    def record(run, step):
        run.record({"step": step, "loss": 1 / (step + 1)}, timing={"seconds": 0.5})
        run.record({"step": step, "accuracy": step / 9})

    with RunFolder.create(tmp_path / "whole", {}) as whole:
        for step in range(9):
            record(whole, step)

    checkpoint = killed_after - killed_after % 3
    with RunFolder.create(tmp_path / "killed", {}) as killed:
        for step in range(killed_after):
            record(killed, step)
    with open(killed.metrics, "ab") as file:
        file.write(torn)
    if killed_after:
        with open(killed.timing, "ab") as file:
            file.write(torn)

    with RunFolder.open(tmp_path / "killed") as resumed:
        assert len(resumed.records()) == 2 * killed_after
        resumed.truncate_records(checkpoint - 1)
        assert len(resumed.records()) == 2 * checkpoint
        for step in range(checkpoint, 9):
            record(resumed, step)
    assert killed.metrics.read_bytes() == whole.metrics.read_bytes()
    assert killed.timing.read_bytes() == whole.timing.read_bytes()


def test_a_failed_truncation_leaves_the_records(run, monkeypatch):
    run.record({"step": 1})
    run.record({"step": 2})

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(UserError, match=r"cannot write .*metrics.jsonl \(No space left on device\)"):
            run.truncate_records(1)
    assert run.records() == [{"step": 1}, {"step": 2}]


def test_truncating_what_was_never_recorded_does_nothing(run):
    run.truncate_records(5)
    assert not run.metrics.exists()
    assert run.records() == run.timings() == []


@pytest.mark.parametrize("line", ["", "[]", "{", "null", '{"loss": 1}', '{"step": "1"}', "\x00"])
def test_a_broken_line_amid_the_records_is_named(run, line):
    run.metrics.write_text('{"step": 1}\n' + line + '\n{"step": 2}\n')
    for read in (run.records, lambda: run.truncate_records(1)):
        with pytest.raises(UserError, match=r"line 2 of .*metrics.jsonl is not a record; remove it"):
            read()


@posix_only
def test_a_record_that_does_not_fit_is_refused_and_leaves_whole_lines(tmp_path):
    code = """
import json, resource, sys
from fastweights.errors import UserError
from fastweights.training.runs import RunFolder
with RunFolder.create(sys.argv[1], {}) as run:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    try:
        for step in range(1000):
            run.record({"step": step, "loss": 0.123456789})
    except UserError as error:
        print(json.dumps([step, str(error)]))
"""
    process = start(code, tmp_path)
    step, message = json.loads(process.communicate()[0])
    assert process.returncode == 0
    run = RunFolder.open(tmp_path)
    assert message == f"cannot write {run.metrics} (File too large); free some space or choose another folder"
    assert [record["step"] for record in run.records()] == list(range(step))
    assert run.metrics.read_bytes().endswith(b"}\n")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_the_users_to_mend(run):
    run.metrics.symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"metrics.jsonl \(No space left on device\); free some space"):
        run.record({"step": 1})
