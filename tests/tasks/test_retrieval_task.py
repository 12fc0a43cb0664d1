"""Associative retrieval as a task: its batches, its epochs, its cursor, and what it refuses."""

from itertools import islice

import pytest
import torch

from fastweights import tasks
from fastweights.errors import UserError
from fastweights.tasks import Retrieval

SMALL = {"pairs": 3, "examples": 10, "validation_examples": 7, "test_examples": 5}


def texts(task: Retrieval, batch) -> list[str]:
    """Each row's valid tokens."""
    return [
        "".join(task.vocabulary()[token] for token in row[valid].tolist())
        for row, valid in zip(batch.inputs, batch.valid, strict=True)
    ]


@pytest.mark.parametrize(("mode", "asked", "length"), [("art", 1, 9), ("mart", 1, 9), ("mqar", 3, 11)])
def test_what_a_batch_holds(mode, asked, length):
    task = Retrieval(mode=mode, **SMALL)
    batch = next(task.training_batches(None, 4, 0))
    assert task.segment_length == length and task.vocabulary_size == 37
    assert all(tensor.shape == (4, length) for tensor in batch)
    assert batch.inputs.dtype == batch.targets.dtype == batch.groups.dtype == torch.int64
    assert batch.valid.all() and torch.equal(batch.reads, batch.answers)
    assert batch.answers.sum(1).tolist() == [asked] * 4 and batch.answers[:, -asked:].all()
    for text, wanted, places in zip(texts(task, batch), batch.targets, batch.groups, strict=True):
        keys, values = (text[:3], text[3:6]) if mode == "mart" else (text[:6:2], text[1:6:2])
        assert text[6:8] == "??" and len(set(keys)) == 3
        for key, target, place in zip(text[-asked:], wanted[-asked:].tolist(), places[-asked:].tolist(), strict=True):
            assert key == keys[place - 1] and task.vocabulary()[target] == values[place - 1]


def test_shorter_sequences_are_padded():
    task = Retrieval(delay="0-4", segment_length=20, **SMALL)
    batch = next(task.training_batches(None, 10, 0))
    assert batch.inputs.shape == (10, 20)
    assert {len(text) for text in texts(task, batch)} <= set(range(9, 14))
    assert (batch.answers <= batch.valid).all() and batch.answers.sum() == 10
    assert {task.group_names()[group] for group in batch.groups[batch.answers].tolist()} <= {
        f"delay {delay}, pair {pair} of 3" for delay in range(5) for pair in (1, 2, 3)
    }


def test_an_epoch_has_every_example_once_in_another_order():
    task = Retrieval(**SMALL)
    rows = [text for batch in islice(task.training_batches(None, 4, 0), 5) for text in texts(task, batch)]
    assert sorted(rows[:10]) == sorted(rows[10:]) and rows[:10] != rows[10:]
    other = [text for batch in islice(task.training_batches(None, 4, 1), 5) for text in texts(task, batch)]
    assert sorted(other[:10]) != sorted(rows[:10])


@pytest.mark.parametrize("rows", [1, 3, 20])
@pytest.mark.parametrize(("split", "count"), [("valid", 7), ("test", 5)])
def test_evaluation_asks_each_example_once(split, count, rows):
    task = Retrieval(delay="0-2", **SMALL)
    batches = list(task.evaluation_batches(None, split, rows))
    assert all(batch.inputs.shape == (rows, task.segment_length) for batch in batches)
    counts = task.evaluation_counts(None, split)
    assert counts == {"sequences": count, "tokens": sum(int(batch.valid.sum()) for batch in batches)}
    assert sum(int(batch.answers.sum()) for batch in batches) == count
    found = [text for batch in batches for text in texts(task, batch) if text]
    assert found == [text for batch in task.evaluation_batches(None, split, count) for text in texts(task, batch)]


def test_batches_go_on_from_a_saved_cursor():
    task = Retrieval(**SMALL)
    batches = task.training_batches(None, 4, seed=3)
    for _ in range(4):
        next(batches)
    again = task.training_batches(None, 4, seed=3)
    again.load_state_dict(batches.state_dict())
    for first, second in zip(islice(batches, 4), islice(again, 4), strict=True):
        assert all(map(torch.equal, first, second))
    with pytest.raises(UserError, match="cursor is of 10 examples and this run has 7"):
        Retrieval(**SMALL | {"examples": 7}).training_batches(None, 4, 3).load_state_dict(batches.state_dict())


def test_a_share_is_some_of_the_rows():
    task = Retrieval(**SMALL)
    whole, part = task.training_batches(None, 4, 0), task.training_batches(None, 4, 0, slice(2, 4))
    for _ in range(4):
        assert all(torch.equal(rows, all_rows[2:]) for rows, all_rows in zip(next(part), next(whole), strict=True))
    assert whole.state_dict() == part.state_dict()


def test_the_task_says_what_is_read():
    assert Retrieval().describe(None) == "100,000 generated sequences (art): 8 pairs, one asked"
    assert Retrieval(mode="mqar", pairs=4).describe(None).endswith("(mqar): 4 pairs, 4 asked")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pairs": 27}, "27 pairs need 27 different keys, and there are 26; give more keys"),
        ({"pairs": 0}, "pairs is 0; it must be at least 1"),
        ({"values": 0}, "values is 0"),
        ({"examples": 0}, "examples is 0; it must be at least 1"),
        ({"validation_examples": 0}, "validation_examples is 0"),
        ({"queries": 9}, "queries is 9; it must lie between 1 and the number of pairs, 8"),
        ({"queries": -1}, "queries is -1"),
        ({"delay": "8-2"}, 'delay is "8-2"; it must be a number such as 4, or a range'),
        ({"delay": -1}, 'delay is "-1"'),
        ({"delay": "soon"}, 'delay is "soon"'),
        ({"delay": "0-9", "segment_length": 20}, "a delay of 9 and what is asked take 28 tokens, which do not fit"),
        ({"mode": "mrat"}, 'mode is "mrat"; it must be "art", "mart" or "mqar"'),
        ({"tasks": "1"}, 'task "retrieval" has no option "tasks"'),
    ],
)
def test_what_makes_no_sense_is_refused(options, message):
    with pytest.raises(UserError, match=message) as caught:
        tasks.build({"type": "retrieval", **options})
    assert "\n" not in str(caught.value)


def test_there_are_no_files():
    with pytest.raises(UserError, match="are generated; leave --data out"):
        Retrieval().training_batches("folder", 2, 0)
