"""Output: JSON for programs, a console for people."""

from __future__ import annotations

import errno
import io
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

from fastweights.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

T = TypeVar("T")

MOST_THREADS = 1024


class LastingStream:
    """A text stream that stops no program: after its first error, what is written goes nowhere."""

    def __init__(self, stream: TextIO | None):
        self._stream = stream or io.StringIO()  # None where the descriptor was closed
        self.error: OSError | None = None
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a locale may know few letters

    def write(self, text: str) -> int:
        self._attempt(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._attempt(self._stream.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _attempt(self, write: Callable[[], Any]) -> None:
        try:
            write()
        except OSError as error:
            self.error = error
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), self._stream.fileno())


@contextmanager
def lasting_streams() -> Iterator[None]:
    """Let neither a full device nor a reader that has gone (`| head`) stop a command: it runs to its end.

    Raises:
        SystemExit: at the end, with code 2 after one sentence, where standard output could not be written.
    """
    before = sys.stdout, sys.stderr
    output, errors = LastingStream(sys.stdout), LastingStream(sys.stderr)
    sys.stdout, sys.stderr = output, errors
    try:
        yield
    finally:
        output.flush()
        errors.flush()
        sys.stdout, sys.stderr = before
        if output.error is not None and output.error.errno != errno.EPIPE:
            errors.write(f"fastweights: cannot write standard output ({output.error.strerror}); redirect it.\n")
            raise SystemExit(2)


def print_json(value: Any) -> None:
    """Print one JSON value."""
    print(json.dumps(value, allow_nan=False))


def make_console(quiet: bool) -> Console:
    """A console on standard output, or on standard error beside JSON."""
    from rich.console import Console

    console = Console(stderr=quiet, highlight=False, soft_wrap=True, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = 120  # tables in a file need not fit a window
    return console


def track(items: Iterable[T], label: str, total: int, console: Console) -> Iterable[T]:
    """The items, with a progress bar on a terminal."""
    from rich.progress import track

    return track(items, label, total, console=console, transient=True, disable=not console.is_terminal)


def set_threads(threads: int | None) -> None:
    """Set torch's number of threads, where one is given.

    Raises:
        UserError: where it is below 1.
    """
    import torch

    if threads is not None:
        if not 1 <= threads <= MOST_THREADS:
            raise UserError(f"--threads is {threads}; give 1 to {MOST_THREADS}, or leave it out for torch's choice.")
        torch.set_num_threads(threads)
