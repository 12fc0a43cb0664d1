"""What cannot fit into memory is refused before anything of it is made."""

import pytest
import torch

from fastweights import machine, recipes
from fastweights.errors import UserError
from fastweights.recipes import memory

ONE_ROW = "--training.batch_size=1 --training.eval_batch_size=1"


@pytest.fixture(autouse=True)
def a_machine(monkeypatch):
    """One with 16 GB and no graphics card, wherever the tests run."""
    monkeypatch.setattr(machine, "memory", lambda: 16_000_000_000)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.parametrize(
    ("name", "overrides", "smaller"),
    [
        ("art/fwm", "--training.batch_size=1000000000", "training.batch_size"),
        ("art/fwm", "--training.eval_batch_size=1000000000", "training.eval_batch_size"),
        ("art/fwm", "--task.segment_length=1000000000", "the task's sequences"),
        ("art/fwm", "--task.examples=1000000000", "the sizes of the task's data"),
        ("art/fwm", "--task.test_examples=1000000000", "the sizes of the task's data"),
        ("mqar/fwm", "--task.validation_examples=1000000000", "the sizes of the task's data"),
        ("catbabi-qa/fwm", "--task.segment_length=1000000000", "the task's sequences"),
        ("catbabi-qa/lstm", "--model.core.hidden_size=100000", "the model's sizes"),
        ("catbabi-qa/fwm", "--model.core.memory_size=100000", "the model's sizes"),
        ("catbabi-qa/mnm", "--model.core.memory_size=1000", "the task's sequences"),  # of memories kept on the way
        ("catbabi-qa/transformer-xl", "--model.core.memory_length=20000", "training.batch_size"),
        ("catbabi-qa/transformer-xl-small", "--task.segment_length=5000", "the task's sequences"),
        ("graph-rl/fwm", "--task.steps=1000000000", "the task's sequences"),
        ("graph-rl/fwm", "--task.patience=1000000 --task.steps=1000000 " + ONE_ROW, "the sizes of the task's data"),
    ],
)
def test_what_cannot_fit_is_refused_with_what_to_make_smaller(name, overrides, smaller):
    with pytest.raises(UserError, match=r"needs about [\d,.]+ GB .* has 16\.0 GB; make") as caught:
        recipes.assemble(recipes.load(name, overrides.split()))
    assert smaller in str(caught.value)


def test_a_trained_model_takes_no_training(monkeypatch):
    """A machine that is too small to train a model may evaluate it."""
    recipe = recipes.load("art/lstm")
    interface = recipes.assemble(recipe).interface
    monkeypatch.setattr(machine, "memory", lambda: 20_000_000)
    with pytest.raises(UserError, match="GB of memory"):
        recipes.assemble(recipe)
    assert recipes.assemble(recipe, interface=interface)


def test_of_two_processes_each_has_its_rows(monkeypatch):
    recipe = recipes.load("catbabi-qa/fwm", ["--training.batch_size=20000"])
    with pytest.raises(UserError, match=r"training\.batch_size"):
        recipes.assemble(recipe)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 1000)
    assert recipes.assemble(recipe)


def test_where_the_system_does_not_tell_nothing_is_refused(monkeypatch):
    monkeypatch.setattr(machine, "memory", lambda: None)
    assert recipes.assemble(recipes.load("art/lstm", ["--training.batch_size=1000000000"]))


def test_the_estimate_makes_no_weights(monkeypatch):
    devices = []
    monkeypatch.setattr(memory, "check", lambda task, model, training: devices.append(model.embedding.weight.device))
    recipes.assemble(recipes.load("art/lstm"))
    assert devices == [torch.device("meta")]


@pytest.mark.parametrize(("limit", "expected"), [("max\n", 8192), ("4096\n", 4096), ("99999\n", 8192), ("", 8192)])
def test_a_containers_limit_counts(monkeypatch, limit, expected):
    monkeypatch.undo()
    monkeypatch.setattr(machine.os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 2}.get)
    monkeypatch.setattr(machine, "read", lambda path: limit)
    assert machine.memory() == expected
