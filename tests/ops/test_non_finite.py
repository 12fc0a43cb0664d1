"""Where an op meets NaN or an infinity, all backends give finite results where the definition does, and only there."""

from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
from test_fast_weight_memory import NAMES as MEMORY_NAMES
from test_fast_weight_memory import some_inputs as memory_inputs
from test_fast_weight_recurrences import OPS as RECURRENCES
from test_fast_weight_recurrences import some_inputs as recurrence_inputs
from test_fwm_writes import step_by_step
from test_lstm_recurrence import NAMES as LSTM_NAMES
from test_lstm_recurrence import some_inputs as lstm_inputs
from test_metalearned_memory import NAMES as MNM_NAMES
from test_metalearned_memory import some_inputs as mnm_inputs
from torch import Tensor

from fastweights.ops import cpu
from fastweights.ops.fwm import fast_weight_memory
from fastweights.ops.lstm import lstm
from fastweights.ops.mnm import metalearned_memory
from tolerances import assert_near

B, T = 2, 12
MASKED, FRESH = 6, 9  # the steps at which row 0 is padded, and starts again
STATES = ("hidden", "cell", "read", "memory")
SETS = [] if cpu.PROBLEM else cpu.INSTRUCTION_SETS[: cpu.best() + 1]
OPS: dict[str, tuple[Callable, list[str], Callable[[], list[Tensor]]]] = {
    "fwm": (fast_weight_memory, MEMORY_NAMES, lambda: memory_inputs(B, T, 8, 8, 8, 2)),
    "lstm": (lstm, LSTM_NAMES, lambda: lstm_inputs(B, T, 16)),
    "mnm": (
        partial(metalearned_memory, initial_memory=torch.zeros(3, 5, 5)),
        MNM_NAMES[:-1],
        lambda: mnm_inputs(B, T, 8, 5, 3, 3)[:-1],
    ),
    **{op: (*RECURRENCES[op], partial(recurrence_inputs, op, B, T, 16)) for op in RECURRENCES},
}
OPS["fwm, in chunks"] = (fast_weight_memory, MEMORY_NAMES, lambda: memory_inputs(B, 120, 8, 8, 8, 2))
OPS["fwm, by concatenation"] = (
    partial(fast_weight_memory, pairing="concatenation"),
    MEMORY_NAMES,
    lambda: memory_inputs(B, T, 8, 8, 8, 2, "concatenation"),
)
OPS["fw-lstm, in chunks"] = (partial(RECURRENCES["fw-lstm"][0], chunk=5), *OPS["fw-lstm"][1:])
OPS["fw-rnn, in chunks"] = (partial(RECURRENCES["fw-rnn"][0], chunk=5), *OPS["fw-rnn"][1:])
WITHOUT_KERNEL = {"fwm, by concatenation": "the kernel pairs keys by product"}

every_backend = pytest.mark.parametrize("backend", ["plain", *SETS])


def use(backend: str, monkeypatch: pytest.MonkeyPatch) -> str:
    if backend not in SETS:
        return backend
    monkeypatch.setattr(cpu, "INSTRUCTION_SET", cpu.INSTRUCTION_SETS.index(backend))
    return "cpu"


def some_masks(length: int) -> dict[str, Tensor]:
    masks = {"mask": torch.ones(B, length, dtype=torch.bool), "resets": torch.zeros(B, length, dtype=torch.bool)}
    masks["mask"][0, MASKED], masks["resets"][0, FRESH] = False, True
    return masks


def spoilt(op: str, value: float) -> Iterator[tuple[str, list[Tensor], dict[str, Tensor]]]:
    """Inputs of an op with one value in row 0 (or in a weight): where it is, the inputs, and masks."""
    _, names, make = OPS[op]
    for index, name in enumerate(names):
        clean = [x.detach().float() for x in make()]
        length = clean[0].shape[1]
        in_time = (clean[index].ndim > 2 and clean[index].shape[1] == length) or name == "write_strengths"
        for step in (0, MASKED, length - 1) if in_time else (0,):
            for masks in ({}, some_masks(length)) if length == T else (some_masks(length),):
                inputs = [x.clone() for x in clean]
                place = inputs[index][0, step] if in_time else inputs[index]
                place.view(-1)[-1] = place.view(-1)[0] = value
                if name in STATES:
                    inputs[index][1] = clean[index][1]
                yield f"{name} at {step}, {len(masks)} masks", inputs, masks


def assert_finite_where_the_definition_is(found: tuple, expected: tuple, where: str) -> None:
    for index, (result, wanted) in enumerate(zip(found, expected, strict=True)):
        if wanted is None:
            continue
        finite = wanted.isfinite()
        assert torch.equal(result.isfinite(), finite), f"{where}: result {index}"
        assert_near(result[finite], wanted[finite], f"{where}: result {index}", 1e-3)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")], ids=str)
@every_backend
@pytest.mark.parametrize("op", OPS)
def test_results_are_finite_where_the_definition_is(op, backend, value, monkeypatch):
    run, backend = OPS[op][0], use(backend, monkeypatch)
    if op in WITHOUT_KERNEL and backend == "cpu":
        pytest.skip(WITHOUT_KERNEL[op])
    spread = False
    for where, inputs, masks in spoilt(op, value):
        inputs = [x.requires_grad_() for x in inputs]
        found, expected = (run(*inputs, backend=name, **masks) for name in (backend, "reference"))
        assert_finite_where_the_definition_is(found, expected, where)
        with torch.no_grad():
            assert_finite_where_the_definition_is(run(*inputs, backend=backend, **masks), expected, where)
        if not all(x is None or x.isfinite().all() for x in expected):
            spread = True
            loss = sum(x.square().sum() for x in found if x is not None)
            gradients = torch.autograd.grad(loss, inputs, allow_unused=True)
            assert not all(x.isfinite().all() for x in gradients if x is not None), where
    assert spread


@every_backend
@pytest.mark.parametrize("op", OPS)
def test_weights_of_nan_give_nan(op, backend, monkeypatch):
    run, names, make = OPS[op]
    backend = use(backend, monkeypatch)
    if op in WITHOUT_KERNEL and backend == "cpu":
        pytest.skip(WITHOUT_KERNEL[op])
    for index in range(len(names)):
        inputs = [x.detach().float() for x in make()]
        inputs[index].fill_(float("nan"))
        found, expected = (run(*inputs, backend=name) for name in (backend, "reference"))
        assert_finite_where_the_definition_is(found, expected, names[index])
        assert found[0].isnan().any(), names[index]


@every_backend
def test_what_padding_and_a_reset_cut_off_does_not_matter(backend, monkeypatch):
    """By hand, of the definition as well: NaN at a padded step and in a state that is reset at once."""
    for name in (use(backend, monkeypatch), "reference"):
        for run, names, make in (OPS[op] for op in OPS if op not in WITHOUT_KERNEL or name != "cpu"):
            inputs = [x.detach().float() for x in make()]
            masks = some_masks(inputs[0].shape[1])
            masks["resets"][0, 0] = True
            clean = run(*inputs, backend=name, **masks)
            for x, argument in zip(inputs, names, strict=True):
                if argument in STATES:
                    x[0] = float("nan")
                elif (x.ndim > 2 or argument == "write_strengths") and "queries" not in argument:
                    x[0, MASKED] = float("nan")
            for found, expected in zip(run(*inputs, backend=name, **masks), clean, strict=True):
                if expected is not None:
                    assert_near(found, expected)


@every_backend
def test_no_output_no_nan(backend, monkeypatch):
    """Queries of NaN where no output is needed."""
    inputs = [x.detach().float() for x in memory_inputs(B, T, 8, 8, 8, 2)]
    output_mask = torch.rand(B, T) < 0.5
    for x in inputs[4:6]:
        x[~output_mask] = float("nan")
    for name in (use(backend, monkeypatch), "reference"):
        assert all(x.isfinite().all() for x in fast_weight_memory(*inputs, output_mask=output_mask, backend=name))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")], ids=str)
@every_backend
def test_a_log_of_writes_is_finite_where_the_memory_is(backend, value, monkeypatch):
    backend = use(backend, monkeypatch)
    for index, name in enumerate(MEMORY_NAMES[:-1]):
        inputs = [x.detach().float() for x in memory_inputs(B, T, 8, 8, 8, 2)[:-1]]
        inputs[index][0, 5].view(-1)[-1] = value
        found, log = step_by_step(inputs, backend)
        options = {"write_scale": 0.7, "tanh_first_query": True, "tanh_queries": True}
        expected, memory = fast_weight_memory(*inputs, **options, backend="reference")
        k1, k2, decay, written = (x[..., :T] for x in (log.first_keys, log.second_keys, log.decay, log.written.mT))
        formed = torch.einsum("bsc,brc,bc,bvc->bsrv", k1, k2, decay, written)
        assert_finite_where_the_definition_is((found, formed), (expected, memory), name)
