"""Speed of the training step, of its parts and of streaming, per backend, as ratios to a step-by-step loop."""

from __future__ import annotations

from typing import Any

from rich.console import Console, RenderableType

from fastweights.bench import limits, measurements
from fastweights.bench.machine import caption, compared_backends, describe
from fastweights.bench.measurements import MODES, SINGLE_CALLS, Work
from fastweights.bench.workers import medians, team_of

STREAM_LENGTH = 3000
RETRIEVAL_BATCH_SIZE = 128
RETRIEVAL = {"fw_lstm_step": "FW-LSTM, retrieval", "fw_rnn_step": "FW-RNN, retrieval"}
PARTS = {"step": "training step", "memory_op": "memory alone", "lstm_op": "LSTM alone"}
STREAMING = {"tokens_per_s": "a given text in one call", "token_by_token_per_s": "one call per token"}


def run(batch_size: int, length: int, repeats: int, console: Console) -> dict[str, Any]:
    """Time the training step, its parts and streaming with every backend.

    Args:
        batch_size: sequences of a batch.
        length: tokens of a sequence.
        repeats: timed runs, of which the median is taken.
        console: where progress is shown.

    Returns:
        The medians, as plain values.

    Raises:
        UserError: where a size is below 1 or a measurement fails.
    """
    machine, chosen = describe(batch_size, length, repeats), measurements.backends()
    backends, threads = compared_backends(*chosen.values()), machine["threads"]
    parts: dict[str, dict[str, Any]] = {part: {} for part in (*PARTS, "stories", "roofline")}
    for mode in MODES:
        work = Work(mode, batch_size, length)
        with team_of(backends, threads) as team:
            for part, label in PARTS.items():
                if part == "lstm_op" and mode != "lm":
                    continue  # the same in both modes
                console.print(f"{label}, {mode} …")
                parts[part][mode] = _compare(medians(team, part, work, repeats))
                if part == "step":
                    parts[part][mode]["memory_gb"] = team.get("auto", team["plain"]).memory_gb
                    parts[part][mode]["reference_memory_gb"] = team["reference"].memory_gb
            one, step = {"plain": team["plain"]}, parts["step"][mode]["auto_s"]
            batch = medians(one, "stories", work, repeats)["plain"]
        parts["stories"][mode] = {"batch_s": batch, "of_a_step": batch / step}
        # beside each mode, since a machine's rate changes from minute to minute
        found = limits.run(threads, repeats)
        flops, rate = measurements.flops(work), found["gflop_per_s"][found["limit"]] * 1e9
        parts["roofline"][mode] = {
            "flops": flops,
            "gflop_per_s": rate / 1e9,
            "limits": found,
            "roofline_s": flops / rate,
            "times_roofline": step / (flops / rate),
        }
    parts["lstm_op"] = parts["lstm_op"]["lm"]
    with team_of(backends, threads) as team:
        for part, label in RETRIEVAL.items():
            console.print(f"training step, {label} …")
            parts[part] = _compare(medians(team, part, Work(batch_size=RETRIEVAL_BATCH_SIZE), repeats))
    with team_of(backends, 1) as team:
        console.print("streaming …")
        work = Work("lm", 1, STREAM_LENGTH)
        single, whole = medians(team, "token_by_token", work, repeats), medians(team, "stream", work, repeats)
    singles = min(SINGLE_CALLS, STREAM_LENGTH)
    stream = {
        "tokens_per_s": STREAM_LENGTH / _auto(whole),
        "token_by_token_per_s": singles / _auto(single),
        "reference_tokens_per_s": STREAM_LENGTH / whole["reference"],
        "reference_token_by_token_per_s": singles / single["reference"],
    }
    return {"machine": machine, "auto_backend": chosen, **parts, "stream": stream}


def table(result: dict[str, Any]) -> RenderableType:
    """A result of `run` for people."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    machine, chosen, stream, roofline = (result[key] for key in ("machine", "auto_backend", "stream", "roofline"))
    ratios = {"plain": "plain_ratio", "auto": "ratio"}
    if "auto" not in compared_backends(*chosen.values()):
        del ratios["plain"]  # they are the same
    times = Table(box=None, pad_edge=False)
    times.add_column(no_wrap=True)
    for heading in ("reference", *ratios, *(f"{backend} is" for backend in ratios), "auto's memory", "auto is"):
        times.add_column(heading, justify="right", no_wrap=True)
    parts: dict[tuple[str, str], str]  # label by part and mode
    parts = {(part, mode): f"{PARTS[part]}, {mode}" for mode in MODES for part in ("step", "memory_op")}
    parts |= {(part, ""): label for part, label in {"lstm_op": PARTS["lstm_op"], **RETRIEVAL}.items()}
    for (part, mode), label in parts.items():
        found = result[part][mode] if mode else result[part]
        memory = found.get("memory_gb")
        times.add_row(
            label,
            *(f"{found[f'{backend}_s'] * 1000:,.1f} ms" for backend in ("reference", *ratios)),
            *(f"{found[ratio]:.1f} × faster" for ratio in ratios.values()),
            "" if memory is None else f"{memory:.2f} GB",
            f"{roofline[mode]['times_roofline']:.2f} × roofline" if part == "step" else "",
        )
    streaming = Table("tokens per second, batch size 1, one thread", box=None, pad_edge=False)
    streaming.add_column("reference", justify="right")
    streaming.add_column("auto", justify="right")
    for key, label in STREAMING.items():
        streaming.add_row(label, f"{stream[f'reference_{key}']:,.0f}", f"{stream[key]:,.0f}")
    kernels = f" (kernels for {machine['kernels']})" if machine["kernels"] else ""
    rates = Table.grid(padding=(0, 2))
    for line in limits.lines(roofline["lm"]["limits"]):
        rates.add_row(*line)
    words = (
        f"{caption(machine, 'sequences', 'tokens')}; "
        f"auto is {chosen['fwm']} for the memory and {chosen['lstm']} for the LSTM{kernels}; "
        f"retrieval: {RETRIEVAL_BATCH_SIZE} sequences of 19 tokens, eight pairs, hidden size 50. "
        f"Generating a batch of stories takes {result['stories']['qa']['batch_s'] * 1000:.1f} ms, "
        f"{result['stories']['qa']['of_a_step']:.1%} of auto's QA step. "
        "Reference: torch.nn.LSTM and a step-by-step memory. Roofline: the step's FLOPs at the limit."
    )
    return Group(times, "", streaming, "", rates, "", Text(words))


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
