"""What all figures share: matplotlib is loaded only when one is drawn, and files are written or refused."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastweights.errors import UserError

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


def write(figure: Figure, path: str | Path) -> None:
    """Write a figure, as PNG or SVG by the path's ending.

    Raises:
        UserError: where it cannot be written.
    """
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise UserError(f"The figure {path} cannot be written ({error}); give another path.") from error
