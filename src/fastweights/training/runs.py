"""The folder of a training run: its configuration, its checkpoints and its records, one writer at a time.

`metrics.jsonl` holds only what the seed determines, so that a run that was killed and resumed leaves the
same bytes as one that was not; what the clock determines goes to `timing.jsonl`.
"""

import contextlib
import json
import math
import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml
from filelock import FileLock, Timeout

from fastweights.errors import UserError, reason
from fastweights.training.checkpoint import unwritable, write_atomically


class InUse(UserError):
    """Another process writes to the run folder."""


class RunFolder:
    """A folder that holds one training run.

    Reading needs no lock; writing needs it, and `with` takes it:

    >>> with RunFolder.create("runs/first", {"seed": 1}) as run:  # doctest: +SKIP
    ...     run.record({"step": 1, "loss": 0.5}, timing={"seconds": 0.1})
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.metrics = self.path / "metrics.jsonl"
        self.timing = self.path / "timing.jsonl"
        self.best = self.path / "best.safetensors"
        self.last = self.path / "last.safetensors"
        self._lock_path = self.path / "lock"
        self._lock = FileLock(self._lock_path)
        self._content: bytes | None = None  # of the configuration, as it was last read or written

    @classmethod
    def create(cls, path: str | Path, config: dict[str, Any]) -> Self:
        """Begin a run in a folder that holds none, and return it locked.

        Raises:
            UserError: where the folder holds a run or cannot be written.
            InUse: where another process writes to it.
        """
        run = cls(path)
        run.begin(config)
        return run

    @classmethod
    def claim(cls, path: str | Path) -> Self:
        """Return the folder locked, whether it holds a run or is to hold one.

        Raises:
            UserError: where the folder cannot be written.
            InUse: where another process writes to it.
        """
        run = cls(path)
        run._make()
        run.lock()
        return run

    def begin(self, config: dict[str, Any]) -> None:
        """Begin this run, and lock it; see `create`."""
        content = _to_yaml(config)
        # Before the lock, so that a folder in which a run is under way is refused with the better advice.
        self._refuse_a_second_run()
        self._make()
        self.lock()
        try:
            self._refuse_a_second_run()
            write_atomically(self.config, content)
            self._content = content
        except BaseException:
            self.unlock()
            raise

    def withdraw(self) -> None:
        """Undo `begin` where nothing was recorded or saved, so that the folder can hold another run."""
        self._require_lock()
        if not any(file.exists() for file in (self.last, self.best, self.metrics)):
            self.config.unlink(missing_ok=True)

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Return the run that a folder holds, not locked: enough to read it, and `with` locks it to write.

        Raises:
            UserError: where it holds none.
        """
        run = cls(path)
        if not os.path.isfile(run.config):
            raise UserError(f"{run.path} holds no run (no {run.config.name}); check the path")
        return run

    def __enter__(self) -> Self:
        self.lock()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.unlock()

    def lock(self) -> None:
        """Keep other writers out until `unlock` or the end of this process, however it ends.

        Raises:
            InUse: where another process writes to the folder.
            UserError: where the lock cannot be written.
        """
        if self._lock.is_locked:
            return
        try:
            self._lock.acquire(blocking=False)
            self._lock_path.write_text(str(os.getpid()))
        except Timeout as error:
            raise InUse(
                f"{self.path} is in use by {self._holder()}; wait for it to end or choose another --out"
            ) from error
        except OSError as error:
            self._lock.release()
            raise unwritable(self._lock_path, error) from error

    def unlock(self) -> None:
        """Let other writers in; the lock file stays, so that two writers never lock two files of one name."""
        self._lock.release()

    def read_config(self) -> dict[str, Any]:
        """Return the configuration that the run was created with.

        Raises:
            UserError: where it cannot be read.
        """
        try:
            self._content = self.config.read_bytes()
            config = yaml.safe_load(self._content.decode())
        except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
            raise UserError(f"cannot read {self.config} ({reason(error)}); mend it or choose another run") from error
        if not isinstance(config, dict):
            raise UserError(f"{self.config} holds no settings; mend it or choose another run")
        if not isinstance(config.get("data"), str | None):
            raise UserError(f"data in {self.config} is no directory; mend it or choose another run")
        return config

    def write_config(self, config: dict[str, Any]) -> None:
        """Replace the configuration."""
        self._require_lock()
        self._content = _to_yaml(config)
        write_atomically(self.config, self._content)

    def restore_config(self) -> bool:
        """Write the configuration again where its file was removed on the way, and say whether it was."""
        self._require_lock()
        if self._content is None or self.config.exists():
            return False
        write_atomically(self.config, self._content)
        return True

    def record(self, metrics: dict[str, Any], timing: dict[str, Any] | None = None) -> None:
        """Append the metrics of a step, and apart from them its timings; NaN and infinity become null.

        >>> run.record({"step": 100, "loss": 0.25}, timing={"seconds": 3.2})  # doctest: +SKIP
        """
        self._require_lock()
        step = metrics.get("step")
        if not isinstance(step, int):
            raise ValueError(f'metrics need a whole number under "step", not {step!r}')
        lines = {self.metrics: _to_line(metrics)}
        if timing is not None:
            lines[self.timing] = _to_line({"step": step, **timing})
        for path, line in lines.items():
            _append(path, line)

    def truncate_records(self, step: int) -> None:
        """Drop the records of later steps than `step` and a torn last line: call it on resuming there."""
        self._require_lock()
        for path in (self.metrics, self.timing):
            lines = _read_lines(path)
            records = b"".join(line for line, record in lines if record["step"] <= step)
            if path.exists() and records != path.read_bytes():
                write_atomically(path, records)

    def records(self) -> list[dict[str, Any]]:
        """Return the recorded metrics, in order, without a torn last line."""
        return read_records(self.metrics)

    def timings(self) -> list[dict[str, Any]]:
        """Return the recorded timings, in order, without a torn last line."""
        return read_records(self.timing)

    def _make(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(self.path, error) from error

    def _refuse_a_second_run(self) -> None:
        for file in (self.config, self.last, self.best, self.metrics):
            if os.path.exists(file):
                raise UserError(
                    f"{self.path} already holds a run ({file.name}); continue it with --resume or choose another --out"
                )

    def _require_lock(self) -> None:
        if not self._lock.is_locked:
            raise RuntimeError(f"{self.path} is not locked: write to a run only inside `with run:`")

    def _holder(self) -> str:
        """Return a name for the process that holds the lock."""
        with contextlib.suppress(OSError):
            # The holder may not yet have written its number.
            if number := self._lock_path.read_text().strip():
                return f"process {number}"
        return "another process"


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a file such as `metrics.jsonl`, in order, without a torn last line.

    Raises:
        UserError: where a line is no record.
    """
    return [record for _, record in _read_lines(path)]


def _to_yaml(config: dict[str, Any]) -> bytes:
    return yaml.safe_dump(config, sort_keys=False, allow_unicode=True).encode()


def _to_line(record: dict[str, Any]) -> bytes:
    """Return a record as one line of JSON."""
    return json.dumps(_without_infinities(record), allow_nan=False).encode() + b"\n"


def _without_infinities(value: Any) -> Any:
    """Return the value with every NaN and infinity in it replaced by None, since JSON knows neither."""
    if isinstance(value, dict):
        return {name: _without_infinities(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without_infinities(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _append(path: Path, line: bytes) -> None:
    """Append a whole line to a file, or nothing."""
    length = path.stat().st_size if path.exists() else 0
    try:
        with open(path, "ab") as file:
            file.write(line)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.truncate(path, length)
        raise unwritable(path, error) from error


def _read_lines(path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    """Return the whole lines of a file of records, each with the record on it; no file holds no lines."""
    try:
        content = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}); check that it may be read") from error
    lines = []
    # What follows the last line feed is nothing, or a line that a kill tore.
    for number, line in enumerate(content.split(b"\n")[:-1], start=1):
        try:
            record = json.loads(line)
            if type(record["step"]) is not int or not 0 <= record["step"] < 2**63:
                raise ValueError("the step is no number of steps")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(f"line {number} of {path} is not a record; remove it") from error
        lines.append((line + b"\n", record))
    return lines
