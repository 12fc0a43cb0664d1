"""The LSTM's recurrent part: numerical gradients, every backend against the definition."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastweights.ops import cpu
from fastweights.ops.lstm import BACKENDS, lstm
from tolerances import TOLERANCES, assert_near

GENERAL = [name for name in BACKENDS if name != "cpu"]  # any size and dtype; test_compiled.py has the others
FAST_BACKENDS = [name for name in GENERAL if name != "reference"]
NAMES = ["gate_inputs", "recurrent_weight", "hidden", "cell"]

every_backend = pytest.mark.parametrize("backend", GENERAL)
every_fast_backend = pytest.mark.parametrize("backend", FAST_BACKENDS)


def some_inputs(B: int, T: int, H: int, dtype=torch.float64) -> list[Tensor]:
    shapes = ((B, T, 4 * H), (4 * H, H), (B, H), (B, H))
    return [torch.randn(shape, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]


def stable_inputs(B: int, T: int, H: int) -> list[Tensor]:
    """Inputs whose recurrent weights do not make small differences grow."""
    gate_inputs, weight, *state = some_inputs(B, T, H, dtype=torch.float32)
    return [gate_inputs, (weight.detach() / H**0.5).requires_grad_(), *state]


def some_masks(B: int, T: int) -> dict[str, Tensor]:
    return {"mask": torch.rand(B, T) < 0.8, "resets": torch.rand(B, T) < 0.1}


def results(inputs: list[Tensor], backend: str, create_graph: bool = False, **masks) -> dict[str, Tensor]:
    """Outputs, final states and the gradients of all inputs under a loss with fixed random weights."""
    outputs = lstm(*inputs, backend=backend, **masks)
    generator = torch.Generator().manual_seed(1)
    weights = (torch.randn(x.shape, dtype=torch.float64, generator=generator).to(x.dtype) for x in outputs)
    loss = sum((x * weight).sum() for x, weight in zip(outputs, weights, strict=True))
    gradients = torch.autograd.grad(loss, inputs, create_graph=create_graph)
    named = {f"gradient of {name}": gradient for name, gradient in zip(NAMES, gradients, strict=True)}
    return dict(zip(("outputs", "final hidden", "final cell"), outputs, strict=True)) | named


def assert_like_the_reference(inputs: list[Tensor], backend: str, **masks) -> None:
    expected = results(inputs, "reference", **masks)
    for what, result in results(inputs, backend, **masks).items():
        assert_near(result, expected[what], what)


TINY_MASKS = {
    "mask": torch.tensor([[1, 1, 0], [1, 0, 1]]).bool(),
    "resets": torch.tensor([[0, 1, 0], [0, 0, 1]]).bool(),
}


@every_backend
@pytest.mark.parametrize("masks", [{}, TINY_MASKS], ids=["all", "masked"])
def test_gradients_are_the_derivatives(backend, masks):
    inputs = some_inputs(2, 3, 2)
    assert torch.autograd.gradcheck(lambda *x: lstm(*x, backend=backend, **masks), inputs)


@every_backend
@pytest.mark.parametrize("masks", [{}, TINY_MASKS], ids=["all", "masked"])
def test_second_gradients_are_the_second_derivatives(backend, masks):
    inputs = some_inputs(2, 3, 2)
    assert torch.autograd.gradgradcheck(lambda *x: lstm(*x, backend=backend, **masks), inputs)


@every_backend
def test_equals_torch(backend):
    B, T, H = 3, 20, 6
    module = torch.nn.LSTM(5, H, batch_first=True, dtype=torch.float64)
    x, hidden, cell = (torch.randn(shape, dtype=torch.float64) for shape in ((B, T, 5), (B, H), (B, H)))
    expected, (expected_hidden, expected_cell) = module(x, (hidden[None], cell[None]))
    gate_inputs = torch.nn.functional.linear(x, module.weight_ih_l0, module.bias_ih_l0 + module.bias_hh_l0)
    y, hidden, cell = lstm(gate_inputs, module.weight_hh_l0, hidden, cell, backend=backend)
    assert_near(y, expected)
    assert_near(hidden, expected_hidden[0])
    assert_near(cell, expected_cell[0])


@every_fast_backend
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("sizes", [(1, 1, 1), (5, 1, 4), (1, 63, 7), (5, 63, 8), (2, 200, 16)], ids=str)
def test_equals_the_reference(backend, sizes, masked):
    masks = some_masks(*sizes[:2]) if masked else {}
    assert_like_the_reference(some_inputs(*sizes), backend, **masks)


@every_fast_backend
@settings(max_examples=25)
@given(
    sizes=st.tuples(st.integers(1, 4), st.integers(1, 30), st.integers(1, 9)),
    mask_share=st.sampled_from([None, 0.0, 0.5, 1.0]),
    reset_share=st.sampled_from([None, 0.0, 0.2, 1.0]),
    seed=st.integers(0, 2**31),
)
def test_equals_the_reference_at_any_size_with_any_masks(backend, sizes, mask_share, reset_share, seed):
    torch.manual_seed(seed)
    inputs = some_inputs(*sizes)
    shares = {"mask": mask_share, "resets": reset_share}
    masks = {name: torch.rand(*sizes[:2]) < share for name, share in shares.items() if share is not None}
    assert_like_the_reference(inputs, backend, **masks)


@every_fast_backend
def test_in_float32(backend):
    assert_like_the_reference(some_inputs(3, 63, 8, dtype=torch.float32), backend, **some_masks(3, 63))


@every_backend
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs(backend, dtype):
    inputs = some_inputs(3, 30, 8, dtype=dtype)
    expected = results([x.detach().float().requires_grad_() for x in inputs], "reference")
    found = results(inputs, backend)
    assert found["outputs"].dtype == dtype
    assert found["final hidden"].dtype == found["final cell"].dtype == torch.float32
    for what, result in found.items():
        assert result.isfinite().all(), what
        assert_near(result, expected[what], what, TOLERANCES[dtype])


@every_backend
@pytest.mark.parametrize("H", [8, 21])
def test_autocast_rounds_the_operands_of_products_at_most(backend, H):
    inputs = stable_inputs(3, 30, H)
    expected = results(inputs, backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = results(inputs, backend)
    assert found["outputs"].dtype == found["final hidden"].dtype == found["final cell"].dtype == torch.float32
    for what, result in found.items():
        assert_near(result, expected[what], what, TOLERANCES[torch.bfloat16])


@pytest.mark.skipif(not cpu.has_bfloat16(), reason="this processor has no products in bfloat16")
@pytest.mark.parametrize(("B", "T", "H"), [(1, 9, 7), (3, 30, 8), (14, 12, 33), (17, 5, 256)])
def test_products_in_bfloat16_are_those_of_rounded_operands(B, T, H):
    inputs, masks = stable_inputs(B, T, H), some_masks(B, T)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, expected = (results(inputs, backend, **masks) for backend in ("cpu", "reference"))
    for what in ("outputs", "final hidden", "final cell"):
        assert_near(found[what], expected[what], what, 1e-3)  # a last bit may round the other way and be fed back
    for what, result in found.items():
        assert_near(result, expected[what], what, TOLERANCES[torch.bfloat16])


@every_backend
def test_saturated_gates_stay_finite(backend):
    gate_inputs, *others = some_inputs(2, 50, 4, dtype=torch.float32)
    inputs = [(gate_inputs.detach() * 1e4).requires_grad_(), *others]
    for what, result in results(inputs, backend).items():
        assert result.isfinite().all(), what


@every_backend
def test_padding_leaves_the_state_to_the_bit(backend):
    inputs = some_inputs(3, 20, 4)
    mask = torch.ones(3, 20, dtype=torch.bool)
    mask[1:] = False
    _, hidden, cell = lstm(*inputs, mask=mask, backend=backend)
    assert torch.equal(hidden[1:], inputs[2][1:])
    assert torch.equal(cell[1:], inputs[3][1:])
    assert not torch.equal(hidden[0], inputs[2][0])


@every_backend
def test_the_gradient_does_not_depend_on_create_graph(backend):
    inputs, masks = some_inputs(2, 20, 4), some_masks(2, 20)
    expected = results(inputs, backend, **masks)
    for what, result in results(inputs, backend, create_graph=True, **masks).items():
        assert_near(result, expected[what], what)


@every_backend
@pytest.mark.parametrize("wanted", range(4))
def test_gradients_of_single_inputs(backend, wanted):
    inputs = some_inputs(2, 10, 4)
    expected = torch.autograd.grad(lstm(*inputs, backend="reference")[0].sum(), inputs[wanted])[0]
    only = [x.detach().requires_grad_(index == wanted) for index, x in enumerate(inputs)]
    found = torch.autograd.grad(lstm(*only, backend=backend)[0].sum(), only[wanted])[0]
    assert_near(found, expected)


@every_backend
def test_inputs_need_not_be_contiguous_and_stay_as_they_were(backend):
    inputs, masks = some_inputs(3, 20, 4), some_masks(3, 20)
    expected = results(inputs, backend, **masks)
    strided = [x.detach().transpose(0, -1).contiguous().transpose(0, -1).requires_grad_() for x in inputs]
    before = [x.detach().clone() for x in strided]
    for what, result in results(
        strided, backend, **{name: mask.T.contiguous().T for name, mask in masks.items()}
    ).items():
        assert_near(result, expected[what], what)
    assert all(torch.equal(x, y) for x, y in zip(strided, before, strict=True))


def test_an_unknown_backend_is_named():
    with pytest.raises(ValueError, match='lstm has no backend "plian"; did you mean "plain"'):
        lstm(*some_inputs(1, 1, 1), backend="plian")
