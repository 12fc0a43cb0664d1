"""Speed of a training step of any core, as its catbAbI recipe has it: beside its reference and its roofline."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from rich.console import Console, RenderableType
from torch.utils.flop_counter import FlopCounterMode

from fastweights import recipes
from fastweights.bench import limits
from fastweights.bench.machine import caption, describe
from fastweights.bench.measurements import QUESTIONS, Work
from fastweights.bench.workers import medians, team_of
from fastweights.cores import map_state
from fastweights.models import Model
from fastweights.ops.products import has_onednn

FLOAT32 = 4  # bytes
REFERENCE_KEEPS = 1 << 29  # bytes for the gradient, of which a reference keeps several times as many as the estimate
LABELS = {"reference": "step by step, as in the paper", "auto": "the fastest backend"}


def run(name: str, batch_size: int | None, length: int | None, repeats: int, console: Console) -> dict[str, Any]:
    """Time a training step of the recipe `catbabi-qa/{name}`.

    Args:
        name: of the recipe.
        batch_size: sequences of a batch; None for the recipe's.
        length: tokens of a sequence; None for the recipe's.
        repeats: timed runs, of which the median is taken.
        console: where progress is shown.

    Returns:
        Medians, operations and roofline, as plain values.

    Raises:
        UserError: where there is no such recipe, a size is below 1 or a measurement fails.
    """
    recipe = recipes.load(f"catbabi-qa/{name}")
    batch_size = recipe.training.batch_size if batch_size is None else batch_size
    work = Work("qa", batch_size, 200 if length is None else length, recipe=f"catbabi-qa/{name}")
    machine = describe(work.batch_size, work.length, repeats)
    console.print(f"operations of a training step, {work.recipe} …")
    with torch.random.fork_rng(devices=[]):
        model = recipes.assemble(recipes.load(work.recipe, ["--model.core.backend=reference"])).model
    operations = _flops(model, work)
    weights, state = recipes.model_size(model)
    core = model.core
    of_a_row = FLOAT32 * (core.kept_elements(work.length) + state)
    works = {"reference": work._replace(batch_size=min(work.batch_size, max(1, REFERENCE_KEEPS // of_a_row)))}
    works["auto"] = work
    seconds: dict[str, float] = {}
    memory: dict[str, float | None] = {}
    for backend, its_work in works.items():
        console.print(f"training step, {work.recipe}, {LABELS[backend]}, {its_work.batch_size} sequences …")
        with team_of([backend], machine["threads"]) as team:
            seconds |= medians(team, "step", its_work, repeats)
            memory[backend] = team[backend].memory_gb
    rows = {backend: its_work.batch_size for backend, its_work in works.items()}
    found = limits.run(machine["threads"], repeats)
    rate = found["gflop_per_s"][found["limit"]] * 1e9
    return {
        "machine": machine,
        "recipe": work.recipe,
        "weights": weights,
        "state": state,
        "seconds": seconds,
        "sequences": rows,
        "ratio": seconds["reference"] / rows["reference"] / (seconds["auto"] / rows["auto"]),
        "memory_gb": memory,
        "flops": operations,
        "limits": found,
        "roofline_s": operations / rate,
        "times_roofline": seconds["auto"] / (operations / rate),
    }


def _flops(model: Model, work: Work) -> float:
    """The floating point operations of a training step's matrix products, as its reference has them.

    They are counted at batch sizes 2 and 3 and grow linearly: what is done once for all rows, and what for each.
    """
    of_two, of_three = (_count(model, rows, work.length) for rows in (2, 3))
    return of_two + (work.batch_size - 2) * (of_three - of_two)


def _count(model: Model, rows: int, length: int) -> float:
    tokens, mask = torch.zeros(rows, length, dtype=torch.int64), torch.zeros(rows, length, dtype=torch.bool)
    mask[:, : max(1, round(QUESTIONS * length))] = True
    _, state = model(tokens[:, :1])
    # oneDNN's product has no public name, and no formula
    known = {torch.ops.mkldnn._linear_pointwise: _flops_of_linear} if has_onednn() else {}
    with FlopCounterMode(display=False, custom_mapping=known) as counter:
        logits, _ = model(tokens, map_state(torch.Tensor.detach, state), output_mask=mask)
        logits.sum().backward()
    return counter.get_total_flops()


def _flops_of_linear(x: Sequence[int], weight: Sequence[int], *others: Any, **options: Any) -> int:
    return 2 * math.prod(x) * weight[0]


def table(result: dict[str, Any]) -> RenderableType:
    """A result of `run` for people."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    times = Table(f"training step, {result['recipe']}", "", "", "", box=None, pad_edge=False)
    remarks = {"auto": f"{result['ratio']:.1f} × faster, {result['times_roofline']:.2f} × roofline"}
    for name, seconds in result["seconds"].items():
        memory = result["memory_gb"][name]
        used = "" if memory is None else f"{memory:.2f} GB"
        fewer = f"{rows} sequences" if (rows := result["sequences"][name]) < result["machine"]["batch_size"] else ""
        times.add_row(LABELS[name], f"{seconds * 1000:,.1f} ms", used, remarks.get(name, fewer))
    times.add_row("roofline", f"{result['roofline_s'] * 1000:,.1f} ms", "", f"{result['flops'] / 1e9:,.1f} GFLOP")
    rates = Table.grid(padding=(0, 2))
    for line in limits.lines(result["limits"]):
        rates.add_row(*line)
    words = (
        f"{caption(result['machine'], 'sequences', 'tokens')}; {result['weights']:,} weights, a state of "
        f"{result['state']:,}. Roofline: the FLOPs of the reference's matrix products at the limit."
    )
    return Group(times, "", rates, "", Text(words))
