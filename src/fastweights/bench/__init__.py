"""How fast the training step, its parts and streaming are, per backend, as ratios to a step-by-step loop."""

from __future__ import annotations

from typing import Any

import torch
from rich.console import Console, RenderableType

from fastweights.bench import measurements
from fastweights.bench.measurements import MATRIX, MODES, SINGLE_CALLS, Work
from fastweights.bench.workers import medians, team_of
from fastweights.doctor import processor_name
from fastweights.errors import UserError
from fastweights.ops import cpu

STREAM_LENGTH = 3000
RETRIEVAL_ROWS = 128
RETRIEVAL = {"fw_lstm_step": "FW-LSTM, retrieval", "fw_rnn_step": "FW-RNN, retrieval"}
PARTS = {"step": "training step", "memory_op": "memory alone", "lstm_op": "LSTM alone"}


def run(rows: int, length: int, repeats: int, console: Console) -> dict[str, Any]:
    """Time the training step, its parts and streaming with every backend, and give medians.

    Raises:
        UserError: where a size makes no sense or a measurement fails.
    """
    for name, value in {"rows": rows, "length": length, "repeats": repeats}.items():
        if value < 1:
            raise UserError(f"--{name} is {value}; it must be at least 1.")
    auto = measurements.backends()
    backends = ["reference", "plain"]
    if set(auto.values()) != {"plain"}:
        backends.append("auto")
    threads = torch.get_num_threads()
    result: dict[str, Any] = {
        "machine": {
            "processor": processor_name(),
            "threads": threads,
            "torch": torch.__version__,
            "kernels": cpu.instruction_set(),
            "rows": rows,
            "length": length,
            "repeats": repeats,
        },
        "auto_backend": auto,
        **{part: {} for part in PARTS},
        "stories": {},
        "floor": {},
    }
    for mode in MODES:
        work = Work(mode, rows, length)
        with team_of(backends, threads) as team:
            for part, label in PARTS.items():
                if part == "lstm_op" and mode != "lm":
                    continue  # the same in both modes
                console.print(f"{label}, {mode} …")
                result[part][mode] = _compare(medians(team, part, work, repeats, warm_up=True))
                if part == "step":
                    result[part][mode]["memory_gb"] = team.get("auto", team["plain"]).memory_gb
                    result[part][mode]["reference_memory_gb"] = team["reference"].memory_gb
            one = {"plain": team["plain"]}
            made = medians(one, "stories", work, repeats, warm_up=True)["plain"]
            result["stories"][mode] = {"batch_s": made, "of_a_step": made / result["step"][mode]["auto_s"]}
            seconds = medians(one, "matrix_product", work, max(repeats, 5), warm_up=True)["plain"]
        rate = 2 * MATRIX**3 / seconds
        floor = measurements.operations(work) / rate
        result["floor"][mode] = {
            "gflops": rate / 1e9,
            "operations": measurements.operations(work),
            "floor_s": floor,
            "times_floor": result["step"][mode]["auto_s"] / floor,
        }
    result["lstm_op"] = result["lstm_op"]["lm"]
    with team_of(backends, threads) as team:
        for part, label in RETRIEVAL.items():
            console.print(f"training step, {label} …")
            result[part] = _compare(medians(team, part, Work(rows=RETRIEVAL_ROWS), repeats, warm_up=True))
    with team_of(backends, 1) as team:
        console.print("streaming …")
        work = Work("lm", 1, STREAM_LENGTH)
        single = medians(team, "token_by_token", work, repeats, warm_up=True)
        whole = medians(team, "stream", work, repeats, warm_up=True)
        singles = min(SINGLE_CALLS, STREAM_LENGTH)
        result["stream"] = {
            "tokens_per_s": STREAM_LENGTH / _auto(whole),
            "token_by_token_per_s": singles / _auto(single),
            "reference_tokens_per_s": STREAM_LENGTH / whole["reference"],
            "reference_token_by_token_per_s": singles / single["reference"],
        }
    return result


def table(result: dict[str, Any]) -> RenderableType:
    """Lay a result out for people."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    machine, chosen, stream = result["machine"], result["auto_backend"], result["stream"]
    measured = {"plain": "plain_ratio", "auto": "ratio"}
    if set(chosen.values()) == {"plain"}:
        del measured["plain"]  # they are the same
    times = Table(box=None, pad_edge=False)
    times.add_column(no_wrap=True)
    headings = (*(f"{backend} is" for backend in measured), "auto's memory", "auto is")
    for heading in ("reference", *measured, *headings):
        times.add_column(heading, justify="right", no_wrap=True)
    lines = [(f"{PARTS[part]}, {mode}", result[part][mode], mode) for mode in MODES for part in ("step", "memory_op")]
    lines += [(PARTS["lstm_op"], result["lstm_op"], None)]
    lines += [(label, result[part], None) for part, label in RETRIEVAL.items()]
    for label, found, mode in lines:
        memory = found.get("memory_gb")
        floor = result["floor"][mode]["times_floor"] if label.startswith(PARTS["step"]) else None
        times.add_row(
            label,
            *(f"{found[f'{backend}_s'] * 1000:,.1f} ms" for backend in ("reference", *measured)),
            *(f"{found[ratio]:.1f} × faster" for ratio in measured.values()),
            "" if memory is None else f"{memory:.2f} GB",
            "" if floor is None else f"{floor:.2f} × the floor",
        )
    streaming = Table("tokens per second, one row, one thread", box=None, pad_edge=False)
    streaming.add_column("reference", justify="right")
    streaming.add_column("auto", justify="right")
    for label, key in (
        ("a given text in one call", "tokens_per_s"),
        ("one call per token", "token_by_token_per_s"),
    ):
        streaming.add_row(label, f"{stream[f'reference_{key}']:,.0f}", f"{stream[key]:,.0f}")
    floor = result["floor"]["lm"]
    kernels = f" (kernels for {machine['kernels']})" if machine["kernels"] else ""
    words = (
        f"{machine['processor']}, {machine['threads']} threads, torch {machine['torch']}; "
        f"{machine['rows']} rows of {machine['length']} tokens, medians of {machine['repeats']}; "
        f"auto is {chosen['fwm']} for the memory and {chosen['lstm']} for the LSTM{kernels}; "
        f"retrieval: {RETRIEVAL_ROWS} sequences of 19 tokens, eight pairs, H 50. "
        f"To generate a batch of stories takes {result['stories']['qa']['batch_s'] * 1000:.1f} ms, "
        f"{result['stories']['qa']['of_a_step']:.1%} of auto's QA step. "
        "The reference is torch.nn.LSTM and a step-by-step memory; the floor is the time of the step's products alone, "
        f"at the rate of large matrix products here and now, {floor['gflops']:,.0f} GFLOP/s."
    )
    return Group(times, "", streaming, "", Text(words))


def _auto(seconds: dict[str, float]) -> float:
    return seconds.get("auto", seconds["plain"])  # where auto is plain, it was measured once


def _compare(seconds: dict[str, float]) -> dict[str, float]:
    reference, plain, auto = seconds["reference"], seconds["plain"], _auto(seconds)
    return {
        "reference_s": reference,
        "plain_s": plain,
        "auto_s": auto,
        "ratio": reference / auto,
        "plain_ratio": reference / plain,
    }
