"""FW-LSTM, LN-LSTM and FW-RNN: numerical gradients, the fast form against the definition and against itself."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastweights.ops.fw_lstm import fast_weight_lstm
from fastweights.ops.fw_rnn import fast_weight_rnn
from fastweights.ops.outer_product import chunk_length
from tolerances import assert_near

LSTM_NAMES = ["gate_inputs", "weight", "gates_gain", "gates_bias", "cell_gain", "cell_bias", "hidden", "cell", "memory"]
RNN_NAMES = ["inputs", "weight", "gain", "bias", "hidden", "memory"]
OPS = {
    "fw-lstm": (fast_weight_lstm, LSTM_NAMES),
    "fw-lstm, decaying": (partial(fast_weight_lstm, decay=0.8, rate=0.5), LSTM_NAMES),
    "ln-lstm": (fast_weight_lstm, LSTM_NAMES[:-1]),
    "fw-rnn": (fast_weight_rnn, RNN_NAMES),
    "fw-rnn, three inner steps": (partial(fast_weight_rnn, decay=0.9, rate=1.0, inner_steps=3), RNN_NAMES),
}
BACKENDS = ["reference", "plain"]

every_op = pytest.mark.parametrize("op", OPS)


def some_inputs(op: str, B: int, T: int, H: int, dtype=torch.float64) -> list[Tensor]:
    names = OPS[op][1]
    wide = H if "inputs" in names else 4 * H
    shapes = {
        "inputs": (B, T, H), "gate_inputs": (B, T, 4 * H), "weight": (wide, H), "gain": (H,), "bias": (H,),
        "gates_gain": (4 * H,), "gates_bias": (4 * H,), "cell_gain": (H,), "cell_bias": (H,), "hidden": (B, H),
        "cell": (B, H), "memory": (B, H, H),
    }  # fmt: skip
    drawn = [torch.randn(shapes[name], dtype=torch.float64) + ("gain" in name) for name in names]
    return [x.to(dtype).requires_grad_() for x in drawn]


def some_masks(B: int, T: int) -> dict[str, Tensor]:
    return {"mask": torch.rand(B, T) < 0.8, "resets": torch.rand(B, T) < 0.1}


def results(op: str, inputs: list[Tensor], **options) -> dict[str, Tensor]:
    """Outputs, final states and the gradients of all inputs under a loss with fixed random weights."""
    run, names = OPS[op]
    outputs = [x for x in run(*inputs, **options) if x is not None]
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(x.shape, dtype=torch.float64, generator=generator).to(x.dtype) for x in outputs]
    gradients = torch.autograd.grad(outputs, inputs, weights)
    named = {f"gradient of {name}": gradient for name, gradient in zip(names, gradients, strict=True)}
    return {f"output {index}": x for index, x in enumerate(outputs)} | named


def assert_same_results(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float | None = None) -> None:
    for what, result in found.items():
        assert_near(result, expected[what], what, tolerance)


TINY_MASKS = {
    "mask": torch.tensor([[1, 1, 0], [1, 0, 1]]).bool(),
    "resets": torch.tensor([[0, 1, 0], [0, 0, 1]]).bool(),
}


@every_op
@pytest.mark.parametrize("masks", [{}, TINY_MASKS], ids=["all", "masked"])
@pytest.mark.parametrize("options", [{"backend": "reference"}, {}, {"chunk": 2}], ids=str)
def test_gradients_are_the_derivatives(op, options, masks):
    inputs = some_inputs(op, 2, 3, 3)
    run = lambda *x: [y for y in OPS[op][0](*x, **options, **masks) if y is not None]  # noqa: E731
    assert torch.autograd.gradcheck(run, inputs)


@pytest.mark.parametrize("op", ["fw-lstm", "ln-lstm", "fw-rnn"])
def test_second_gradients_are_the_second_derivatives(op):
    inputs = some_inputs(op, 1, 2, 3)
    run = lambda *x: [y for y in OPS[op][0](*x) if y is not None]  # noqa: E731
    assert torch.autograd.gradgradcheck(run, inputs)


@every_op
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("sizes", [(1, 1, 3), (5, 1, 4), (1, 63, 7), (5, 33, 8), (2, 150, 5)], ids=str)
def test_equals_the_reference(op, sizes, masked):
    masks = some_masks(*sizes[:2]) if masked else {}
    inputs = some_inputs(op, *sizes)
    expected = results(op, inputs, backend="reference", **masks)
    assert_same_results(results(op, inputs, **masks), expected, tolerance=1e-9)


@every_op
@settings(max_examples=12)
@given(
    sizes=st.tuples(st.integers(1, 4), st.integers(1, 20), st.integers(3, 9)),
    mask_share=st.sampled_from([None, 0.0, 0.5, 1.0]),
    reset_share=st.sampled_from([None, 0.0, 0.2]),
    chunk=st.sampled_from([None, 1, 2, 7]),
    seed=st.integers(0, 2**31),
)
def test_equals_the_reference_at_any_size_with_any_masks(op, sizes, mask_share, reset_share, chunk, seed):
    torch.manual_seed(seed)
    inputs = some_inputs(op, *sizes)
    shares = {"mask": mask_share, "resets": reset_share}
    masks = {name: torch.rand(*sizes[:2]) < share for name, share in shares.items() if share is not None}
    expected = results(op, inputs, backend="reference", **masks)
    assert_same_results(results(op, inputs, chunk=chunk, **masks), expected, tolerance=1e-9)


@every_op
@pytest.mark.parametrize("starts_empty", [False, True])
def test_the_forms_for_short_and_for_long_sequences_agree(op, starts_empty):
    inputs = some_inputs(op, 3, 40, 6)
    if starts_empty and op != "ln-lstm":
        inputs[-1] = torch.zeros_like(inputs[-1], requires_grad=True)
    whole = results(op, inputs, chunk=40)
    for chunk in (1, 13, 39):
        assert_same_results(results(op, inputs, chunk=chunk), whole, tolerance=1e-9)


def test_the_form_is_chosen_by_length():
    assert [chunk_length(length, 50) for length in (1, 19, 64, 65, 1000)] == [1, 19, 64, 64, 64]
    assert [chunk_length(length, 512) for length in (64, 200, 1000)] == [64, 200, 512]


@every_op
def test_in_float32(op):
    inputs = some_inputs(op, 3, 12, 8, dtype=torch.float32)
    masks = some_masks(3, 12)
    assert_same_results(results(op, inputs, **masks), results(op, inputs, backend="reference", **masks))


@every_op
def test_some_gradients_may_not_be_wanted(op):
    """The initial fast weights, mostly; and of the outputs, often only one is in a loss."""
    run, names = OPS[op]
    inputs = some_inputs(op, 2, 9, 4)
    for x, name in zip(inputs, names, strict=True):
        x.requires_grad_(name not in ("hidden", "cell", "memory"))
    wanted = [x for x in inputs if x.requires_grad]
    found, expected = (
        torch.autograd.grad(run(*inputs, backend=backend)[0][:, -1].square().sum(), wanted) for backend in BACKENDS
    )
    for gradient, other in zip(found, expected, strict=True):
        assert_near(gradient, other)


def test_the_fast_weights_are_the_sum_of_what_was_written():
    """By hand: two steps of FW-RNN with W = 0, of which the first writes h_0 and the second h_1."""
    x, h, A = torch.ones(1, 2, 3), torch.tensor([[1.0, 2.0, 0.0]]), torch.zeros(1, 3, 3)
    y, _, memory = fast_weight_rnn(x, torch.zeros(3, 3), torch.ones(3), torch.zeros(3), h, A, decay=0.5, rate=2.0)
    assert_near(memory[0], 0.5 * 2 * torch.outer(h[0], h[0]) + 2 * torch.outer(y[0, 0], y[0, 0]))
    read = 2 * h[0] * h[0].sum()  # what A_1 = 2 h hᵀ gives for the preliminary (1, 1, 1)
    assert_near(y[0, 0], torch.nn.functional.layer_norm(1 + read, (3,)).relu())


@pytest.mark.parametrize(
    ("op", "wrong", "message"),
    [
        ("fw-lstm", {"memory": torch.zeros(1, 3, 3)}, r"memory has shape \[1, 3, 3\]"),
        ("fw-lstm", {"weight": torch.zeros(11, 3)}, r"recurrent_weight has shape \[11, 3\]"),
        ("fw-rnn", {"hidden": torch.zeros(2, 4)}, r"hidden has shape \[2, 4\]"),
        ("fw-rnn", {"inputs": torch.zeros(2, 0, 3)}, "sequence is empty"),
        ("fw-lstm", {"gate_inputs": torch.zeros(2, 0, 12)}, "sequence is empty"),
        ("fw-rnn", {"inner_steps": 0}, "inner_steps is 0"),
        ("fw-rnn", {"backend": "fast"}, 'no backend "fast"'),
        ("fw-lstm", {"mask": torch.ones(2, 4)}, "a mask must be torch.bool"),
    ],
)
def test_what_does_not_fit_is_refused(op, wrong, message):
    run, names = OPS[op]
    inputs = dict(zip(names, some_inputs(op, 2, 4, 3), strict=True))
    inputs |= {name: wrong.pop(name) for name in [*wrong] if name in inputs}
    with pytest.raises(ValueError, match=message):
        run(*inputs.values(), **wrong)
