"""Output: JSON for programs, a console for people."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeVar

from fastweights.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

T = TypeVar("T")


MOST_THREADS = 1024


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
