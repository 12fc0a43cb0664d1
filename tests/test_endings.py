"""How commands end: outputs that cannot be written, signals, a locale of few letters, memory that there is not."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from fastweights import cli
from fastweights.errors import is_out_of_memory, reason
from fastweights.objectives.answers import Answers

TINY = (
    "art/lstm", "--training.steps=4", "--training.evaluate_every=2", "--training.report_every=1",
    "--training.batch_size=2", "--training.eval_batch_size=2", "--task.examples=6", "--task.validation_examples=4",
    "--model.core.hidden_size=8", "--out=run",
)  # fmt: skip
STORY = "1 Mary moved to the bathroom.\n2 Where is Mary? \tbathroom\t1\n"

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals and devices")


def start(folder, *arguments, **options):
    """A command in a process of its own."""
    options.setdefault("env", {**os.environ, "OMP_NUM_THREADS": "1"})
    return subprocess.Popen(
        [sys.executable, "-m", "fastweights", *arguments], cwd=folder, stderr=subprocess.PIPE, text=True, **options
    )


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["recipes", "--json"], ["recipes", "art/lstm"]])
def test_a_full_device_is_one_sentence(tmp_path, arguments):
    with open("/dev/full", "w") as full:
        process = start(tmp_path, *arguments, stdout=full)
        _, errors = process.communicate()
    assert process.returncode == 2
    assert errors == "fastweights: cannot write standard output (No space left on device); redirect it.\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_training_whose_output_cannot_be_written_is_made(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    with open("/dev/full", "w") as full, monkeypatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(sys, "stdout", full)
        cli.main(["train", *TINY])
    assert ended.value.code == 2 and "cannot write standard output" in capfd.readouterr().err
    assert cli.main(["evaluate", "run/last.safetensors"]) == 0


def test_a_training_whose_reader_has_gone_is_made(tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    process = start(tmp_path, "train", *TINY, stdout=writing)
    os.close(writing)
    assert process.communicate()[1] == "" and process.returncode == 0
    assert (tmp_path / "run" / "last.safetensors").exists()


@pytest.mark.parametrize("arguments", [["train", *TINY], ["--help"], ["data", "stats", "störies"]])
def test_a_locale_of_few_letters(tmp_path, arguments):
    few = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "OMP_NUM_THREADS": "1"}
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONIOENCODING"}
    (tmp_path / "störies").mkdir()
    (tmp_path / "störies" / "qa1_train.txt").write_text(STORY)
    process = start(tmp_path, *arguments, stdout=subprocess.PIPE, env={**kept, **few})
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert output.isascii() and errors == ""


def test_letters_that_the_output_does_not_have_are_replaced(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", *TINY]) == 0
    capfd.readouterr()
    with open(1, "w", encoding="ascii", closefd=False) as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert cli.main(["evaluate", "run"]) == 0
        print("█", "é", file=stream)
    assert capfd.readouterr().out.endswith("? ?\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_the_loop_leaves_nothing(tmp_path, number):
    (tmp_path / "slow.py").write_text(
        "import time\n"
        "from fastweights.tasks import Retrieval\n"
        "class Slow(Retrieval):\n"
        "    def prepare(self, data):\n"
        "        open('begun', 'w').close()\n"
        "        time.sleep(60)\n"
    )
    process = start(tmp_path, "train", *TINY, "--task.type=slow.py:Slow", stdout=subprocess.PIPE)
    while not (tmp_path / "begun").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(number)
    _, errors = process.communicate()
    assert (process.returncode, errors) == (128 + number, "")
    assert not (tmp_path / "run").exists()


def test_a_signal_during_an_evaluation_is_no_traceback(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", *TINY]) == 0
    monkeypatch.setattr(Answers, "evaluate", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        cli.main(["evaluate", "run"])
    assert ended.value.code == 143 and capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "error",
    [
        lambda: torch.empty(2**60),
        lambda: torch.empty(2**60, 2**60),
        lambda: bytearray(2**62),
        lambda: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")),
    ],
    ids=["torch", "torch, beyond all numbers", "Python", "CUDA"],
)
def test_memory_that_there_is_not_is_one_sentence(tmp_path, monkeypatch, capsys, error):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Answers, "step", lambda *_: next(error()))
    assert cli.main(["train", *TINY]) == 2
    message = capsys.readouterr().err
    assert (
        message.startswith("fastweights: There is not enough memory; make the batch size") and message.count("\n") == 1
    )
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", *TINY]) == 0  # a smaller one finds no run in its folder


@pytest.mark.parametrize("arguments", [["report", "a\nb"], ["doctor", "a\nb"], ["train", "art/lstm", "--threads=a\nb"]])
def test_a_line_feed_in_an_argument_does_not_break_the_sentence(arguments, capsys):
    with contextlib.suppress(SystemExit):
        assert cli.main(arguments) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("fastweights: ") and printed.count("\n") == 1


def test_another_fault_is_no_lack_of_memory():
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_reasons_have_no_frames_of_other_languages():
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**60)
    assert reason(raised.value).startswith("DefaultCPUAllocator: can't allocate memory: you tried to allocate")
    text = "The socket failed. port: 1\nException raised from listen at socket.cpp:5 (most recent call first):\nframe"
    assert reason(RuntimeError(text)) == "The socket failed. port: 1"
