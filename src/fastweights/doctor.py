"""What this machine can run, what would be chosen, and why."""

from __future__ import annotations

import os
import platform
import re
from importlib import metadata
from typing import Any

import torch
from rich.console import RenderableType

from fastweights import machine

OLDEST_TORCH = (2, 4)  # the first with torch.library.custom_op
PACKAGES = ("fastweights", "torch", "numpy", "safetensors", "pydantic", "filelock", "rich")
FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16")


def report() -> dict[str, Any]:
    """Describe this machine: versions, processor, threads, memory, devices, backends per op, and advice."""
    found = {
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "platform": platform.platform(),
        "processor": {
            "name": processor_name(),
            "cores": cores(),
            "capability": torch.backends.cpu.get_cpu_capability(),
            "features": _features(),
        },
        "threads": {"torch": torch.get_num_threads(), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS")},
        "memory_gb": None if (memory := machine.memory()) is None else memory / 1e9,
        "devices": {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()},
        "kernels": _kernels(),
        "backends": _backends(),
        "products": _products(),
    }
    return {**found, "advice": advice(found)}


def advice(found: dict[str, Any]) -> list[str]:
    """Say in words what is off in a report, and what to do about it."""
    words = []
    version = found["versions"]["torch"]
    if _is_old(version):
        oldest = ".".join(map(str, OLDEST_TORCH))
        words.append(f"torch {version} is too old, fastweights needs {oldest} or later: pip install -U torch")
    threads, available = found["threads"]["torch"], found["processor"]["cores"]
    setting = found["threads"]["OMP_NUM_THREADS"]
    if threads > available:
        words.append(
            f"torch uses {threads} threads on {available} cores, which get in each other's way: "
            f"set OMP_NUM_THREADS={available} or give --threads {available}"
        )
    elif setting is not None and threads < available:
        words.append(
            f"OMP_NUM_THREADS={setting} holds torch to {threads} of {available} cores: "
            "unset it, unless something else is to use the others"
        )
    if found["kernels"]["problem"]:
        words.append(
            f"{found['kernels']['problem']}, and plain torch does their work at half the speed: install a C++ compiler "
            "with OpenMP (on Debian: apt install g++) and then fastweights again"
        )
    features = found["processor"]["features"]
    if features and "avx2" in features and not found["processor"]["capability"].startswith("AVX"):
        words.append("torch does not use this processor's AVX2: unset ATEN_CPU_CAPABILITY")
    return words


def text(found: dict[str, Any]) -> RenderableType:
    """Lay a report out for people."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    processor, threads, memory = found["processor"], found["threads"], found["memory_gb"]
    features = processor["features"]
    setting = threads["OMP_NUM_THREADS"]
    lines = {
        "versions": ", ".join(f"{name} {version or 'missing'}" for name, version in found["versions"].items()),
        "platform": found["platform"],
        "processor": f"{processor['name']}, {processor['cores']} cores",
        "features": "unknown" if features is None else ", ".join(features) or "none that matter",
        "torch uses": processor["capability"],
        "kernels use": found["kernels"]["instruction_set"] or "not installed",
        "products": found["products"] or "unknown",
        "threads": f"{threads['torch']} (OMP_NUM_THREADS {'not set' if setting is None else setting})",
        "memory": "unknown" if memory is None else f"{memory:.1f} GB",
        "devices": ", ".join(["cpu", *(name for name, available in found["devices"].items() if available)]),
    }
    facts = Table.grid(padding=(0, 2))
    for name, line in lines.items():
        facts.add_row(name, Text(line))
    backends = Table("op", "backend", "auto", "what it is", box=None, pad_edge=False)
    for op, choices in found["backends"].items():
        for choice in choices:
            mark = "chosen" if choice["chosen"] else ""
            mark = mark if choice["available"] else "cannot run"
            backends.add_row(op, choice["name"], mark, Text(choice["reason"]))
    words = [Text(f"Advice: {line}.") for line in found["advice"]] or [Text("Nothing is amiss.")]
    return Group(facts, "", backends, "", *words)


def processor_name() -> str:
    """The processor's name, as far as the system tells it."""
    match = re.search(r"^model name\s*:\s*(.+)$", machine.read("/proc/cpuinfo"), re.MULTILINE)
    return match[1].strip() if match else platform.processor() or platform.machine() or "unknown"


def cores() -> int:
    """The number of cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    count = len(affinity(0)) if affinity else os.cpu_count() or 1
    quota = re.match(r"(\d+) (\d+)", machine.read("/sys/fs/cgroup/cpu.max"))  # a container's share
    return max(1, min(count, int(quota[1]) // int(quota[2]))) if quota else count


def _features() -> list[str] | None:
    """Those of FEATURES that the processor has, or None where the system does not tell."""
    match = re.search(r"^flags\s*:\s*(.+)$", machine.read("/proc/cpuinfo"), re.MULTILINE)
    return [name for name in FEATURES if name in match[1].split()] if match else None


def _kernels() -> dict[str, Any]:
    """Whether the compiled kernels are there, the instruction set that they use, and where the library lies."""
    if _is_old(torch.__version__):
        return {"available": False, "instruction_set": None, "path": None, "problem": "torch is too old"}
    from fastweights.ops import cpu

    return {
        "available": cpu.PROBLEM is None,
        "instruction_set": cpu.instruction_set(),
        "path": cpu.LIBRARY and cpu.LIBRARY._name,
        "problem": cpu.PROBLEM,
    }


def _backends() -> dict[str, list[dict[str, Any]]]:
    if _is_old(torch.__version__):
        return {}  # the ops cannot even be imported
    from fastweights.ops import fw_lstm, fw_rnn, fwm, lstm, mnm, relative_attention
    from fastweights.ops.backends import explain

    ops = {
        "fwm": fwm,
        "lstm": lstm,
        "fw_lstm": fw_lstm,
        "fw_rnn": fw_rnn,
        "mnm": mnm,
        "relative_attention": relative_attention,
    }
    return {name: explain(name, op.BACKENDS) for name, op in ops.items()}


def _products() -> str | None:
    """The library that multiplies large matrices."""
    if _is_old(torch.__version__):
        return None
    from fastweights.ops.products import library

    return library()


def _is_old(torch_version: str | None) -> bool:
    numbers = re.match(r"(\d+)\.(\d+)", torch_version or "")
    return numbers is not None and (int(numbers[1]), int(numbers[2])) < OLDEST_TORCH


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
