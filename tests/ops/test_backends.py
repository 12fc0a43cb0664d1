import pytest

from fastweights.ops import fw_lstm, fw_rnn, fwm, lstm, mnm, relative_attention
from fastweights.ops.backends import PREFERENCE, Backend, choose, explain


def test_auto_is_the_first_preference_that_is_there():
    assert choose("op", {"reference": Backend(print), "plain": Backend(print)}) == "plain"
    assert choose("op", {"reference": Backend(print)}) == "reference"
    broken = Backend(print, lambda device, *arguments: "it is broken")
    assert choose("op", {"reference": Backend(print), "plain": broken}) == "reference"


@pytest.mark.parametrize("name", ["reference", "plain"])
def test_an_explicit_choice_is_kept(name):
    assert choose("op", {"reference": Backend(print), "plain": Backend(print)}, name) == name


def test_an_explicit_choice_that_is_not_there_is_an_error():
    with pytest.raises(ValueError, match=r'op has no backend "plain".*it has: reference'):
        choose("op", {"reference": Backend(print)}, "plain")


def test_an_explicit_choice_that_cannot_run_is_an_error():
    with pytest.raises(ValueError, match=r'op cannot run with backend "plain": it is broken; "auto"'):
        choose("op", {"plain": Backend(print, lambda device, *arguments: "it is broken")}, "plain")


@pytest.mark.parametrize("op", [fwm, lstm, fw_lstm, fw_rnn, mnm, relative_attention])
def test_every_backend_has_a_rank(op):
    assert set(op.BACKENDS) <= set(PREFERENCE)


@pytest.mark.parametrize("op", [fwm, lstm, fw_lstm, fw_rnn, mnm, relative_attention])
def test_the_explanation_names_each_backend_and_the_chosen_one(op):
    explanation = explain("op", op.BACKENDS)
    assert {entry["name"] for entry in explanation} == set(op.BACKENDS)
    assert [entry["name"] for entry in explanation if entry["chosen"]] == [choose("op", op.BACKENDS)]
    assert all(entry["reason"] for entry in explanation)


def test_auto_depends_on_the_device_and_on_the_arguments():
    on_gpu = Backend(print, lambda device, *arguments: None if device == "cuda" else "it needs a GPU")
    backends = {"reference": Backend(print), "plain": Backend(print), "cpu": on_gpu}
    assert choose("op", backends) == "plain"
    assert choose("op", backends, device="cuda") == "cpu"
    small = Backend(print, lambda device, *arguments: "it is too large" if arguments and arguments[0] > 8 else None)
    assert choose("op", {"reference": Backend(print), "plain": small}, "auto", 9) == "reference"
    assert choose("op", {"reference": Backend(print), "plain": small}, "auto", 8) == "plain"


def test_a_backend_is_imported_at_its_first_use_only():
    missing = "no_such_module:run"
    backends = {"reference": Backend(print), "plain": Backend(missing, lambda device, *arguments: "it is not here")}
    assert choose("op", backends) == "reference"
    assert [entry["available"] for entry in explain("op", backends)] == [False, True]
    with pytest.raises(ModuleNotFoundError):
        backends["plain"].load()
    assert Backend("math:sqrt").load()(9.0) == 3.0


@pytest.mark.parametrize("op", [fwm, lstm, fw_lstm, fw_rnn])
def test_compiled_kernels_are_for_the_cpu_alone(op):
    explanation = {entry["name"]: entry for entry in explain("op", op.BACKENDS, device="cuda")}
    assert not explanation["cpu"]["available"]
    assert explanation["plain"]["chosen"]
