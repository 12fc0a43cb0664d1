"""What all figures share: styles, legends, and files that are written or refused; matplotlib is loaded only to draw."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fastweights.errors import UserError, reason
from fastweights.training.checkpoint import unwritable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ENDINGS = (".png", ".svg", ".pdf")
# Okabe and Ito's colours, which colour-blind people can tell apart, in an order whose neighbours differ in grey too
COLORS = ("#0072b2", "#e69f00", "#333333", "#56b4e9", "#d55e00", "#009e73", "#cc79a7")
LINES = ("-", "--", "-.", ":")
MARKERS = "osD^vPX<>"
HATCHES = ("", "///", "...", "\\\\\\", "xxx", "---", "ooo", "+++")
LEGEND_WIDTH = 36  # characters of a line
LEGEND_LINE = 0.17  # inches


class Style(NamedTuple):
    """How one of several things looks in a figure: told apart in colour, in grey and in print."""

    color: str
    line: str
    marker: str
    hatch: str


def style(index: int) -> Style:
    """The style of the thing with this number; equal numbers look alike in all figures."""
    return Style(*(looks[index % len(looks)] for looks in (COLORS, LINES, MARKERS, HATCHES)))


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
        UserError: where matplotlib is missing, a path ends in none of `ENDINGS`, or it cannot be written.
    """
    new_figure(1, 1)
    for path in map(Path, paths):
        if path.suffix not in ENDINGS:
            raise UserError(f"The figure {path} cannot be written: its name must end in .png, .svg or .pdf.")
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


def legend(figure: Figure, handles: Sequence[Any], labels: Sequence[str]) -> None:
    """Put a legend beside the panels, and make a figure that is too low for it higher.

    Labels are plain text, whatever matplotlib would make of `$` or `_` in them.
    """
    numbers = [str(number) for number in range(len(labels))]
    box = figure.legend(handles, numbers, loc="outside right upper", frameon=False)
    texts = [textwrap.fill(label, LEGEND_WIDTH) for label in labels]
    for artist, text in zip(box.get_texts(), texts, strict=True):
        artist.set(text=text, parse_math=False)
    lines = sum(text.count("\n") + 1.5 for text in texts)
    figure.set_figheight(max(figure.get_figheight(), lines * LEGEND_LINE))


def write(figure: Figure, path: str | Path) -> None:
    """Write a figure, as PNG, SVG or PDF by the path's ending.

    Raises:
        UserError: where it cannot be written.
    """
    check(path)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph")  # a letter that the font has not is drawn as a box
            figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise UserError(f"The figure {path} cannot be written ({reason(error)}); give another path.") from error
