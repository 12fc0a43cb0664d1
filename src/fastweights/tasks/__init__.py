"""Tasks: what is learned and how it is measured. A new one is a file here and a line in `TASKS`."""

from __future__ import annotations

from typing import Any

from fastweights import specs
from fastweights.tasks.catbabi import CatBabi
from fastweights.tasks.contract import Batch, Batches, ControlTask, Task
from fastweights.tasks.graph_rl import GraphRL
from fastweights.tasks.gymnasium import GymnasiumTask
from fastweights.tasks.retrieval import Retrieval

__all__ = [
    "TASKS",
    "Batch",
    "Batches",
    "CatBabi",
    "ControlTask",
    "GraphRL",
    "GymnasiumTask",
    "Retrieval",
    "Task",
    "build",
]

TASKS: dict[str, type[Task | ControlTask]] = {
    "catbabi": CatBabi,
    "retrieval": Retrieval,
    "graph-rl": GraphRL,
    "gymnasium": GymnasiumTask,
}


def build(spec: dict[str, Any]) -> Task | ControlTask:
    """Build a task from a recipe's words: `type` names it, the rest are its options."""
    return specs.build("task", TASKS, spec)
