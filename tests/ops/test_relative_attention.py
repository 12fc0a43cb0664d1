"""Attention with relative positions: the equation, numerical gradients, every backend against the definition."""

import sys

import numpy as np
import pytest
import torch
from test_torch_integration import CustomOps
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fastweights.ops.relative_attention import BACKENDS, relative_attention
from tolerances import assert_near

NAMES = ["query", "key", "value", "position", "content_bias", "position_bias"]
SIZES = [(3, 5, 9, 2, 3), (1, 1, 1, 1, 1), (2, 1, 7, 2, 3), (2, 6, 6, 3, 4), (1, 63, 100, 1, 2)]  # B, T, S, H, D
plain = sys.modules["fastweights.ops.relative_attention.plain"]

every_backend = pytest.mark.parametrize("backend", BACKENDS)
every_fast_backend = pytest.mark.parametrize("backend", sorted({*BACKENDS} - {"reference"}))


def some_inputs(B: int, T: int, S: int, H: int, D: int, dtype=torch.float64) -> list[Tensor]:
    shapes = ((B, T, H, D), (B, S, H, D), (B, S, H, D), (S, H, D), (H, D), (H, D))
    return [torch.randn(shape, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]


def some_mask(B: int, T: int, S: int) -> Tensor:
    """Some of the steps before each, and itself."""
    mask = torch.ones(B, T, S, dtype=torch.bool).tril(S - T)
    return mask & ((torch.rand(B, T, S) < 0.7) | torch.eye(S, dtype=torch.bool)[S - T :])


def results(inputs: list[Tensor], mask: Tensor, backend: str, **options) -> dict[str, Tensor]:
    """The outputs and the gradients of all inputs under a loss with fixed random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        y = relative_attention(*inputs, mask, backend=backend, **options)
    weights = torch.randn(y.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).to(y.dtype)
    gradients = torch.autograd.grad((y * weights).sum(), inputs)
    return {"outputs": y, **{f"gradient of {name}": g for name, g in zip(NAMES, gradients, strict=True)}}


@every_backend
def test_the_equation_written_out(backend):
    B, T, S, H, D = 2, 3, 5, 2, 4
    inputs, mask = [x.detach() for x in some_inputs(B, T, S, H, D)], some_mask(B, T, S)
    q, k, v, r, u_bias, v_bias = (x.numpy() for x in inputs)
    expected = np.zeros((B, T, H, D))
    for b, t, h in np.ndindex(B, T, H):
        i, scores = S - T + t, np.full(S, -np.inf)
        for j in range(i + 1):
            if mask[b, t, j]:
                a, c = q[b, t, h] @ k[b, j, h], u_bias[h] @ k[b, j, h]
                at, distance = q[b, t, h] @ r[i - j, h], v_bias[h] @ r[i - j, h]
                scores[j] = (a + at + c + distance) / np.sqrt(D)
        weights = np.exp(scores - scores.max())
        expected[b, t, h] = (weights / weights.sum()) @ v[b, :, h]
    assert_near(relative_attention(*inputs, mask, backend=backend), torch.from_numpy(expected))


@every_backend
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_gradients_are_the_derivatives(backend, dropout):
    inputs, mask = some_inputs(2, 2, 3, 2, 2), some_mask(2, 2, 3)

    def run(*x: Tensor) -> Tensor:
        torch.manual_seed(0)
        return relative_attention(*x, mask, backend=backend, dropout=dropout)

    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


@every_fast_backend
@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("scores", [1, 100, 1 << 30])
@pytest.mark.parametrize("sizes", SIZES)
def test_equals_the_reference(backend, sizes, scores, dropout, monkeypatch):
    """Whatever the number of rows at a time."""
    monkeypatch.setattr(plain, "SCORES", scores)
    inputs, mask = some_inputs(*sizes), some_mask(*sizes[:3])
    expected = results(inputs, mask, "reference", dropout=dropout)
    for what, result in results(inputs, mask, backend, dropout=dropout).items():
        assert_near(result, expected[what], what)


@every_fast_backend
def test_rows_apart_in_memory(backend):
    """As a core has them: parts of one product, and by head."""
    B, T, S, H, D = 3, 4, 6, 2, 3
    (query, *others), mask = some_inputs(B, T, S, H, D), some_mask(B, T, S)
    apart = torch.randn(B, T, 3, H, D, dtype=torch.float64)
    apart[:, :, 1] = query.detach()
    by_head = [x.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_() for x in others[:2]]
    found = results([apart[:, :, 1].requires_grad_(), *by_head, *others[2:]], mask, backend)
    for what, expected in results([query, *others], mask, backend).items():
        assert_near(found[what], expected, what)


@every_fast_backend
def test_float32(backend):
    sizes = (3, 30, 50, 2, 16)
    inputs, mask = some_inputs(*sizes, dtype=torch.float32), some_mask(*sizes[:3])
    expected = results([x.detach().double().requires_grad_() for x in inputs], mask, "reference")
    for what, result in results(inputs, mask, backend).items():
        assert result.dtype == torch.float32
        assert_near(result, expected[what], what)


@every_backend
def test_autocast_and_half_precision(backend):
    inputs, mask = some_inputs(2, 4, 6, 2, 4, dtype=torch.float32), some_mask(2, 4, 6)
    expected = relative_attention(*inputs, mask, backend=backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_near(relative_attention(*inputs, mask, backend=backend), expected)
    half = relative_attention(*(x.bfloat16() for x in inputs), mask, backend=backend)
    assert half.dtype == torch.bfloat16
    assert_near(half, expected)


@every_backend
def test_dropout_keeps_the_mean(backend):
    inputs, mask = [x.detach() for x in some_inputs(1, 2, 4, 1, 2)], some_mask(1, 2, 4)
    many = [x.expand(4000, *x.shape[1:]) for x in inputs[:3]] + inputs[3:]
    found = relative_attention(*many, mask.expand(4000, -1, -1), dropout=0.3, backend=backend)
    expected = relative_attention(*inputs, mask, backend=backend)
    assert_near(found.mean(0, keepdim=True), expected, tolerance=0.1)
    assert found.std(0).min() > 0.01


@every_fast_backend
def test_what_is_masked_has_no_influence(backend):
    inputs, mask = some_inputs(2, 3, 5, 2, 4), some_mask(2, 3, 5)
    mask[..., 1] = False
    found = results(inputs, mask, backend)
    assert not found["gradient of key"][:, 1].any() and not found["gradient of value"][:, 1].any()
    for x in inputs[1:3]:
        x.data[:, 1] *= -1e3
    assert_near(results(inputs, mask, backend)["outputs"], found["outputs"])


@every_fast_backend
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_where_the_reference_is_finite(backend, name, value):
    inputs, mask = [x.detach() for x in some_inputs(2, 3, 5, 2, 4)], some_mask(2, 3, 5)
    inputs[NAMES.index(name)][0, 0] = value
    found, expected = (relative_attention(*inputs, mask, backend=b) for b in (backend, "reference"))
    assert not expected.isfinite().all()
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10, equal_nan=True)


@every_fast_backend
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_custom_operators_keep_torchs_rules(backend, dropout):
    inputs, mask = some_inputs(2, 3, 5, 2, 4), some_mask(2, 3, 5)
    with CustomOps() as custom_ops:
        relative_attention(*inputs, mask, backend=backend, dropout=dropout).square().sum().backward()
    assert len(custom_ops.calls) == 2
    for operator, args, kwargs in custom_ops.calls:
        torch.library.opcheck(operator, args, kwargs)


@every_fast_backend
def test_compiles_as_one_graph(backend):
    inputs, mask = some_inputs(2, 3, 5, 2, 4), some_mask(2, 3, 5)
    compiled = torch.compile(
        lambda *x: relative_attention(*x, mask, backend=backend), fullgraph=True, backend="aot_eager"
    )
    expected = torch.autograd.grad(relative_attention(*inputs, mask, backend=backend).square().sum(), inputs)
    for found, wanted in zip(torch.autograd.grad(compiled(*inputs).square().sum(), inputs), expected, strict=True):
        assert_near(found, wanted)


@every_fast_backend
def test_activation_checkpointing_gives_the_same_bits(backend):
    inputs, mask = some_inputs(2, 3, 5, 2, 4), some_mask(2, 3, 5)

    def run(*x: Tensor) -> Tensor:
        return relative_attention(*x, mask, backend=backend)

    expected = torch.autograd.grad(run(*inputs).square().sum(), inputs)
    found = torch.autograd.grad(checkpoint(run, *inputs, use_reentrant=False).square().sum(), inputs)
    assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


@pytest.mark.parametrize("index", range(1, 7))
def test_shapes_are_checked(index):
    arguments = [*some_inputs(2, 3, 5, 2, 4), some_mask(2, 3, 5)]
    arguments[index] = arguments[index][..., :-1]
    with pytest.raises(ValueError, match="has shape"):
        relative_attention(*arguments)
