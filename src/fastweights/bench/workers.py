"""Worker processes, one for each backend, so that one's peak memory is not another's."""

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

import torch

from fastweights.bench.episodes import training_episode
from fastweights.bench.measurements import MEASUREMENTS, Work
from fastweights.errors import UserError
from fastweights.training.allocator import keep_freed_blocks

LEAST_SECONDS = 0.2  # of a measurement: short runs are repeated


class Worker:
    """A process that measures with one backend, and waits in between."""

    def __init__(self, backend: str, threads: int):
        self.backend = backend
        self.memory_gb: float | None = None  # the peak so far, above what the imports take
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by __exit__
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "fastweights.bench.workers", backend, str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def measure(self, measurement: str, work: Work) -> float:
        """The seconds of one run of a measurement, a mean over several where it is short.

        Raises:
            UserError: where the process fails.
        """
        assert self._process.stdin is not None and self._process.stdout is not None  # pipes
        try:
            self._process.stdin.write(json.dumps([measurement, *work]) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise UserError(
                f"The measurement {measurement} (batch size {work.batch_size}, length {work.length}) with backend "
                f"{self.backend} failed: {self._reason()}"
            )
        found = json.loads(answer)
        self.memory_gb = found["memory_gb"]
        return found["seconds"]

    def _reason(self) -> str:
        code = self._process.wait()
        if code < 0:
            return f"signal {-code} ended it; if memory ran out, give a smaller --batch-size or a shorter --length."
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").split("\n")
        return next((line for line in reversed(lines) if line.strip()), f"its process ended with code {code}.")


@contextmanager
def team_of(backends: list[str], threads: int) -> Iterator[dict[str, Worker]]:
    """One worker per backend, by name; they end with the context, come what may."""
    with ExitStack() as stack:
        yield {backend: stack.enter_context(Worker(backend, threads)) for backend in backends}


def medians(team: dict[str, Worker], measurement: str, work: Work, repeats: int) -> dict[str, float]:
    """The median seconds of a measurement per backend, after a warm-up; backends take turns on the same machine."""
    rounds = [
        {backend: worker.measure(measurement, work) for backend, worker in team.items()} for _ in range(1 + repeats)
    ][1:]
    return {backend: median(seconds[backend] for seconds in rounds) for backend in team}


def _peak_memory_gb() -> float | None:
    """The peak resident memory of this process, or None where the system does not tell."""
    try:
        peak = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        peak = None
    if peak:  # getrusage's figure begins with the parent's
        return int(peak[1]) * 1024 / 1e9
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def _seconds(run: Callable[[], object]) -> float:
    """The mean seconds of a run, over as many as fill `LEAST_SECONDS`.

    A process that has waited for its turn is slower at first: its threads sleep, its caches hold another's data. A run
    of a few milliseconds would measure little else.
    """
    runs, start = 0, time.perf_counter()
    while True:
        run()
        runs += 1
        seconds = time.perf_counter() - start
        if seconds >= LEAST_SECONDS:
            return seconds / runs


def _work(backend: str, threads: str) -> None:
    """The worker's loop: for each request on standard input, measure and answer with one line of JSON."""
    imported = _peak_memory_gb()
    torch.set_num_threads(int(threads))
    torch.manual_seed(0)
    if backend != "reference":
        keep_freed_blocks()  # as training does
    prepared: dict[str, Callable[[], object]] = {}
    for line in sys.stdin:
        if line not in prepared:
            name, *work = json.loads(line)
            prepared[line] = (MEASUREMENTS | {"training_episode": training_episode})[name](Work(*work), backend)
        seconds = _seconds(prepared[line])
        peak = _peak_memory_gb()
        memory = None if imported is None or peak is None else peak - imported
        print(json.dumps({"seconds": seconds, "memory_gb": memory}), flush=True)


if __name__ == "__main__":
    _work(*sys.argv[1:])
