"""Tiny trainings, each in a run folder of its own, and cores that only tests need."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from fastweights import recipes
from fastweights.training import checkpoint
from fastweights.training.loop import Observer, Trainer, run_config
from fastweights.training.runs import RunFolder

LOOP = (
    "--training.steps=6",
    "--training.batch_size=2",
    "--training.eval_batch_size=2",
    "--training.report_every=2",
    "--training.evaluate_every=2",
)
STORIES = (
    *LOOP,
    "--model.embedding_size=8",
    "--model.core.hidden_size=8",
    "--model.core.memory_size=4",
    "--task.babi_tasks=1,2",
    "--task.segment_length=20",
    "--task.validation_stories=2",
)
SEQUENCES = (
    *LOOP,
    "--model.embedding_size=8",
    "--model.head_size=8",
    "--model.core.hidden_size=8",
    "--task.pairs=2",
    "--task.examples=11",
    "--task.validation_examples=5",
    "--task.test_examples=5",
)
GRAPHS = (
    "--task.states=3",
    "--task.actions=2",
    "--task.steps=6",
    "--task.graphs=12",
    "--model.core.memory_size=4",
    "--model.core.slow={type: lstm, hidden_size: 16}",
    "--training.batch_size=8",
    "--training.eval_batch_size=8",
    "--training.steps=4",
    "--training.report_every=2",
    "--training.evaluate_every=2",
)


class Trainings(ExitStack):
    """Begins trainings in a folder; their run folders are unlocked at the end."""

    def __init__(self, folder: Path):
        super().__init__()
        self.folder, self.count = folder, 0

    def begin(
        self,
        source: str | Mapping[str, Any],
        *overrides: str,
        data: str | None = None,
        observer: Observer | None = None,
        **options: Any,
    ) -> Trainer:
        """A trainer of a recipe, in a folder that holds no run yet."""
        recipe = recipes.load(source, overrides)
        path, self.count = self.folder / f"run{self.count}", self.count + 1
        assembly = recipes.assemble(recipe, data)
        run = self.enter_context(RunFolder.create(path, run_config(assembly, data)))
        return Trainer(assembly, run, data, observer, **options)


def resumed(trainer: Trainer) -> Trainer:
    """Another trainer in the same run folder, resumed from its last checkpoint."""
    again = Trainer(recipes.assemble(trainer.recipe, trainer.data), trainer.run, trainer.data)
    again.resume()
    return again


def records(trainer: Trainer, kind: str) -> list[dict[str, Any]]:
    """The records of the kind "train" or "valid"."""
    return [record[kind] for record in trainer.run.records() if kind in record]


def assert_same_run(run: RunFolder, expected: RunFolder) -> None:
    """Equal records and checkpoints, bit for bit."""
    assert run.metrics.read_bytes() == expected.metrics.read_bytes()
    for one, other in ((run.last, expected.last), (run.best, expected.best)):
        tensors, metadata = checkpoint.load(one)
        expected_tensors, expected_metadata = checkpoint.load(other)
        assert metadata == expected_metadata
        assert tensors.keys() == expected_tensors.keys()
        for key, tensor in tensors.items():
            assert torch.equal(tensor, expected_tensors[key]), f"{key} in {one.name}"
    assert not list(run.path.glob(".*.partial"))


def assert_resumes(
    trainings: Trainings, recipe: str | Mapping[str, Any], *overrides: str, stop: int = 3, data: str | None = None
) -> Trainer:
    """A run that stopped after some steps and was resumed equals one that did not stop; the latter is returned."""
    whole = trainings.begin(recipe, *overrides, data=data)
    whole.train()
    stopped = trainings.begin(recipe, *overrides, data=data)  # begun now, as both draw from torch's generator
    for _ in range(stop):
        stopped.optimizer_step()
        stopped.step += 1
        if stopped.step % stopped.options.report_every == 0:
            stopped._report(0.0)
        if stopped.step % stopped.options.evaluate_every == 0:
            stopped._validate()
    stopped.save()
    again = resumed(stopped)
    again.train()
    assert_same_run(again.run, whole.run)
    return whole
