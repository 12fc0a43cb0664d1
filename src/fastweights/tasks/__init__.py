"""Tasks: what is learned and how it is measured. A new one is a file here and a line in `TASKS`."""

from __future__ import annotations

from typing import Any

from fastweights import specs
from fastweights.tasks.catbabi import CatBabi
from fastweights.tasks.contract import Batch, Batches, Task
from fastweights.tasks.retrieval import Retrieval

__all__ = ["TASKS", "Batch", "Batches", "CatBabi", "Retrieval", "Task", "build"]

TASKS: dict[str, type[Task]] = {
    "catbabi": CatBabi,
    "retrieval": Retrieval,
}


def build(spec: dict[str, Any]) -> Task:
    """Build a task from a recipe's words: `type` names it, the rest are its options."""
    return specs.build("task", TASKS, spec)
