"""The compiled FW-LSTM, LN-LSTM and FW-RNN, with every instruction set of this processor, against the definitions."""

import pytest
import torch
from test_fast_weight_recurrences import OPS, results, some_inputs, some_masks
from torch import Tensor

from fastweights.ops import cpu
from fastweights.ops.fw_rnn import fast_weight_rnn
from tolerances import assert_near, relative_error

if cpu.PROBLEM:
    pytest.skip(cpu.PROBLEM, allow_module_level=True)

AVAILABLE = cpu.INSTRUCTION_SETS[: cpu.best() + 1]
every_op = pytest.mark.parametrize("op", OPS)


@pytest.fixture(params=AVAILABLE, autouse=True)
def instruction_set(request, monkeypatch):
    monkeypatch.setattr(cpu, "INSTRUCTION_SET", cpu.INSTRUCTION_SETS.index(request.param))


def ordinary_inputs(op: str, B: int, T: int, H: int, starts_empty: bool = False) -> list[Tensor]:
    """Float32, the recurrent weight and the states of the size that training gives them."""
    inputs = [x.detach() for x in some_inputs(op, B, T, H)]
    inputs[1] /= H**0.5
    if op != "ln-lstm":
        inputs[-1] *= 0.0 if starts_empty else 0.1
    return [x.float().requires_grad_() for x in inputs]


@every_op
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("chunk", [None, 7])
@pytest.mark.parametrize("sizes", [(1, 1, 3), (5, 1, 16), (30, 19, 50), (3, 70, 20), (2, 40, 64), (7, 9, 300)], ids=str)
def test_equals_the_reference(op, sizes, chunk, masked):
    inputs = ordinary_inputs(op, *sizes, starts_empty=sizes[1] == 19)
    masks = some_masks(*sizes[:2]) if masked else {}
    truth = results(op, [x.detach().double().requires_grad_() for x in inputs], backend="reference", **masks)
    definition = results(op, inputs, backend="reference", **masks)
    found = results(op, inputs, backend="cpu", chunk=chunk, **masks)
    for what in truth:
        assert found[what].isfinite().all(), what
        # small differences grow from step to step, in the definition as in the kernel
        allowed = max(1e-4, 5 * relative_error(definition[what], truth[what]))
        if truth[what].abs().max() > 1e-3:
            assert relative_error(found[what], truth[what]) <= allowed, what


@every_op
def test_the_same_bits_whatever_the_threads_or_the_need_for_a_gradient(op):
    inputs, masks, before = ordinary_inputs(op, 53, 20, 18), some_masks(53, 20), torch.get_num_threads()
    expected = results(op, inputs, backend="cpu", **masks)
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found = results(op, inputs, backend="cpu", **masks)
            # torch's own product that sums the recurrent weight's gradient may split its sum by threads
            exempt = {"gradient of weight"} if threads != before else set()
            assert all(torch.equal(found[what], expected[what]) for what in expected.keys() - exempt)
    finally:
        torch.set_num_threads(before)
    with torch.no_grad():
        for chunk in (None, 20):
            outputs = [x for x in OPS[op][0](*inputs, backend="cpu", chunk=chunk, **masks) if x is not None]
            assert all(torch.equal(x, expected[f"output {index}"]) for index, x in enumerate(outputs))


@every_op
def test_without_a_gradient_the_memory_is_carried_from_chunk_to_chunk(op):
    inputs = ordinary_inputs(op, 3, 50, 9)
    with torch.no_grad():
        found = OPS[op][0](*inputs, backend="cpu", chunk=8)
    for x, expected in zip(found, OPS[op][0](*inputs, backend="cpu"), strict=True):
        assert (x is None) == (expected is None)
        if x is not None:
            assert_near(x, expected)


@every_op
def test_inputs_need_not_be_contiguous_and_stay_as_they_were(op):
    inputs, masks = [x.detach() for x in ordinary_inputs(op, 3, 12, 5)], some_masks(3, 12)
    expected = OPS[op][0](*inputs, backend="cpu", **masks)
    strided = [x.transpose(0, -1).contiguous().transpose(0, -1) for x in inputs]
    before = [x.clone() for x in strided]
    found = OPS[op][0](*strided, backend="cpu", **{name: mask.T.contiguous().T for name, mask in masks.items()})
    assert all(x is y or torch.equal(x, y) for x, y in zip(found, expected, strict=True))
    assert all(torch.equal(x, y) for x, y in zip(strided, before, strict=True))


@every_op
def test_gradients_of_single_inputs(op):
    """Those of the initial fast weights, for one, are found only where they are wanted."""
    inputs = ordinary_inputs(op, 2, 30, 6)
    loss = lambda y: (y.square() * y.cumsum(1)).sum()  # noqa: E731
    gradients = torch.autograd.grad(loss(OPS[op][0](*inputs, backend="cpu", chunk=8)[0]), inputs)
    for wanted, expected in enumerate(gradients):
        only = [x.detach().requires_grad_(index == wanted) for index, x in enumerate(inputs)]
        y = OPS[op][0](*only, backend="cpu", chunk=8)[0]
        assert torch.equal(torch.autograd.grad(loss(y), only[wanted])[0], expected)


@every_op
def test_second_derivatives_are_those_of_the_definition(op):
    inputs = ordinary_inputs(op, 2, 4, 5)
    found = {}
    for backend in ("cpu", "reference"):
        y = OPS[op][0](*inputs, backend=backend)[0]
        first = torch.autograd.grad(y.pow(3).sum(), inputs, create_graph=True)
        found[backend] = torch.autograd.grad(sum(x.square().sum() for x in first), inputs)
    for result, expected in zip(found["cpu"], found["reference"], strict=True):
        assert_near(result, expected, tolerance=1e-3)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("op", ["fw-lstm", "ln-lstm", "fw-rnn, three inner steps"])
def test_custom_operators_keep_torchs_rules(op, masked):
    inputs, mask = ordinary_inputs(op, 2, 5, 16), list(some_masks(2, 5).values()) if masked else [None, None]
    if op.startswith("fw-rnn"):
        torch.library.opcheck(torch.ops.fastweights.fw_rnn_cpu, (*inputs, *mask, 0.9, 0.5, 3, 2, True))
    else:
        memory = [] if len(inputs) == 9 else [None]
        torch.library.opcheck(torch.ops.fastweights.fw_lstm_cpu, (*inputs, *memory, *mask, 0.9, 0.5, 2, True))


def test_what_the_kernels_cannot_do_is_left_to_plain_torch_and_said_when_insisted_on():
    inputs = some_inputs("fw-rnn", 1, 3, 4)
    with pytest.raises(ValueError, match=r"float32.*float64"):
        fast_weight_rnn(*inputs, backend="cpu")
    assert torch.equal(fast_weight_rnn(*inputs)[0], fast_weight_rnn(*inputs, backend="plain")[0])
