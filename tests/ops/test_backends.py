import pytest

from fastweights.ops import fw_lstm, fw_rnn, fwm, lstm
from fastweights.ops.backends import PREFERENCE, Backend, choose, explain


def test_auto_is_the_first_preference_that_is_there():
    assert choose("op", {"reference": Backend(print), "plain": Backend(print)}) == "plain"
    assert choose("op", {"reference": Backend(print)}) == "reference"
    refusing = Backend(print, lambda *question: "it is broken")
    assert choose("op", {"reference": Backend(print), "plain": refusing}) == "reference"


@pytest.mark.parametrize("name", ["reference", "plain"])
def test_an_explicit_choice_is_kept(name):
    assert choose("op", {"reference": Backend(print), "plain": Backend(print)}, name) == name


def test_an_explicit_choice_that_is_not_there_is_an_error():
    with pytest.raises(ValueError, match=r'op has no backend "plain".*it has: reference'):
        choose("op", {"reference": Backend(print)}, "plain")


def test_an_explicit_choice_that_cannot_run_is_an_error():
    with pytest.raises(ValueError, match=r'op cannot run with backend "plain": it is broken; "auto"'):
        choose("op", {"plain": Backend(print, lambda *question: "it is broken")}, "plain")


@pytest.mark.parametrize("op", [fwm, lstm, fw_lstm, fw_rnn])
def test_every_backend_has_a_rank(op):
    assert set(op.BACKENDS) <= set(PREFERENCE)


@pytest.mark.parametrize("op", [fwm, lstm, fw_lstm, fw_rnn])
def test_the_explanation_names_each_backend_and_the_chosen_one(op):
    explanation = explain("op", op.BACKENDS)
    assert {entry["name"] for entry in explanation} == set(op.BACKENDS)
    assert [entry["name"] for entry in explanation if entry["chosen"]] == [choose("op", op.BACKENDS)]
    assert all(entry["reason"] for entry in explanation)
