"""catbAbI as a task: what its batches hold, which stories they come from."""

import os
from itertools import islice
from pathlib import Path

import pytest
import torch

from fastweights import tasks
from fastweights.data import babi
from fastweights.data.generate import GENERATORS, generate_story
from fastweights.errors import UserError
from fastweights.tasks import CatBabi

STORY = "1 Mary moved to the bathroom.\n2 Where is Mary? \tbathroom\t1\n"


@pytest.fixture
def folder(tmp_path):
    for task in (1, 2):
        for split in ("train", "valid", "test"):
            (tmp_path / f"qa{task}_{split}.txt").write_text(STORY * 3)
    return str(tmp_path)


def words(batch, where):
    return [babi.VOCABULARY[number] for number in batch.inputs[where]]


@pytest.mark.parametrize("mode", ["qa", "lm"])
def test_what_a_batch_holds(folder, mode):
    task = CatBabi(mode=mode, babi_tasks="2", segment_length=13)
    batch = next(task.evaluation_batches(folder, "valid", 2))
    assert all(tensor.shape == (2, 13) for tensor in batch[:6])
    assert batch.resets is None and batch.lr_scale == 1.0
    story = ["<eos>", "mary", "moved", "to", "the", "bathroom", ".", "where", "is", "mary", "?", "bathroom"]
    read = [babi.VOCABULARY[number] for number in batch.inputs[0]]
    assert read == [*story, "<eos>"]
    assert words(batch, batch.answer_mask) == ["?", "?"]
    assert {babi.VOCABULARY[number] for number in batch.targets[batch.answer_mask]} == {"bathroom"}
    assert batch.mask.tolist() == [[True] * 13, [True] * 12 + [False]]
    assert torch.equal(batch.loss_mask, batch.answer_mask if mode == "qa" else batch.mask)
    assert batch.groups[batch.mask].unique().tolist() == [2]
    assert torch.equal(batch.targets[0, :-1], batch.inputs[0, 1:])
    assert batch.inputs.dtype == batch.targets.dtype == torch.int64
    assert batch.loss_mask.dtype == batch.mask.dtype == batch.answer_mask.dtype == torch.bool


@pytest.mark.parametrize("data", [None, "files"])
def test_answer_mask_lies_within_loss_mask_and_loss_mask_within_mask(folder, data):
    for mode in ("qa", "lm"):
        task = CatBabi(mode=mode, babi_tasks="1,2", segment_length=7)
        for batch in islice(task.training_batches(data and folder, 3, 0), 10):
            assert (batch.answer_mask <= batch.loss_mask).all()
            assert (batch.loss_mask <= batch.mask).all()


def test_batches_go_on_from_a_saved_cursor(folder):
    task = CatBabi(babi_tasks="1,2", segment_length=7)
    for data in (None, folder):
        batches = task.training_batches(data, 2, seed=3)
        for _ in range(5):
            next(batches)
        cursor = batches.state_dict()
        again = task.training_batches(data, 2, seed=3)
        again.load_state_dict(cursor)
        for first, second in zip(islice(batches, 5), islice(again, 5), strict=True):
            assert all(map(torch.equal, first[:6], second[:6])) and first[6:] == second[6:]


def test_the_seed_decides_the_training_stories():
    task = CatBabi(babi_tasks="1,2", segment_length=50)
    first, same, other = (next(task.training_batches(None, 2, seed)).inputs for seed in (0, 0, 1))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_vocabularies(folder):
    vocabulary, published = CatBabi().prepare(None), CatBabi(as_published=True).prepare(None)
    assert len(vocabulary) == len(vocabulary.words) == 180
    assert len(published) == len(published.words) == 200
    assert published.words[:180] == vocabulary.words
    assert CatBabi().prepare(folder) == vocabulary


def test_a_vocabulary_encodes_the_text_of_a_story(folder):
    vocabulary = CatBabi().prepare(None)
    batch = next(CatBabi(babi_tasks="1", segment_length=11).evaluation_batches(folder, "valid", 1))
    tokens = vocabulary.encode("Mary moved to the bathroom.\nWhere is Mary?")
    assert tokens.tolist() == batch.inputs[0, 1:].tolist()
    assert vocabulary.decode(tokens) == ["mary", "moved", "to", "the", "bathroom", ".", "where", "is", "mary", "?"]


def test_another_vocabulary_than_a_models_is_refused():
    CatBabi().restore(CatBabi(babi_tasks="1").prepare(None))
    message = "The model was trained with a vocabulary of 200 tokens, and the task has a vocabulary of 180 tokens; set"
    with pytest.raises(UserError, match=message):
        CatBabi().restore(CatBabi(as_published=True).prepare(None))


def test_as_published_loses_the_last_story_of_each_file(folder):
    assert len(CatBabi(babi_tasks="1,2").evaluation_stories(folder, "valid")) == 6
    assert len(CatBabi(babi_tasks="1,2", as_published=True).evaluation_stories(folder, "valid")) == 4


def test_which_tasks_are_read():
    assert CatBabi().babi_tasks == tuple(sorted(GENERATORS)) == tuple(range(1, 21))
    assert CatBabi(babi_tasks="1-3,6").babi_tasks == (1, 2, 3, 6)
    assert tasks.build({"type": "catbabi", "babi_tasks": 6}).babi_tasks == (6,)  # YAML reads one task as a number


def test_a_split_that_is_not_generated_is_refused():
    with pytest.raises(UserError, match='splits "valid" and "test", not "train"'):
        CatBabi(babi_tasks="1").evaluation_stories(None, "train")


def test_missing_files_are_named_with_the_way_to_go_on_without(folder):
    (Path(folder) / "qa2_train.txt").unlink()
    with pytest.raises(
        UserError, match=r"does not hold qa2_train.txt; leave the missing ones out with --babi-tasks 1 "
    ):
        CatBabi(babi_tasks="1,2").training_batches(folder, 2, 0)
    next(CatBabi(babi_tasks="1").training_batches(folder, 2, 0))


def test_generated_splits_are_the_same_each_time_and_no_training_stories():
    task = CatBabi(babi_tasks="1,2,6", validation_stories=20)
    valid, test = task.evaluation_stories(None, "valid"), task.evaluation_stories(None, "test")
    assert valid == CatBabi(babi_tasks="1,2,6", validation_stories=20).evaluation_stories(None, "valid")
    assert len(valid) == len(test) == 60
    assert not set(valid) & set(test)
    training = {generate_story(task, seed, index) for task in (1, 2, 6) for seed in (0, 1) for index in range(100)}
    assert not training & set(valid)
    assert [story.babi_task for story in valid] == [1] * 20 + [2] * 20 + [6] * 20


def test_evaluation_reads_each_story_once(folder):
    task = CatBabi(babi_tasks="1,2", segment_length=5)
    tokens = sum(int(batch.mask.sum()) for batch in task.evaluation_batches(folder, "test", 4))
    assert tokens == 6 * 12


@pytest.mark.parametrize(("mode", "shown"), [("qa", "QA mode"), ("lm", "LM mode")])
def test_the_task_says_what_is_read(mode, shown):
    task = CatBabi(mode=mode, babi_tasks="1-3")
    assert shown in task.describe(None) and "1-3" in task.describe(None) and "generated" in task.describe(None)
    assert "en-valid-10k" in task.describe("en-valid-10k")
    assert task.group_names()[1] == "one supporting fact"


def test_a_mode_that_does_not_exist():
    with pytest.raises(UserError, match="mode of the task \"catbabi\" is 'ml'; it must be 'qa' or 'lm'"):
        tasks.build({"type": "catbabi", "mode": "ml"})


@pytest.mark.skipif("FASTWEIGHTS_DATA" not in os.environ, reason="FASTWEIGHTS_DATA names no folder with bAbI's files")
def test_the_real_files():
    data = str(Path(os.environ["FASTWEIGHTS_DATA"]) / "babi" / "en-valid-10k")
    task = CatBabi(babi_tasks="4,15")
    batch = next(task.training_batches(data, 8, 0))
    assert batch.mask.all() and set(batch.groups.unique().tolist()) == {4, 15}
    assert batch.answer_mask.sum() > 8
