"""MQAR sequences: Zoology's form, distributions of keys and gaps, reproducible examples."""

import numpy as np
import pytest

from fastweights.data.mqar import CHUNK, MQARExamples, MQARForm
from fastweights.data.retrieval import take

FORMS = [
    MQARForm(length=64, pairs=4),
    MQARForm(length=64, pairs=16, random_non_queries=False),
    MQARForm(vocabulary_size=65, length=64, pairs=16),
]


def test_the_example_of_zoology():
    """The sequence in the docstring of `multiquery_ar`, without its last zeros."""
    form = MQARForm(vocabulary_size=15, length=14, pairs=2, random_non_queries=False)
    filler = np.zeros((1, 14), np.uint8)
    sequences = form.lay_out(MQARExamples(*map(np.array, ([[2, 4]], [[8, 7]], [[4, 1]])), filler))
    assert sequences.inputs[0].tolist() == [2, 8, 4, 7, 0, 0, 4, 0, 0, 0, 0, 0, 2, 0]
    assert sequences.targets[0][sequences.output_mask[0]].tolist() == [7, 8]
    assert sequences.groups[0].tolist() == [0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 4, 0]
    assert sequences.mask.all()
    assert form.difficulty_names() == {1: "gap 0", 2: "gap 1", 3: "gap 2-3", 4: "gap 4"}


@pytest.mark.parametrize("form", FORMS, ids=["sparse", "full", "small-vocabulary"])
def test_the_inputs_alone_answer_every_query(form):
    sequences = form.lay_out(form.draw(500, "train"))
    first_value = form.vocabulary_size // 2
    for inputs, targets, asked in zip(sequences.inputs, sequences.targets, sequences.output_mask, strict=True):
        keys, values = inputs[: 2 * form.pairs : 2].tolist(), inputs[1 : 2 * form.pairs : 2].tolist()
        assert len(set(keys)) == len(set(values)) == form.pairs
        assert min(keys) >= 1 and max(keys) < first_value <= min(values) and max(values) < form.vocabulary_size
        positions = asked.nonzero()[0]
        assert (positions >= 2 * form.pairs).all() and (positions % 2 == 0).all()
        assert sorted(inputs[positions].tolist()) == sorted(keys)  # each key is queried once
        value_of = dict(zip(keys, values, strict=True))
        assert [value_of[key] for key in inputs[positions].tolist()] == targets[positions].tolist()
        assert (targets[~asked] == inputs[~asked]).all()
    assert set(np.unique(sequences.groups)) == {0, *form.difficulty_names()}
    assert form.token_count(form.draw(3, "train")) == 3 * form.length


def test_filler_is_any_token_or_zero():
    form = MQARForm(vocabulary_size=65, length=64, pairs=4)
    sequences = form.lay_out(form.draw(2000, "train"))
    positions = ~sequences.output_mask & (np.arange(64) >= 8)
    counts = np.bincount(sequences.inputs[positions], minlength=65)
    assert counts / counts.sum() == pytest.approx(np.full(65, 1 / 65), rel=0.1)
    keys = sequences.inputs[:, :8:2, None]
    assert ((sequences.inputs[:, None] == keys).any(1) & positions).any()  # keys of the sequence, too, as in Zoology
    blank = MQARForm(length=64, pairs=4, random_non_queries=False)
    sequences = blank.lay_out(blank.draw(100, "train"))
    assert ((sequences.inputs == 0) == (~sequences.output_mask & (np.arange(64) >= 8))).all()


@pytest.mark.parametrize("power_a", [0.01, 0.5, 1.0])
def test_gaps_are_distributed_as_by_numpys_choice(power_a):
    """Zoology draws them with `choice(space, size=num_kv_pairs, replace=False, p=p)`, key after key."""
    form, count = MQARForm(length=64, pairs=8, power_a=power_a), 6000
    gaps = form.draw(count, "train").gaps.astype(int)
    weights = power_a * np.arange(1, 25) ** (power_a - 1)
    rng = np.random.default_rng(0)
    expected = np.stack([rng.choice(24, size=8, replace=False, p=weights / weights.sum()) for _ in range(count)])
    assert form.gap_probabilities() == pytest.approx(weights / weights.sum())
    for one, other in ((gaps[:, 0], expected[:, 0]), (gaps[:, 7], expected[:, 7]), (gaps, expected)):
        one, other = (np.bincount(drawn.ravel(), minlength=24) / drawn.size for drawn in (one, other))
        assert one == pytest.approx(other, abs=0.02)
    assert (np.bincount(gaps[:, 0], minlength=24) / count) == pytest.approx(form.gap_probabilities(), abs=0.02)


def test_keys_and_values_are_uniform():
    form = MQARForm(vocabulary_size=66, length=64, pairs=16)  # half of the keys in each sequence
    examples = form.draw(4000, "train")
    for drawn, low, high in ((examples.keys, 1, 33), (examples.values, 33, 66)):
        for tokens in (drawn[:, 0], drawn[:, 15], drawn):
            counts = np.bincount(tokens.ravel(), minlength=66)
            assert counts[:low].sum() == counts[high:].sum() == 0
            assert counts[low:high] / counts.sum() == pytest.approx(np.full(high - low, 1 / (high - low)), abs=0.012)


def test_an_example_depends_on_seed_and_number_only():
    form = MQARForm(length=64, pairs=4)
    many, few = form.draw(2 * CHUNK + 3, "train", 1), form.draw(CHUNK + 1, "train", 1)
    assert len(many.keys) == 2 * CHUNK + 3
    for every, some in zip(many, few, strict=True):
        assert (every[: CHUNK + 1] == some).all()
    assert (many.keys[:CHUNK] != many.keys[CHUNK : 2 * CHUNK]).any()
    whole, part = form.lay_out(many), form.lay_out(take(many, np.array([CHUNK, 5])))
    assert all((some == every[[CHUNK, 5]]).all() for some, every in zip(part, whole, strict=True))
    assert len(form.draw(0, "train").keys) == 0

    def drawn(split, seed):
        return str([part.tolist() for part in form.draw(20, split, seed)])

    assert drawn("train", 0) == drawn("train", 0) != drawn("train", 1)
    assert drawn("valid", 0) == drawn("valid", 1)
    assert len({drawn(split, 0) for split in ("train", "valid", "test")}) == 3


def test_examples_are_small():
    assert all(part.dtype == np.uint16 for part in MQARForm().draw(10, "train"))


def test_the_vocabulary():
    names = MQARForm(vocabulary_size=8192).vocabulary()
    assert len(names) == len(set(names)) == 8192
    assert (names[0], names[1], names[4095], names[4096], names[8191]) == (
        "<blank>",
        "key1",
        "key4095",
        "value4096",
        "value8191",
    )


def test_names_of_groups_are_ranges_of_gaps():
    assert MQARForm(length=4, pairs=1).difficulty_names() == {1: "gap 0"}
    assert MQARForm(length=64, pairs=8).difficulty_names() == {
        1: "gap 0",
        2: "gap 1",
        3: "gap 2-3",
        4: "gap 4-7",
        5: "gap 8-15",
        6: "gap 16-23",
    }


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"pairs": 0}, "pairs is 0"),
        ({"length": 63}, "length is 63; 8 pairs and their queries need an even number of at least 32 tokens"),
        ({"length": 30}, "length is 30"),
        ({"vocabulary_size": 64}, "vocabulary_size is 64; it must be larger than the length, 64"),
        ({"power_a": 0.0}, "power_a is 0.0; it must be positive"),
    ],
)
def test_impossible_forms_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        MQARForm(**wrong)
