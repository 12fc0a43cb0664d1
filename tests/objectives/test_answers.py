"""Answers: counts by hand, any batch size, the state to start from, and sums over processes."""

import math
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from fastweights import models, recipes, tasks
from fastweights.cores import Losses, map_state
from fastweights.distributed import Group
from fastweights.errors import UserError
from fastweights.objectives import Answers, LanguageModel, Sums
from fastweights.objectives.tokens import added_sums
from fastweights.tasks import Batch

OPTIONS = {"type": "catbabi", "babi_tasks": "1,2,6", "segment_length": 20, "validation_stories": 3}
MODEL = {"core": {"type": "fwm", "hidden_size": 8, "memory_size": 4}, "embedding_size": 8}


class Table(nn.Module):
    """A model whose logits depend on the token alone; the probabilities are chosen by hand."""

    def __init__(self, probabilities):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(probabilities).log())

    def forward(self, tokens, state, *, output_mask, mask, resets=None, losses=None):
        return self.logits[tokens][output_mask], state


def batch_of(inputs, targets, answers, groups, loss_mask=None):
    tensors = [torch.tensor([row]) for row in (inputs, targets)]
    answers = torch.tensor([answers], dtype=torch.bool)
    loss_mask = answers if loss_mask is None else torch.tensor([loss_mask], dtype=torch.bool)
    return Batch(*tensors, loss_mask, tensors[0] != 0, answers, torch.tensor([groups]))


# After token 1 the words 0 to 3 have these probabilities, after token 2 others.
MODEL_BY_HAND = [[0.25] * 4, [1 / 2, 1 / 4, 1 / 8, 1 / 8], [1 / 8, 1 / 8, 1 / 4, 1 / 2]]
BATCHES_BY_HAND = [
    batch_of([1, 1, 1, 2], [0, 1, 2, 3], [1, 1, 1, 0], [5, 5, 5, 7]),  # p = 1/2 (right), 1/4, 1/8
    batch_of([2, 2, 1, 0], [3, 1, 1, 0], [1, 0, 0, 0], [7, 7, 7, 0]),  # p = 1/2 (right)
]


class Batches(tasks.SequenceTask):
    """A task of batches that are given."""

    def __init__(self, batches):
        self.batches = batches

    def prepare(self, data):
        raise NotImplementedError

    def describe(self, data):
        return "batches"

    def training_batches(self, data, batch_size, seed, shard=slice(None)):
        return iter(self.batches)

    def evaluation_batches(self, data, split, batch_size):
        return iter(self.batches)

    def evaluation_counts(self, data, split):
        return {}


def evaluate(model, batches, batch_size=1):
    return Answers().evaluate(model, Batches(batches), None, "valid", batch_size)


def test_accuracy_and_perplexity_are_means_over_answers_not_over_batches():
    metrics = evaluate(Table(MODEL_BY_HAND), BATCHES_BY_HAND)
    assert metrics["questions"] == 4
    assert metrics["tokens"] == 7
    assert metrics["answer_accuracy"] == 2 / 4
    assert metrics["answer_perplexity"] == pytest.approx(2 ** ((1 + 2 + 3 + 1) / 4))
    assert metrics["loss"] == pytest.approx(math.log(2) * 7 / 4)
    assert metrics["groups"] == {
        "5": {"accuracy": 1 / 3, "questions": 3},
        "7": {"accuracy": 1.0, "questions": 1},
    }


def test_the_order_of_the_batches_changes_nothing():
    """The first batch may lack the groups of the second."""
    metrics = [evaluate(Table(MODEL_BY_HAND), batches) for batches in (BATCHES_BY_HAND, BATCHES_BY_HAND[::-1])]
    assert metrics[0] == metrics[1]


def test_the_loss_is_the_mean_over_the_loss_mask_and_the_perplexity_over_answers_alone():
    batch = batch_of([1, 1, 1, 2], [0, 1, 2, 3], [0, 1, 0, 0], [5, 5, 5, 5], loss_mask=[1, 1, 1, 0])
    metrics = evaluate(Table(MODEL_BY_HAND), [batch])
    assert metrics["loss"] == pytest.approx(math.log(2) * (1 + 2 + 3) / 3)
    assert metrics["answer_perplexity"] == pytest.approx(4)
    assert metrics["answer_accuracy"] == 0
    assert metrics["questions"] == 1


def test_a_batch_without_answers():
    metrics = evaluate(Table(MODEL_BY_HAND), [batch_of([0], [0], [0], [0])])
    assert (metrics["questions"], metrics["tokens"], metrics["groups"]) == (0, 0, {})
    assert metrics["answer_accuracy"] == 0
    assert all(math.isfinite(metrics[key]) for key in ("loss", "answer_perplexity"))


def test_a_hopeless_model_has_a_finite_perplexity():
    table = [[1.0, 0.0], [1.0, 0.0]]
    model = Table(table)
    model.logits.data = torch.tensor([[0.0, -1e6]] * 2)
    metrics = evaluate(model, [batch_of([1], [1], [1], [1])])
    assert math.isfinite(metrics["answer_perplexity"])


def test_the_step_has_the_loss_and_the_metrics_of_the_batch():
    model = Table(MODEL_BY_HAND)
    result = Answers().step(model, Batches([]), BATCHES_BY_HAND[0]._replace(lr_scale=0.5), None, Group())
    assert result.loss.item() == pytest.approx(math.log(2) * (1 + 2 + 3) / 3)
    assert (result.count, result.lr_scale, result.state) == (4, 0.5, None)
    metrics = Answers().metrics(Sums(result.sums))
    assert metrics.keys() == {"loss", "answer_accuracy", "answer_perplexity"}
    assert metrics["loss"] == pytest.approx(result.loss.item())
    assert metrics["answer_accuracy"] == 1 / 3
    assert set(result.inputs) == {"inputs", "targets", "loss_mask", "mask", "answer_mask", "groups"}


# Sums


def test_sums_of_steps_are_those_of_all_at_once_and_can_be_saved():
    model = Table(MODEL_BY_HAND)
    steps = [Answers().step(model, Batches([]), batch, None, Group()) for batch in BATCHES_BY_HAND]
    sums = Sums()
    for step in steps:
        sums.add(step.sums)
    evaluated = evaluate(model, BATCHES_BY_HAND)
    metrics = Answers().metrics(sums)
    assert metrics == pytest.approx({key: evaluated[key] for key in metrics})
    restored = Sums()
    restored.load_state_dict(sums.state_dict())
    assert restored.state_dict() == sums.state_dict()
    assert Answers().evaluation(restored) == Answers().evaluation(sums)
    assert Answers().evaluation(sums)["groups"] == evaluated["groups"]


class Threads(Group):
    """A group whose processes are threads of this one."""

    def __init__(self, rank, size, barrier, numbers):
        super().__init__(rank, size)
        self.barrier_of_threads, self.numbers = barrier, numbers

    def all_reduce_sum(self, *numbers):
        return [sum(parts) for parts in zip(*self.exchange(numbers), strict=True)]

    def all_reduce_max(self, number):
        return max(self.exchange(number))

    def exchange(self, value):
        self.numbers[self.rank] = value
        self.barrier_of_threads.wait(timeout=60)
        found = list(self.numbers)
        self.barrier_of_threads.wait(timeout=60)
        return found


@pytest.mark.parametrize("objective", [Answers(), LanguageModel()])
def test_sums_over_processes_are_those_of_one(objective):
    """Even where a process has not seen all groups."""
    model, task = Table(MODEL_BY_HAND), Batches([])
    batches = [*BATCHES_BY_HAND, batch_of([1, 2], [0, 3], [1, 1], [3, 11])]
    own, whole = [], Sums()
    for batch in batches:
        step = objective.step(model, task, batch, None, Group())
        own.append(Sums(step.sums | added_sums(Losses(meta=torch.tensor(0.25 * len(own))))))
        whole.add(own[-1].values)
    barrier, numbers = threading.Barrier(3), [None] * 3
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda rank: own[rank].all_reduce(Threads(rank, 3, barrier, numbers)), range(3)))
    for sums in found:
        metrics = objective.metrics(sums)
        assert metrics == pytest.approx(objective.metrics(whole)) and metrics["meta_loss"] == 0.25
        assert objective.evaluation(sums) == objective.evaluation(whole) | metrics
        for name, value in sums.values.items():
            torch.testing.assert_close(value, whole.values[name], msg=name)


def test_sums_fade_for_a_progress_bar():
    sums = Sums()
    for value in (1.0, 2.0, 4.0):
        sums.add({"loss": torch.tensor(value)}, decay=0.5)
    assert sums.values["loss"] == 1 / 4 + 2 / 2 + 4
    assert sums.values["loss"].dtype == torch.float64


def test_restored_sums_go_to_the_device_of_the_next_step():
    """As on a graphics card: what is restored is on the CPU."""
    sums = Sums()
    sums.load_state_dict({"group_questions": [1.0, 2.0], "loss": 3.0})
    sums.add({"group_questions": torch.zeros(3, device="meta"), "loss": torch.zeros((), device="meta")})
    assert {value.device.type for value in sums.values.values()} == {"meta"}


# Evaluation


def tiny():
    torch.manual_seed(1)
    return models.token_model(len(tasks.build(OPTIONS).prepare(None)), **MODEL)


def measure(model, batch_size, state=None, mode="qa"):
    return Answers().evaluate(model, tasks.build({**OPTIONS, "mode": mode}), None, "valid", batch_size, state)


@pytest.mark.parametrize("mode", ["qa", "lm"])
def test_the_batch_size_changes_no_count(mode):
    model = tiny()
    one, three, many = (measure(model, batch_size, mode=mode) for batch_size in (1, 3, 20))
    for other in (three, many):
        assert other["questions"] == one["questions"] > 0
        assert other["tokens"] == one["tokens"]
        counts = [{group: row["questions"] for group, row in m["groups"].items()} for m in (one, other)]
        assert counts[0] == counts[1]
    assert set(one["groups"]) == {"1", "2", "6"}


def test_rows_without_a_story_change_nothing():
    model = tiny()
    stories = len(tasks.build(OPTIONS).evaluation_stories(None, "valid"))
    metrics, more = measure(model, stories), measure(model, stories + 5)
    assert more["answer_perplexity"] == pytest.approx(metrics["answer_perplexity"])
    assert more["groups"] == metrics["groups"]


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
    model = models.token_model(180, **recipe.model)
    assert measure(model, 2) == measure(model, 2)


def test_progress_is_reported_in_tokens():
    counts = []
    task = tasks.build(OPTIONS)
    metrics = Answers().evaluate(tiny(), task, None, "valid", 2, on_progress=counts.append)
    assert sum(counts) == metrics["tokens"] == Answers().evaluation_counts(task, None, "valid")["tokens"]


def test_episodes_are_refused():
    with pytest.raises(UserError, match="Episodes are for agents"):
        Answers().evaluate(tiny(), tasks.build(OPTIONS), None, "valid", 2, episodes=3)


def test_the_table_has_a_line_for_each_group_and_one_for_all():
    metrics = evaluate(Table(MODEL_BY_HAND), BATCHES_BY_HAND)
    headings, *lines, total = Answers().table(metrics, tasks.build(OPTIONS))
    assert headings == ["group", "questions", "accuracy", ""]
    assert [line[0].split()[0] for line in lines] == ["5", "7"]
    assert [line[1:3] for line in lines] == [["3", "33.3%"], ["1", "100.0%"]]
    assert total == ["all", "4", "50.00%", "perplexity 3.364"]
