"""Every option of every part, by the registries, with values that make no sense: one sentence, or a part is built."""

import copy
import math

import pytest
import torch

from fastweights import machine, recipes, specs
from fastweights.cores import CORES
from fastweights.errors import UserError
from fastweights.models import actor_critic, token_model
from fastweights.objectives import OBJECTIVES
from fastweights.recipes import TrainingOptions
from fastweights.tasks import TASKS
from fastweights.training.optimization import OPTIMIZERS, Optimization

VALUES = (-1, 0, 0.5, 10**9, 10**30, math.nan, math.inf, "", "x", [], [1, 2, 3], {}, {1: 2}, None, True)
SMALL = {
    "catbabi": {"segment_length": 4, "validation_stories": 1, "babi_tasks": 1},
    "retrieval": {"examples": 5, "validation_examples": 5, "test_examples": 5},
    "mqar": {"examples": 5, "validation_examples": 5, "test_examples": 5, "vocabulary_size": 70},
    "graph-rl": {"graphs": 5},
    "gymnasium": {"steps": 5},
    "text": {"segment_length": 4},
}
LOOP = {"batch_size": 2, "eval_batch_size": 2}


def options(registry, skip=0):
    return [(name, key) for name, part in registry.entries.items() for key in specs.options_of(part, skip)]


@pytest.fixture(autouse=True)
def a_machine(monkeypatch):
    """One with 16 GB, wherever the tests run."""
    monkeypatch.setattr(machine, "memory", lambda: 16_000_000_000)


@pytest.fixture(scope="module")
def text_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("a rose is a rose\n" * 20)
    return str(path)


def attack(where, value, data=None, **parts):
    """Put a value into a recipe, and build all of it that is there before the first step."""
    values = {"task": {"type": "retrieval", **SMALL["retrieval"]}, "model": {"core": "lstm"}, "training": LOOP, **parts}
    values = copy.deepcopy(values)
    place = values
    *folders, key = where.split(".")
    for folder in folders:
        place = place.setdefault(folder, {})
    place[key] = value
    try:
        assembly = recipes.assemble(recipes.load(values), data)
        Optimization(assembly.model, assembly.recipe.training)
        assembly.objective.check_data(assembly.task, data)
        assembly.objective.source(assembly.task, data, assembly.recipe.training.batch_size, 0)
    except UserError as error:
        sentence = str(error)
        assert "\n" not in sentence and "<class" not in sentence, sentence
        return sentence
    return None


@pytest.mark.parametrize(("name", "key"), options(TASKS))
def test_tasks(name, key, text_file):
    for value in VALUES:
        attack(f"task.{key}", value, text_file if name == "text" else None, task={"type": name, **SMALL[name]})


@pytest.mark.parametrize(("name", "key"), options(CORES, skip=1))
def test_cores(name, key):
    for value in VALUES:
        attack(f"model.core.{key}", value, model={"core": {"type": name}})


@pytest.mark.parametrize("key", specs.options_of(token_model, skip=1))
def test_token_models(key):
    for value in VALUES:
        attack(f"model.{key}", value)


@pytest.mark.parametrize("key", specs.options_of(actor_critic, skip=2))
def test_agents(key):
    for value in VALUES:
        attack(f"model.{key}", value, task={"type": "graph-rl", **SMALL["graph-rl"]})


@pytest.mark.parametrize(("name", "key"), options(OBJECTIVES))
def test_objectives(name, key):
    task = "graph-rl" if name == "a2c" else "mqar"
    for value in VALUES:
        attack(f"objective.{key}", value, objective={"type": name}, task={"type": task, **SMALL[task]})


@pytest.mark.parametrize("key", specs.keys_of(TrainingOptions))
def test_trainings(key):
    for value in VALUES:
        attack(f"training.{key}", value)


@pytest.mark.parametrize(("name", "key"), options(OPTIMIZERS, skip=1))
def test_optimizers_make_a_step(name, key):
    for value in VALUES:
        layer = torch.nn.Linear(3, 3, bias=False)
        layer.weight.grad = torch.ones(3, 3)
        try:
            Optimization(layer, TrainingOptions(optimizer={"type": name, key: value})).step(0)
        except UserError as error:
            assert "\n" not in str(error) and "<class" not in str(error), error
