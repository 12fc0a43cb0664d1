"""A fixed sample of hostile inputs; `python tests/hostile_inputs.py` makes as many as one likes."""

from collections import Counter

from hostile_inputs import attacks, fine


def test_a_sample_ends_in_a_result_or_in_a_sentence(tmp_path):
    outcomes = attacks(200, seed=1, folder=str(tmp_path))
    faults = [outcome for outcome in outcomes if not fine(outcome)]
    assert not faults, faults
    assert Counter(outcome.kind for outcome in outcomes)["code 2"] > 80
