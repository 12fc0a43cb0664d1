"""What every op with a written-out gradient owes to torch: activation checkpointing, and derivatives of parts."""

import pytest
import torch
from test_fast_weight_memory import some_inputs as some_memory_inputs
from test_fast_weight_recurrences import some_inputs as some_recurrence_inputs
from test_lstm_recurrence import some_inputs as some_lstm_inputs
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fastweights.ops import cpu
from fastweights.ops.fw_lstm import fast_weight_lstm
from fastweights.ops.fw_rnn import fast_weight_rnn
from fastweights.ops.fwm import fast_weight_memory
from fastweights.ops.lstm import lstm

BACKENDS = ["plain", pytest.param("cpu", marks=pytest.mark.skipif(cpu.PROBLEM is not None, reason=str(cpu.PROBLEM)))]
OPS = {
    "fwm": (fast_weight_memory, lambda: some_memory_inputs(2, 9, 8, 8, 8, 2, dtype=torch.float32)),
    "lstm": (lstm, lambda: some_lstm_inputs(2, 9, 16, dtype=torch.float32)),
    "fw-lstm": (fast_weight_lstm, lambda: some_recurrence_inputs("fw-lstm", 2, 9, 16, dtype=torch.float32)),
    "fw-rnn": (fast_weight_rnn, lambda: some_recurrence_inputs("fw-rnn", 2, 9, 16, dtype=torch.float32)),
}


def total(outputs: tuple[Tensor, ...]) -> Tensor:
    return sum(x.square().sum() for x in outputs)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("op", OPS)
def test_activation_checkpointing_gives_the_same_bits(op, backend):
    run, make = OPS[op]
    inputs = make()
    expected = torch.autograd.grad(total(run(*inputs, backend=backend)), inputs)
    found = torch.autograd.grad(
        total(checkpoint(lambda *x: run(*x, backend=backend), *inputs, use_reentrant=False)), inputs
    )
    assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_second_derivatives_where_a_result_depends_on_no_input_that_has_one(backend):
    """After one step, the fast weights of FW-RNN depend on the first state alone, not on the recurrent weight."""
    inputs = [x.detach() for x in some_recurrence_inputs("fw-rnn", 2, 1, 16, dtype=torch.float32)]
    inputs[1] = (inputs[1] / 4).requires_grad_()
    found = {}
    for name in (backend, "reference"):
        outputs = fast_weight_rnn(*inputs, backend=name)
        (first,) = torch.autograd.grad(total([x for x in outputs if x.requires_grad]), inputs[1], create_graph=True)
        (found[name],) = torch.autograd.grad(first.square().sum(), inputs[1])
    torch.testing.assert_close(found[backend], found["reference"], rtol=1e-3, atol=1e-4)
