"""The doctor: what it reports, and the advice it gives where something is off."""

import copy
import io
import json

import pytest
from rich.console import Console

from fastweights import cli, doctor, machine
from fastweights.ops import fw_lstm, fw_rnn, fwm, lstm, mnm, relative_attention

OPS = {
    "fwm": fwm,
    "lstm": lstm,
    "fw_lstm": fw_lstm,
    "fw_rnn": fw_rnn,
    "mnm": mnm,
    "relative_attention": relative_attention,
}


@pytest.fixture(scope="module")
def found():
    return doctor.report()


def written(report):
    console = Console(width=200, file=io.StringIO())
    console.print(doctor.text(report))
    return console.file.getvalue()


def test_every_backend_is_reported_and_one_is_chosen(found):
    for op, module in OPS.items():
        assert {choice["name"] for choice in found["backends"][op]} == set(module.BACKENDS)
        assert [choice["chosen"] for choice in found["backends"][op]].count(True) == 1
        assert all(choice["reason"] for choice in found["backends"][op])


def test_text_mentions_every_backend_and_version(found):
    text = written(found)
    assert all(choice["name"] in text for choices in found["backends"].values() for choice in choices)
    assert all(version in text for version in found["versions"].values())


def test_kinds(found):
    names = {"python", "fastweights", "torch", "numpy", "safetensors", "pydantic", "filelock", "rich"}
    assert names <= set(found["versions"])
    assert found["processor"]["cores"] >= 1 and found["threads"]["torch"] >= 1
    assert found["memory_gb"] is None or found["memory_gb"] > 0
    assert set(found["devices"]) == {"cuda", "mps"}


def healthy(found):
    report = copy.deepcopy(found)
    report["versions"]["torch"] = "2.13.0+cpu"
    report["processor"].update(cores=4, capability="AVX2", features=["avx2"])
    report["threads"] = {"torch": 4, "OMP_NUM_THREADS": None}
    report["kernels"] = {"available": True, "instruction_set": "avx2", "path": "libkernels.so", "problem": None}
    return report


def test_a_healthy_machine_needs_no_advice(found):
    assert doctor.advice(healthy(found)) == []


@pytest.mark.parametrize(
    ("part", "changes", "word"),
    [
        ("versions", {"torch": "2.3.1"}, "too old"),
        ("threads", {"torch": 8}, "8 threads on 4 cores"),
        ("threads", {"torch": 1, "OMP_NUM_THREADS": "1"}, "OMP_NUM_THREADS=1 holds"),
        ("processor", {"capability": "DEFAULT"}, "AVX2"),
        ("kernels", {"problem": "the compiled kernels are not installed"}, "install a C++ compiler"),
    ],
)
def test_advice(found, part, changes, word):
    report = healthy(found)
    report[part].update(changes)
    (advice,) = doctor.advice(report)
    assert word in advice
    assert advice in written({**report, "advice": [advice]})


def test_an_old_torch_is_reported_without_backends(monkeypatch):
    monkeypatch.setattr(doctor.torch, "__version__", "2.3.1")
    assert doctor.report()["backends"] == {}


def test_nothing_is_known_where_the_system_does_not_tell(monkeypatch):
    monkeypatch.setattr(machine, "read", lambda path: "")
    assert doctor.processor_name()
    assert doctor.report()["processor"]["features"] is None
    assert "unknown" in written(doctor.report())


@pytest.mark.parametrize(("quota", "expected"), [("max 100000", 8), ("150000 100000", 1), ("400000 100000", 4)])
def test_cores_heed_a_containers_share(monkeypatch, quota, expected):
    monkeypatch.setattr(doctor.os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(machine, "read", lambda path: quota if "cgroup" in path else "")
    assert doctor.cores() == expected


def test_command_line(capsys):
    assert cli.main(["doctor", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["backends"]) == set(OPS)
    assert cli.main(["doctor"]) == 0
    assert "plain" in capsys.readouterr().out
