"""Measuring: counts by hand, any number of rows, the state to start from."""

import math

import pytest
import torch
from torch import nn

from fastweights import models, recipes, tasks
from fastweights.cores import map_state
from fastweights.tasks import Batch
from fastweights.training.evaluate import Meter, evaluate

OPTIONS = {"type": "catbabi", "tasks": "1,2,6", "segment_length": 20, "validation_stories": 3}
MODEL = {"core": {"type": "fwm", "hidden_size": 8, "memory_size": 4}, "embedding_size": 8}


class Table(nn.Module):
    """A model whose logits depend on the token alone; the probabilities are chosen by hand."""

    def __init__(self, probabilities):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(probabilities).log())

    def forward(self, tokens, state, *, reads, valid):
        return self.logits[tokens][reads], state


def batch_of(inputs, targets, answers, groups, reads=None):
    tensors = [torch.tensor([row]) for row in (inputs, targets)]
    answers = torch.tensor([answers], dtype=torch.bool)
    reads = answers if reads is None else torch.tensor([reads], dtype=torch.bool)
    return Batch(*tensors, reads, tensors[0] != 0, answers, torch.tensor([groups]))


# After token 1 the words 0 to 3 have these probabilities, after token 2 others.
MODEL_BY_HAND = [[0.25] * 4, [1 / 2, 1 / 4, 1 / 8, 1 / 8], [1 / 8, 1 / 8, 1 / 4, 1 / 2]]
BATCHES_BY_HAND = [
    batch_of([1, 1, 1, 2], [0, 1, 2, 3], [1, 1, 1, 0], [5, 5, 5, 7]),  # p = 1/2 (right), 1/4, 1/8
    batch_of([2, 2, 1, 0], [3, 1, 1, 0], [1, 0, 0, 0], [7, 7, 7, 0]),  # p = 1/2 (right)
]


def test_accuracy_and_perplexity_are_means_over_answers_not_over_batches():
    metrics = evaluate(Table(MODEL_BY_HAND), iter(BATCHES_BY_HAND), rows=1)
    assert metrics["questions"] == 4
    assert metrics["tokens"] == 7
    assert metrics["answer_accuracy"] == 2 / 4
    assert metrics["answer_perplexity"] == pytest.approx(2 ** ((1 + 2 + 3 + 1) / 4))
    assert metrics["loss"] == pytest.approx(math.log(2) * 7 / 4)
    assert metrics["tasks"] == {
        "5": {"accuracy": 1 / 3, "questions": 3},
        "7": {"accuracy": 1.0, "questions": 1},
    }


def test_the_loss_is_the_mean_over_all_reads_and_the_perplexity_over_answers_alone():
    batch = batch_of([1, 1, 1, 2], [0, 1, 2, 3], [0, 1, 0, 0], [5, 5, 5, 5], reads=[1, 1, 1, 0])
    metrics = evaluate(Table(MODEL_BY_HAND), iter([batch]), rows=1)
    assert metrics["loss"] == pytest.approx(math.log(2) * (1 + 2 + 3) / 3)
    assert metrics["answer_perplexity"] == pytest.approx(4)
    assert metrics["answer_accuracy"] == 0
    assert metrics["questions"] == 1


def test_a_meter_that_saw_no_answer():
    metrics = Meter().result()
    assert (metrics["questions"], metrics["tokens"], metrics["tasks"]) == (0, 0, {})
    assert metrics["answer_accuracy"] == 0
    assert all(math.isfinite(metrics[key]) for key in ("loss", "answer_perplexity"))


def test_a_hopeless_model_has_a_finite_perplexity():
    table = [[1.0, 0.0], [1.0, 0.0]]
    model = Table(table)
    model.logits.data = torch.tensor([[0.0, -1e6]] * 2)
    metrics = evaluate(model, iter([batch_of([1], [1], [1], [1])]), rows=1)
    assert math.isfinite(metrics["answer_perplexity"])


def tiny():
    torch.manual_seed(1)
    return models.build(MODEL, tasks.build(OPTIONS).vocabulary_size)


def measure(model, rows, state=None, mode="qa"):
    task = tasks.build({**OPTIONS, "mode": mode})
    return evaluate(model, task.evaluation_batches(None, "valid", rows), rows, state)


@pytest.mark.parametrize("mode", ["qa", "lm"])
def test_the_number_of_rows_changes_no_count(mode):
    model = tiny()
    one, three, many = (measure(model, rows, mode=mode) for rows in (1, 3, 20))
    for other in (three, many):
        assert other["questions"] == one["questions"] > 0
        assert other["tokens"] == one["tokens"]
        counts = [{task: row["questions"] for task, row in m["tasks"].items()} for m in (one, other)]
        assert counts[0] == counts[1]
    assert set(one["tasks"]) == {"1", "2", "6"}


def test_rows_without_a_story_change_nothing():
    model = tiny()
    stories = len(tasks.build(OPTIONS).evaluation_stories(None, "valid"))
    metrics, more = measure(model, stories), measure(model, stories + 5)
    assert more["answer_perplexity"] == pytest.approx(metrics["answer_perplexity"])
    assert more["tasks"] == metrics["tasks"]


def test_evaluation_begins_with_row_0_of_the_carried_state():
    model = tiny()
    model.core.output.weight.data.mul_(10)
    state = map_state(torch.randn_like, model.core.initial_state(2))
    changed = map_state(lambda tensor: torch.stack([tensor[0], torch.randn_like(tensor[1])]), state)
    expected = measure(model, 3, state)
    assert measure(model, 3, changed) == expected
    assert measure(model, 3) != expected
    zeros = model.core.initial_state(1)
    assert measure(model, 3, zeros) == measure(model, 3)


def test_evaluation_leaves_the_model_as_it_was():
    model = tiny()
    before = [weight.clone() for weight in model.parameters()]
    state = map_state(torch.randn_like, model.core.initial_state(2))
    kept = map_state(torch.clone, state)
    for training in (True, False):
        model.train(training)
        measure(model, 2, state)
        assert model.training is training
    assert all(map(torch.equal, model.parameters(), before))
    assert torch.equal(state.memory, kept.memory)
    assert all(weight.grad is None for weight in model.parameters())


def test_dropout_is_off_while_evaluating():
    recipe = recipes.load("catbabi-qa/lstm", ["--model.embedding_size=8", "--model.core.hidden_size=8"])
    model = models.build(recipe.to_dict()["model"], 180)
    assert measure(model, 2) == measure(model, 2)
