"""What this machine has."""

from __future__ import annotations

import os
import re
from pathlib import Path


def read(path: str) -> str:
    """A text file of the system; empty where there is none."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def memory() -> int | None:
    """The bytes of memory that this process may use: the machine's, or a container's share; None where unknown."""
    try:
        installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
    limit = re.match(r"\d+", read("/sys/fs/cgroup/memory.max"))  # the word "max" where there is none
    return min(installed, int(limit[0])) if limit else installed
