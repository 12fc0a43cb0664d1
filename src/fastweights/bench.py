"""Timings of the training step, the memory op and streaming, per backend, as ratios to a step-by-step loop.

Every backend runs in a process of its own, so that one's peak memory is not another's; the processes take
turns, so that a change in the machine's speed meets them all alike.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console, RenderableType
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fastweights.cores import LSTM, Core, FastWeightMemory, map_state
from fastweights.cores.lstm import LSTMState
from fastweights.doctor import processor_name
from fastweights.errors import UserError
from fastweights.models import TokenModel
from fastweights.ops import fwm, lstm
from fastweights.ops.backends import choose

VOCABULARY, HIDDEN, MEMORY, READS = 180, 256, 32, 3  # the paper's catbAbI models
QUESTIONS = 0.04  # the part of catbAbI's tokens that ask
MODES = ("qa", "lm")
STREAM_LENGTH, SINGLE_CALLS = 3000, 300


def run(rows: int, length: int, repeats: int, console: Console) -> dict[str, Any]:
    """Time the training step, the memory op and streaming with every backend, and give medians.

    Raises:
        UserError: where a size makes no sense or a measurement fails.
    """
    for name, value in {"rows": rows, "length": length, "repeats": repeats}.items():
        if value < 1:
            raise UserError(f"--{name} is {value}; it must be at least 1.")
    auto = {"fwm": choose("fwm", fwm.BACKENDS), "lstm": choose("lstm", lstm.BACKENDS)}
    backends = ["reference", "plain"]
    if set(auto.values()) != {"plain"}:
        backends.append("auto")
    threads = torch.get_num_threads()
    result: dict[str, Any] = {
        "machine": {
            "processor": processor_name(),
            "threads": threads,
            "torch": torch.__version__,
            "rows": rows,
            "length": length,
            "repeats": repeats,
        },
        "auto_backend": auto,
        "step": {},
        "memory_op": {},
    }
    for mode in MODES:
        with _workers(backends, mode, rows, length, threads) as workers:
            console.print(f"training step, {mode} …")
            step = result["step"][mode] = _compare(_medians(workers, "step", repeats, warm_up=True))
            step["memory_gb"] = workers.get("auto", workers["plain"]).memory_gb
            step["reference_memory_gb"] = workers["reference"].memory_gb
            console.print(f"memory op, {mode} …")
            result["memory_op"][mode] = _compare(_medians(workers, "memory_op", repeats))
    with _workers(backends, "lm", 1, STREAM_LENGTH, 1) as workers:
        console.print("streaming …")
        single = _medians(workers, "token_by_token", repeats, warm_up=True)
        whole = _medians(workers, "stream", repeats)
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
    for heading in ("reference", *measured, *(f"{backend} is" for backend in measured), "auto's memory"):
        times.add_column(heading, justify="right", no_wrap=True)
    for part, label in (("step", "training step"), ("memory_op", "memory op")):
        for mode, found in result[part].items():
            memory = found.get("memory_gb")
            times.add_row(
                f"{label}, {mode}",
                *(f"{found[f'{backend}_s'] * 1000:,.1f} ms" for backend in ("reference", *measured)),
                *(f"{found[ratio]:.1f} × faster" for ratio in measured.values()),
                "" if memory is None else f"{memory:.2f} GB",
            )
    streaming = Table("tokens per second, one row, one thread", box=None, pad_edge=False)
    streaming.add_column("reference", justify="right")
    streaming.add_column("auto", justify="right")
    for label, key in (
        ("a given text in one call", "tokens_per_s"),
        ("one call per token", "token_by_token_per_s"),
    ):
        streaming.add_row(label, f"{stream[f'reference_{key}']:,.0f}", f"{stream[key]:,.0f}")
    words = (
        f"{machine['processor']}, {machine['threads']} threads, torch {machine['torch']}; "
        f"{machine['rows']} rows of {machine['length']} tokens, medians of {machine['repeats']}; "
        f"auto is {chosen['fwm']} for the memory and {chosen['lstm']} for the LSTM"
    )
    return Group(times, "", streaming, "", Text(words))


class TorchLSTM(Core):
    """`torch.nn.LSTM` as a slow core: what one writes without this library."""

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__()
        self.input_size, self.output_size = input_size, hidden_size
        self.lstm = nn.LSTM(input_size, hidden_size, batch_first=True)

    def initial_state(self, batch_size: int) -> LSTMState:
        zeros = self.lstm.weight_hh_l0.new_zeros(batch_size, self.output_size)
        return LSTMState(zeros, zeros.clone())

    def forward(
        self,
        x: Tensor,
        state: LSTMState | None = None,
        *,
        reads: Tensor | None = None,
        valid: None = None,
        resets: None = None,
        tokens: None = None,
    ) -> tuple[Tensor, LSTMState]:
        """Read x `[B, T, input_size]`; time passes everywhere, and nothing is reset."""
        state = self.initial_state(x.shape[0]) if state is None else state
        y, (hidden, cell) = self.lstm(x, (state.hidden.unsqueeze(0), state.cell.unsqueeze(0)))
        return y, LSTMState(hidden.squeeze(0), cell.squeeze(0))


def _model(backend: str) -> TokenModel:
    """The paper's model with the options of the published code."""
    slow = TorchLSTM(HIDDEN, HIDDEN) if backend == "reference" else LSTM(HIDDEN, HIDDEN, backend=backend)
    core = FastWeightMemory(
        HIDDEN,
        memory_size=MEMORY,
        num_reads=READS,
        slow=slow,
        write_scale=1 / MEMORY,
        tanh_first_query=False,
        residual=False,
        backend=backend,
    )
    return TokenModel(VOCABULARY, core)


def _questions(mode: str, rows: int, length: int) -> Tensor | None:
    if mode == "lm":
        return None
    reads = torch.rand(rows, length) < QUESTIONS
    reads[0, -1] = True  # at least one, however small the batch
    return reads


# What can be measured: each prepares itself and returns what is to be timed, which can be called again.


def _step(mode: str, backend: str, rows: int, length: int) -> Callable[[], None]:
    """A training step: forward, backward, Adam; the state is carried from step to step, from zeros on."""
    model = _model(backend)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    tokens, targets = torch.randint(VOCABULARY, (2, rows, length))
    reads = _questions(mode, rows, length)
    wanted = targets.flatten() if reads is None else targets[reads]
    state = model.core.initial_state(rows)

    def step() -> None:
        nonlocal state
        logits, new_state = model(tokens, state, reads=reads)
        loss = cross_entropy(logits.reshape(-1, VOCABULARY), wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        state = map_state(Tensor.detach, new_state)

    return step


def _memory_op(mode: str, backend: str, rows: int, length: int) -> Callable[[], None]:
    """The memory alone, forward and backward."""
    options = _model(backend).core.options
    k1, k2, v, n = torch.randn(4, rows, length, MEMORY).tanh()
    beta, e = torch.rand(rows, length), torch.randn(rows, length, READS, MEMORY)
    inputs = [x.requires_grad_() for x in (k1, k2, v, beta, n, e)]
    gradient = torch.randn_like(v)
    reads = _questions(mode, rows, length)

    def memory_op() -> None:
        y, _ = fwm.fast_weight_memory(*inputs, reads=reads, **options)
        torch.autograd.grad(y, inputs, gradient)

    return memory_op


def _stream(mode: str, backend: str, rows: int, length: int) -> Callable[[], None]:
    """Score a given text in one call."""
    model = _model(backend).eval()
    tokens = torch.randint(VOCABULARY, (rows, length + 1))

    @torch.no_grad()
    def stream() -> None:
        logits, _ = model(tokens[:, :-1])
        cross_entropy(logits.mT, tokens[:, 1:])

    return stream


def _token_by_token(mode: str, backend: str, rows: int, length: int) -> Callable[[], None]:
    """Score a text as it comes, one call per token."""
    model = _model(backend).eval()
    tokens = torch.randint(VOCABULARY, (rows, min(SINGLE_CALLS, length) + 1))

    @torch.no_grad()
    def token_by_token() -> None:
        state = None
        for t in range(tokens.shape[1] - 1):
            logits, state = model(tokens[:, t : t + 1], state)
            cross_entropy(logits[:, 0], tokens[:, t + 1])

    return token_by_token


MEASUREMENTS = {"step": _step, "memory_op": _memory_op, "stream": _stream, "token_by_token": _token_by_token}


class _Worker:
    """A process that measures what it is asked to, with one backend, and waits in between."""

    def __init__(self, backend: str, mode: str, rows: int, length: int, threads: int):
        self.task = f"{mode} with backend {backend}"
        self.memory_gb: float | None = None  # the peak so far, above what the imports take
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by __exit__
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-P",
                "-m",
                "fastweights.bench",
                mode,
                backend,
                str(rows),
                str(length),
                str(threads),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )

    def __enter__(self) -> _Worker:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def measure(self, measurement: str) -> float:
        """The seconds that one run of a measurement takes."""
        try:
            self._process.stdin.write(measurement + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise UserError(f"The measurement {measurement}, {self.task}, failed: {self._reason()}")
        found = json.loads(answer)
        self.memory_gb = found["memory_gb"]
        return found["seconds"]

    def _reason(self) -> str:
        code = self._process.wait()
        if code < 0:
            return f"signal {-code} ended it; if memory ran out, give fewer --rows or a shorter --length."
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").split("\n")
        return next((line for line in reversed(lines) if line.strip()), f"its process ended with code {code}.")


@contextmanager
def _workers(backends: list[str], *work: Any) -> Iterator[dict[str, _Worker]]:
    """One worker per backend, by name; they end with the context, come what may."""
    with ExitStack() as stack:
        yield {backend: stack.enter_context(_Worker(backend, *work)) for backend in backends}


def _medians(workers: dict[str, _Worker], measurement: str, repeats: int, warm_up: bool = False) -> dict[str, float]:
    """The median seconds of a measurement per backend, the backends taking turns."""
    rounds = [
        {backend: worker.measure(measurement) for backend, worker in workers.items()} for _ in range(repeats + warm_up)
    ][warm_up:]
    return {backend: median(seconds[backend] for seconds in rounds) for backend in workers}


def _auto(medians: dict[str, float]) -> float:
    return medians.get("auto", medians["plain"])  # where auto is plain, it was measured once


def _compare(medians: dict[str, float]) -> dict[str, float]:
    reference, plain, auto = medians["reference"], medians["plain"], _auto(medians)
    return {
        "reference_s": reference,
        "plain_s": plain,
        "auto_s": auto,
        "ratio": reference / auto,
        "plain_ratio": reference / plain,
    }


def _peak_memory_gb() -> float | None:
    """The largest resident memory that this process has had, or None where the system does not tell."""
    try:
        peak = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        peak = None
    if peak:  # unlike getrusage's figure, it does not begin with the parent's
        return int(peak[1]) * 1024 / 1e9
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def _work(mode: str, backend: str, rows: str, length: str, threads: str) -> None:
    """What a worker does: for every name that comes in, measure it and answer with one line of JSON."""
    imported = _peak_memory_gb()
    torch.set_num_threads(int(threads))
    torch.manual_seed(0)
    prepared: dict[str, Callable[[], None]] = {}
    for line in sys.stdin:
        name = line.strip()
        if name not in prepared:
            prepared[name] = MEASUREMENTS[name](mode, backend, int(rows), int(length))
        start = time.perf_counter()
        prepared[name]()
        seconds = time.perf_counter() - start
        memory = None if imported is None else _peak_memory_gb() - imported
        print(json.dumps({"seconds": seconds, "memory_gb": memory}), flush=True)


if __name__ == "__main__":
    _work(*sys.argv[1:])
