"""Sequences of associative retrieval: layout, draws, names of the groups."""

import numpy as np
import pytest

from fastweights.data.retrieval import ARTExamples, ARTForm, take

BY_HAND = ARTExamples(*map(np.array, ([[2, 10, 9, 5]], [[9, 8, 3, 1]], [[2, 0]], [1])))  # c9 k8 j3 f1; queries j, c


def form(**changes) -> ARTForm:
    options = {"pairs": 4, "queries": 2, "keys": 26, "values": 10, "shortest_delay": 0, "longest_delay": 2}
    return ARTForm(**options | {"keys_first": False} | changes)


def text(form: ARTForm, tokens: np.ndarray) -> str:
    return "".join(form.vocabulary()[token] for token in tokens)


@pytest.mark.parametrize(
    ("changes", "inputs", "targets"),
    [
        ({}, "c9k8j3f1???jc?", "c9k8j3f1???39?"),
        ({"keys_first": True}, "ckjf9831???jc?", "ckjf9831???39?"),
        ({"longest_delay": 1}, "c9k8j3f1???jc", "c9k8j3f1???39"),
    ],
)
def test_how_an_example_is_laid_out(changes, inputs, targets):
    chosen = form(**changes)
    sequences = chosen.lay_out(BY_HAND)
    assert text(chosen, sequences.inputs[0]) == inputs
    assert text(chosen, sequences.targets[0]) == targets
    assert sequences.mask[0].tolist() == [place < 13 for place in range(len(inputs))]
    asked = {place: group for place, group in enumerate(sequences.groups[0].tolist()) if group}
    assert asked == {11: 4 + 3, 12: 4 + 1}  # delay 1, pairs 3 and 1
    names = chosen.difficulty_names()
    assert (names[7], names[5]) == ("delay 1, pair 3 of 4", "delay 1, pair 1 of 4")
    assert chosen.length == len(inputs)
    assert sequences.output_mask[0].nonzero()[0].tolist() == [11, 12]
    assert chosen.token_count(BY_HAND) == sequences.mask.sum() == 13


def test_names_tell_the_delay_only_where_it_varies():
    assert form(longest_delay=0).difficulty_names() == {n: f"pair {n} of 4" for n in range(1, 5)}
    assert len(form().difficulty_names()) == 3 * 4


def test_the_vocabulary():
    assert "".join(form().vocabulary()) == "abcdefghijklmnopqrstuvwxyz0123456789?"
    large = form(keys=30, values=12).vocabulary()
    assert len(large) == len(set(large)) == 43


def test_what_is_drawn():
    chosen = form()
    examples = chosen.draw(2000, "train", seed=1)
    for drawn, count in ((examples.keys, 26), (examples.queries, 4)):
        assert all(len(set(row)) == len(row) for row in drawn.tolist())  # all different
        assert set(drawn.flatten().tolist()) == set(range(count))
    assert set(examples.values.flatten().tolist()) == set(range(10))
    assert any(len(set(row)) < 4 for row in examples.values.tolist())  # values repeat
    assert set(examples.delays.tolist()) == {0, 1, 2}
    assert set(chosen.lay_out(examples).groups.flatten().tolist()) == set(range(13))


def test_some_examples_are_taken_by_number():
    chosen = form()
    examples = chosen.draw(20, "train")
    whole, part = chosen.lay_out(examples), chosen.lay_out(take(examples, np.array([7, 3])))
    assert all((some == every[[7, 3]]).all() for some, every in zip(part, whole, strict=True))


def test_the_seed_decides_training_and_nothing_else():
    def drawn(split, seed):
        return form().draw(50, split, seed).keys.tolist()

    assert drawn("train", 0) == drawn("train", 0) != drawn("train", 1)
    assert drawn("valid", 0) == drawn("valid", 1)
    assert len({str(drawn(split, 0)) for split in ("train", "valid", "test")}) == 3
