"""MNM-p: numerical gradients, the fast form against the definition."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastweights.ops.mnm import metalearned_memory
from tolerances import assert_near

NAMES = [
    "gate_inputs", "recurrent_weight", "interaction_weight", "interaction_bias", "strength_weight", "strength_bias",
    "target_weight", "target_bias", "hidden", "cell", "read", "memory", "initial_memory",
]  # fmt: skip
RESULTS = ("outputs", "meta losses", "final hidden", "final cell", "final read", "final memory")

every_backend = pytest.mark.parametrize("backend", ["reference", "plain"])  # those for any dtype


def some_inputs(B: int, T: int, H: int, m: int, N: int, L: int, dtype=torch.float64) -> list[Tensor]:
    shapes = {
        "gate_inputs": (B, T, 4 * H), "recurrent_weight": (4 * H, H + m), "interaction_weight": ((3 * N + 1) * m, H),
        "interaction_bias": ((3 * N + 1) * m,), "strength_weight": (1, m), "strength_bias": (1,),
        "target_weight": (L * m, m), "target_bias": (L * m,), "hidden": (B, H), "cell": (B, H), "read": (B, m),
        "memory": (B, L, m, m), "initial_memory": (L, m, m),
    }  # fmt: skip
    drawn = {name: torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}
    # no memory makes small differences grow
    drawn |= {name: x / x.shape[-1] ** 0.5 for name, x in drawn.items() if "memory" in name or "weight" in name}
    return [drawn[name].to(dtype).requires_grad_() for name in NAMES]


def some_masks(B: int, T: int) -> dict[str, Tensor]:
    return {"mask": torch.rand(B, T) < 0.8, "resets": torch.rand(B, T) < 0.1}


def results(inputs: list[Tensor], **options) -> dict[str, Tensor]:
    """Outputs, final states and the gradients of all inputs under a loss with fixed random weights."""
    outputs = metalearned_memory(*inputs, **options)
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(x.shape, dtype=torch.float64, generator=generator).to(x.dtype) for x in outputs]
    gradients = torch.autograd.grad(outputs, inputs, weights, allow_unused=True, materialize_grads=True)
    named = {f"gradient of {name}": gradient for name, gradient in zip(NAMES, gradients, strict=True)}
    return dict(zip(RESULTS, outputs, strict=True)) | named


def assert_like_the_reference(inputs: list[Tensor], tolerance: float | None = None, **masks) -> None:
    expected = results(inputs, backend="reference", **masks)
    for what, result in results(inputs, backend="plain", **masks).items():
        assert_near(result, expected[what], what, tolerance)


TINY_MASKS = {
    "mask": torch.tensor([[1, 1, 0], [1, 0, 1]]).bool(),
    "resets": torch.tensor([[0, 1, 0], [0, 0, 1]]).bool(),
}


@every_backend
@pytest.mark.parametrize("masks", [{}, TINY_MASKS], ids=["all", "masked"])
@pytest.mark.parametrize("sizes", [(2, 3, 3, 2, 1, 2), (2, 3, 2, 3, 2, 1)], ids=str)
def test_gradients_are_the_derivatives(backend, sizes, masks):
    inputs = some_inputs(*sizes)
    assert torch.autograd.gradcheck(lambda *x: metalearned_memory(*x, backend=backend, **masks), inputs)


def test_second_gradients_are_the_second_derivatives():
    inputs = some_inputs(1, 2, 1, 2, 1, 2)[:-1]
    initial = torch.zeros(2, 2, 2, dtype=torch.float64)
    assert torch.autograd.gradgradcheck(lambda *x: metalearned_memory(*x, initial), inputs)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    "sizes",
    [(1, 1, 3, 2, 3, 3), (3, 8, 4, 5, 2, 3), (5, 9, 7, 3, 1, 4), (2, 33, 5, 4, 3, 3), (1, 20, 5, 3, 2, 1)],
    ids=str,
)
def test_equals_the_reference(sizes, masked):
    assert_like_the_reference(some_inputs(*sizes), 1e-9, **(some_masks(*sizes[:2]) if masked else {}))


@settings(max_examples=12)
@given(
    sizes=st.tuples(st.integers(1, 4), st.integers(1, 20), *[st.integers(1, 6)] * 2, *[st.integers(1, 3)] * 2),
    mask_share=st.sampled_from([None, 0.0, 0.5, 1.0]),
    reset_share=st.sampled_from([None, 0.0, 0.2, 1.0]),
    seed=st.integers(0, 2**31),
)
def test_equals_the_reference_at_any_size_with_any_masks(sizes, mask_share, reset_share, seed):
    torch.manual_seed(seed)
    shares = {"mask": mask_share, "resets": reset_share}
    masks = {name: torch.rand(*sizes[:2]) < share for name, share in shares.items() if share is not None}
    assert_like_the_reference(some_inputs(*sizes), 1e-9, **masks)


def test_in_float32():
    assert_like_the_reference(some_inputs(3, 12, 16, 10, 3, 3, torch.float32), **some_masks(3, 12))


@pytest.mark.parametrize("index", range(len(RESULTS)), ids=RESULTS)
def test_any_result_may_be_alone_in_a_loss(index):
    """And the gradient of the states is often not wanted."""
    inputs = some_inputs(2, 10, 4, 3, 2, 3)
    for x, name in zip(inputs, NAMES, strict=True):
        x.requires_grad_(name not in ("hidden", "cell", "read", "memory", "initial_memory"))
    wanted = [x for x in inputs if x.requires_grad]
    found, expected = (
        torch.autograd.grad(
            metalearned_memory(*inputs, backend=backend)[index].square().sum(), wanted, materialize_grads=True
        )
        for backend in ("plain", "reference")
    )
    for gradient, other in zip(found, expected, strict=True):
        assert_near(gradient, other)


def test_a_write_brings_what_is_recalled_nearer_to_the_targets():
    """By hand: one layer, one head; its write is a step along the gradient of the squared error."""
    inputs = [x.detach() for x in some_inputs(1, 1, 4, 3, 1, 1)]
    _, _, h, _, _, after = metalearned_memory(*inputs)
    named = dict(zip(NAMES, inputs, strict=True))
    u = (named["interaction_weight"] @ h[0] + named["interaction_bias"]).tanh().view(4, 3)
    beta = torch.sigmoid(named["strength_weight"] @ u[3] + named["strength_bias"])
    W = named["memory"][0, 0].clone().requires_grad_()
    error = W @ u[0] - (named["target_weight"] @ u[1] + named["target_bias"])
    (gradient,) = torch.autograd.grad(error.square().mean(), W)
    assert_near(after[0, 0], W - beta * gradient)


@every_backend
def test_padding_has_no_meta_loss(backend):
    mask = torch.tensor([[True, False, True], [False, False, False]])
    _, meta_losses, *_ = metalearned_memory(*some_inputs(2, 3, 4, 3, 2, 3), mask=mask, backend=backend)
    assert torch.equal(meta_losses != 0, mask)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"memory": torch.zeros(1, 3, 3, 3)}, r"memory has shape \[1, 3, 3, 3\]"),
        ({"recurrent_weight": torch.zeros(16, 4)}, r"recurrent_weight has shape \[16, 4\]"),
        ({"interaction_weight": torch.zeros(20, 4)}, r"interaction_weight has shape \[20, 4\].*\[21, 4\]"),
        ({"interaction_weight": torch.zeros(2, 4)}, r"interaction_weight has shape \[2, 4\].*\[12, 4\]"),
        ({"strength_weight": torch.zeros(3)}, r"strength_weight has shape \[3\]"),
        ({"gate_inputs": torch.zeros(2, 0, 16)}, "sequence is empty"),
        ({"backend": "fast"}, 'no backend "fast"'),
        ({"mask": torch.ones(2, 4)}, "a mask must be torch.bool"),
    ],
)
def test_what_does_not_fit_is_refused(wrong, message):
    inputs = dict(zip(NAMES, some_inputs(2, 4, 4, 3, 2, 3), strict=True))
    inputs |= {name: wrong.pop(name) for name in [*wrong] if name in inputs}
    with pytest.raises(ValueError, match=message):
        metalearned_memory(*inputs.values(), **wrong)
