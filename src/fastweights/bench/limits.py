"""What the processor can do at most, and what share of it the libraries reach."""

from __future__ import annotations

from typing import Any

from fastweights.bench.measurements import MATRIX, MEMORY, REGISTER_FLOPS, Work
from fastweights.bench.workers import medians, team_of
from fastweights.ops import cpu
from fastweights.ops.products import has_onednn, library

LABELS = {
    "multiply_adds": "multiply-adds in registers: the limit",
    "mkl": "MKL, a large product",
    "onednn": "oneDNN, a large product",
    "multiply_adds_bfloat16": "multiply-adds in registers, bfloat16",
    "bfloat16": "torch, a large product in bfloat16",
}


def run(threads: int, repeats: int) -> dict[str, Any]:
    """Measure the limit of multiply-adds and of memory, and the rates of large products.

    Returns:
        `gflop_per_s` by name (those of LABELS that can run here), `memory_gb_per_s`, and the limit with its origin.
    """
    names = [name for name in LABELS if _can_run(name)]
    work, rates = Work(), {}
    with team_of(["auto"], threads) as team:
        for name in names:
            operations = REGISTER_FLOPS * threads if name.startswith("multiply_adds") else 2 * MATRIX**3
            rates[name] = operations / medians(team, name, work, repeats)["auto"] / 1e9
        memory = MEMORY / medians(team, "read_memory", work, repeats)["auto"] / 1e9 if cpu.LIBRARY else None
    limit = "multiply_adds" if "multiply_adds" in rates else max(rates, key=lambda name: rates[name])
    return {"gflop_per_s": rates, "memory_gb_per_s": memory, "limit": limit, "products": library()}


def _can_run(name: str) -> bool:
    if name.startswith("multiply_adds"):
        return cpu.LIBRARY is not None and (name == "multiply_adds" or cpu.has_bfloat16())
    if name == "onednn":
        return has_onednn()
    return True


def lines(limits: dict[str, Any]) -> list[tuple[str, str, str]]:
    """For people: a name, a rate and its share of the limit."""
    rates = limits["gflop_per_s"]
    most = rates[limits["limit"]]
    found = [(LABELS[name], f"{rate:,.0f} GFLOP/s", f"{rate / most:.0%} of the limit") for name, rate in rates.items()]
    if limits["memory_gb_per_s"] is not None:
        found.append(("reading memory", f"{limits['memory_gb_per_s']:,.0f} GB/s", ""))
    return found
