"""Associative retrieval as a task: its batches, its epochs, its cursor, and what it refuses."""

from itertools import islice

import pytest
import torch

from fastweights import tasks
from fastweights.errors import UserError
from fastweights.tasks import Retrieval

SMALL = {"pairs": 3, "examples": 10, "validation_examples": 7, "test_examples": 5}


def texts(task: Retrieval, batch) -> list[str]:
    """Each row's tokens that are no padding."""
    vocabulary = task.prepare(None)
    return ["".join(vocabulary.decode(row[mask].tolist())) for row, mask in zip(batch.inputs, batch.mask, strict=True)]


@pytest.mark.parametrize(("mode", "asked", "length"), [("art", 1, 9), ("mart", 1, 9), ("multi-query-art", 3, 11)])
def test_what_a_batch_holds(mode, asked, length):
    task = Retrieval(mode=mode, **SMALL)
    batch = next(task.training_batches(None, 4, 0))
    assert task.segment_length == length and len(task.prepare(None)) == 37
    assert all(tensor.shape == (4, length) for tensor in batch[:6])
    assert batch.resets is None and batch.lr_scale == 1.0
    assert batch.inputs.dtype == batch.targets.dtype == batch.groups.dtype == torch.int64
    assert batch.mask.all() and torch.equal(batch.loss_mask, batch.answer_mask)
    assert batch.answer_mask.sum(1).tolist() == [asked] * 4 and batch.answer_mask[:, -asked:].all()
    for text, wanted, places in zip(texts(task, batch), batch.targets, batch.groups, strict=True):
        keys, values = (text[:3], text[3:6]) if mode == "mart" else (text[:6:2], text[1:6:2])
        assert text[6:8] == "??" and len(set(keys)) == 3
        for key, target, place in zip(text[-asked:], wanted[-asked:].tolist(), places[-asked:].tolist(), strict=True):
            assert key == keys[place - 1] and task.prepare(None).words[target] == values[place - 1]


def test_shorter_sequences_are_padded():
    task = Retrieval(delay="0-4", segment_length=20, **SMALL)
    batch = next(task.training_batches(None, 10, 0))
    assert batch.inputs.shape == (10, 20)
    assert {len(text) for text in texts(task, batch)} <= set(range(9, 14))
    assert (batch.answer_mask <= batch.mask).all() and batch.answer_mask.sum() == 10
    assert {task.group_names()[group] for group in batch.groups[batch.answer_mask].tolist()} <= {
        f"delay {delay}, pair {pair} of 3" for delay in range(5) for pair in (1, 2, 3)
    }


def test_an_epoch_has_every_example_once_in_another_order():
    task = Retrieval(**SMALL)
    rows = [text for batch in islice(task.training_batches(None, 4, 0), 5) for text in texts(task, batch)]
    assert sorted(rows[:10]) == sorted(rows[10:]) and rows[:10] != rows[10:]
    other = [text for batch in islice(task.training_batches(None, 4, 1), 5) for text in texts(task, batch)]
    assert sorted(other[:10]) != sorted(rows[:10])


@pytest.mark.parametrize("batch_size", [1, 3, 20])
@pytest.mark.parametrize(("split", "count"), [("valid", 7), ("test", 5)])
def test_evaluation_asks_each_example_once(split, count, batch_size):
    task = Retrieval(delay="0-2", **SMALL)
    batches = list(task.evaluation_batches(None, split, batch_size))
    assert all(batch.inputs.shape == (batch_size, task.segment_length) for batch in batches)
    counts = task.evaluation_counts(None, split)
    assert counts == {"sequences": count, "tokens": sum(int(batch.mask.sum()) for batch in batches)}
    assert sum(int(batch.answer_mask.sum()) for batch in batches) == count
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
        assert all(map(torch.equal, first[:6], second[:6]))
    with pytest.raises(UserError, match="cursor is of 10 examples and this run has 7"):
        Retrieval(**SMALL | {"examples": 7}).training_batches(None, 4, 3).load_state_dict(batches.state_dict())


def test_a_shard_is_some_of_the_rows():
    task = Retrieval(**SMALL)
    whole, part = task.training_batches(None, 4, 0), task.training_batches(None, 4, 0, slice(2, 4))
    for _ in range(4):
        assert all(
            torch.equal(rows, all_rows[2:]) for rows, all_rows in zip(next(part)[:6], next(whole)[:6], strict=True)
        )
    assert whole.state_dict() == part.state_dict()


def test_the_task_says_what_is_read():
    assert Retrieval().describe(None) == "100,000 generated sequences (art): 8 pairs, queries: 1"
    assert Retrieval(mode="multi-query-art", pairs=4).describe(None).endswith("(multi-query-art): 4 pairs, queries: 4")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pairs": 27}, "27 pairs need 27 different keys, and there are 26; give more keys"),
        ({"pairs": 0}, 'pairs of the task "retrieval" is 0; it must be greater than or equal to 1'),
        ({"values": 0}, 'values of the task "retrieval" is 0'),
        ({"examples": 0}, 'examples of the task "retrieval" is 0; it must be greater than or equal to 1'),
        ({"validation_examples": 0}, 'validation_examples of the task "retrieval" is 0'),
        ({"queries": 9}, "queries is 9; it must lie between 1 and the number of pairs, 8"),
        ({"queries": -1}, 'queries of the task "retrieval" is -1'),
        ({"delay": "8-2"}, 'delay is "8-2"; it must be a number such as 4, or a range'),
        ({"delay": -1}, 'delay is "-1"'),
        ({"delay": "soon"}, 'delay is "soon"'),
        ({"delay": "0-9", "segment_length": 20}, "a delay of 9 and the queries take 28 tokens, which do not fit"),
        ({"mode": "mrat"}, "mode of the task \"retrieval\" is 'mrat'; it must be 'art', 'mart' or 'multi-query-art'"),
        ({"babi_tasks": "1"}, 'task "retrieval" has no option "babi_tasks"'),
        ({"pairs": 2.5}, 'pairs of the task "retrieval" is 2.5; it must be a valid integer'),
        ({"pairs": True}, 'pairs of the task "retrieval" is True'),
        ({"delay": [1]}, r'delay of the task "retrieval" is \[1\]'),
    ],
)
def test_what_makes_no_sense_is_refused(options, message):
    with pytest.raises(UserError, match=message) as caught:
        tasks.build({"type": "retrieval", **options})
    assert "\n" not in str(caught.value)


def test_there_are_no_files():
    with pytest.raises(UserError, match="are generated; leave --data out"):
        Retrieval().training_batches("folder", 2, 0)
    for read in (
        lambda: Retrieval().prepare("folder"),
        lambda: Retrieval().evaluation_batches("folder", "valid", 2),
        lambda: Retrieval().evaluation_counts("folder", "valid"),
    ):
        with pytest.raises(UserError, match="are generated; leave --data out"):
            read()


def test_a_vocabulary_encodes_characters():
    vocabulary = Retrieval().prepare(None)
    assert vocabulary.decode(vocabulary.encode("c9 k8\nC??")) == list("c9k8c??")
    with pytest.raises(UserError, match=r'The word "!" \(line 2, column 2\) is not in the vocabulary of 37 words'):
        vocabulary.encode("c9\nk!")


def test_more_keys_are_another_vocabulary():
    Retrieval(pairs=20).restore(Retrieval().prepare(None))
    with pytest.raises(UserError, match="with a vocabulary of 37 tokens, and the task has a vocabulary of 41 tokens"):
        Retrieval(keys=30).restore(Retrieval().prepare(None))
