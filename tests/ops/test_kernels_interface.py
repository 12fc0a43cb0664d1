"""The compiled library: taken only where it agrees with the Python side; no kernel runs at a size it does not have."""

import ctypes
from pathlib import Path

import pytest

from fastweights.ops import cpu

OTHER_VERSION = [cpu.VERSION - 1, *cpu.INTERFACE[1:]]
OTHER_STRUCTURES = [*cpu.INTERFACE[:-1], cpu.INTERFACE[-1] + 8]


class StandIn:
    """A library that says what its interface is, and can do nothing else."""

    def __init__(self, interface: list[int]):
        self.interface = interface

    def fastweights_interface(self, values) -> int:
        values[: len(self.interface)] = self.interface
        return len(self.interface)


@pytest.fixture
def libraries(monkeypatch):
    """Stand-ins by the path that they are loaded from."""
    found = {}

    def load(path: str):
        if isinstance(found[path], Exception):
            raise found[path]
        return found[path]

    monkeypatch.setattr(ctypes, "CDLL", load)
    return found


@pytest.mark.parametrize("interface", [OTHER_VERSION, OTHER_STRUCTURES, cpu.INTERFACE[:-1], []], ids=str)
def test_a_library_of_another_version_is_not_used(libraries, interface):
    libraries["one.so"] = StandIn(interface)
    library, problem = cpu._load([Path("one.so")])
    assert library is None
    assert problem == "the compiled kernels are of another version than the Python code; install fastweights again"


def test_a_library_from_before_there_were_versions_is_not_used(libraries):
    libraries["one.so"] = object()
    library, problem = cpu._load([Path("one.so")])
    assert library is None and "install fastweights again" in problem


@pytest.mark.parametrize("other", [StandIn(OTHER_VERSION), object(), OSError("no such architecture")], ids=str)
@pytest.mark.parametrize("order", [("one.so", "two.so"), ("two.so", "one.so")], ids=str)
def test_of_two_libraries_the_one_that_matches_is_used(libraries, order, other):
    libraries |= {"one.so": other, "two.so": StandIn(cpu.INTERFACE)}
    library, problem = cpu._load([Path(name) for name in order])
    assert library is libraries["two.so"] and problem is None


def test_no_library_and_one_that_does_not_load_are_explained(libraries):
    assert "not installed" in cpu._load([])[1]
    libraries["one.so"] = OSError("no such architecture")
    assert cpu._load([Path("one.so")]) == (None, "the compiled kernels do not load (no such architecture)")


@pytest.mark.skipif(cpu.PROBLEM is not None, reason=str(cpu.PROBLEM))
@pytest.mark.parametrize("instruction_set", range(cpu.best() + 1))
@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        ("fwm_forward", cpu.FWMArguments(B=1, T=1, d=12, hops=1, chunk=16, threads=1)),
        ("fwm_backward", cpu.FWMArguments(B=1, T=1, d=12, hops=1, chunk=16, threads=1)),
        ("fwm_backward", cpu.FWMArguments(B=1, T=1, d=8, hops=cpu.MOST_HOPS + 1, chunk=16, threads=1)),
        ("fwm_step", cpu.FWMStepArguments(B=1, d=12, hops=1, threads=1, count=0, capacity=16)),
    ],
)
def test_a_size_that_a_kernel_does_not_have_is_an_error(monkeypatch, function, arguments, instruction_set):
    monkeypatch.setattr(cpu, "INSTRUCTION_SET", instruction_set)
    with pytest.raises(RuntimeError, match=f"{function} does not support tensors of these sizes"):
        cpu.call(function, arguments)
