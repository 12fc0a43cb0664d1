"""A fixed sample of killed runs; `python tests/kills.py` kills as many as one likes."""

import os

import pytest

import kills

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")


def test_a_sample_of_killed_runs_leaves_the_files_of_whole_ones(tmp_path):
    outcomes = kills.attack(kills.alone, 4, seed=1, folder=tmp_path, kinds=list(kills.KINDS))
    assert not [outcome for outcome in outcomes if outcome.different]
    assert sum(outcome.kills for outcome in outcomes) >= 4
