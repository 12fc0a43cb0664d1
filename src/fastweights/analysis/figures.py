"""What all figures share: matplotlib is loaded only when one is drawn, and files are written or refused."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastweights.errors import UserError, reason
from fastweights.training.checkpoint import unwritable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLORS = ("#1f5fa8", "#d17a22", "#2f8f4e", "#8a4fa3", "#b03a3a", "#5c5c5c")


def new_figure(width: float, height: float, **options: Any) -> Figure:
    """An empty figure of a size in inches.

    Raises:
        UserError: where matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("Figures need matplotlib; install it with: pip install 'fastweights[figures]'") from error
    return Figure(figsize=(width, height), layout="constrained", **options)


def check(*paths: str | Path) -> None:
    """Refuse figures that cannot be drawn or written, before anything is measured for them.

    Raises:
        UserError: where matplotlib is missing, a path ends in neither .png nor .svg, or it cannot be written.
    """
    new_figure(1, 1)
    for path in map(Path, paths):
        if path.suffix not in (".png", ".svg"):
            raise UserError(f"The figure {path} cannot be written: its name must end in .png or .svg.")
        check_writable(path)


def check_writable(path: Path) -> None:
    """Refuse a path at which no file can be written; what is there stays.

    Raises:
        UserError: saying why.
    """
    is_new = not path.exists()
    try:
        path.open("ab").close()
    except OSError as error:
        raise unwritable(path, error) from error
    except ValueError as error:
        raise UserError(f"The figure {path} cannot be written ({reason(error)}); give another path.") from error
    if is_new:
        path.unlink()


def write(figure: Figure, path: str | Path) -> None:
    """Write a figure, as PNG or SVG by the path's ending.

    Raises:
        UserError: where it cannot be written.
    """
    check(path)
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise UserError(f"The figure {path} cannot be written ({reason(error)}); give another path.") from error
