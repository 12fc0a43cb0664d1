"""Tasks: the data that are learned. A new one is a file here and a line in `TASKS`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastweights.specs import Registry
from fastweights.tasks.catbabi import CatBabi
from fastweights.tasks.contract import (
    Batch,
    EnvironmentTask,
    GeneratedBatches,
    Interface,
    SequenceTask,
    Source,
    Spaces,
    Task,
)
from fastweights.tasks.graph_rl import GraphRL
from fastweights.tasks.gymnasium import GymnasiumTask
from fastweights.tasks.retrieval import MQAR, Retrieval
from fastweights.tasks.text import Text

__all__ = [
    "MQAR", "TASKS", "Batch", "CatBabi", "EnvironmentTask", "GeneratedBatches", "GraphRL", "GymnasiumTask", "Interface",
    "Retrieval", "SequenceTask", "Source", "Spaces", "Task", "Text", "build",
]  # fmt: skip

TASKS = Registry(
    "task",
    Task,
    {
        "catbabi": CatBabi,
        "text": Text,
        "retrieval": Retrieval,
        "mqar": MQAR,
        "graph-rl": GraphRL,
        "gymnasium": GymnasiumTask,
    },
)


def build(spec: Mapping[str, Any] | str) -> Task:
    """Build a task from its spec in a recipe: `type` names it, the rest are its options."""
    return TASKS.build(spec)
