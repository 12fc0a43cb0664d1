"""The fast weight memory: its definition by numerical gradients, every backend against the definition."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastweights.ops.fwm import BACKENDS, fast_weight_memory
from fastweights.ops.fwm.pairing import PAIRINGS
from tolerances import TOLERANCES, assert_near, relative_error

GENERAL = [name for name in BACKENDS if name != "cpu"]  # any size and dtype; test_compiled.py has the others
FAST_BACKENDS = [name for name in GENERAL if name != "reference"]
NAMES = [
    "first_keys",
    "second_keys",
    "values",
    "write_strengths",
    "first_queries",
    "second_queries",
    "memory",
]

every_backend = pytest.mark.parametrize("backend", GENERAL)
every_fast_backend = pytest.mark.parametrize("backend", FAST_BACKENDS)
every_pairing = pytest.mark.parametrize("pairing", PAIRINGS)


def some_inputs(
    B: int,
    T: int,
    S: int,
    R: int,
    V: int,
    N: int,
    pairing: str = "product",
    dtype=torch.float64,
    sharpness=1.0,
) -> list[Tensor]:
    """Seven tensors that require gradients, in the order of NAMES; the memories' norms are 0.3 to 1.5."""

    def squashed(*shape: int) -> Tensor:
        return (torch.randn(*shape, dtype=torch.float64) * sharpness).tanh()

    shape = (B, S, R, V) if pairing == "product" else (B, S + R, V)
    memory = torch.nn.functional.normalize(torch.randn(shape, dtype=torch.float64).flatten(1))
    norms = torch.linspace(0.3, 1.5, B, dtype=torch.float64).unsqueeze(-1)
    tensors = [
        squashed(B, T, S),
        squashed(B, T, R),
        squashed(B, T, V),
        torch.rand(B, T, dtype=torch.float64),
        squashed(B, T, S),
        squashed(B, T, N, R),
        (memory * norms).view(shape),
    ]
    return [tensor.to(dtype).requires_grad_() for tensor in tensors]


def some_masks(B: int, T: int) -> dict[str, Tensor]:
    return {
        "output_mask": torch.rand(B, T) < 0.3,
        "mask": torch.rand(B, T) < 0.8,
        "resets": torch.rand(B, T) < 0.05,
    }


def loss_of(y: Tensor, memory: Tensor) -> Tensor:
    """A loss with fixed random weights (no plain sum: what leaves a layer norm always sums to zero)."""
    generator = torch.Generator().manual_seed(1)
    weights = (torch.randn(x.shape, dtype=torch.float64, generator=generator).to(x.dtype) for x in (y, memory))
    return sum((x * weight).sum() for x, weight in zip((y, memory), weights, strict=True))


def results(inputs: list[Tensor], backend: str, create_graph: bool = False, **options) -> dict[str, Tensor]:
    """Read-outs, final memory and the gradients of all inputs."""
    y, memory = fast_weight_memory(*inputs, backend=backend, **options)
    gradients = torch.autograd.grad(loss_of(y, memory), inputs, create_graph=create_graph)
    named = {f"gradient of {name}": gradient for name, gradient in zip(NAMES, gradients, strict=True)}
    return {"read-outs": y, "final memory": memory} | named


def assert_like_the_reference(inputs: list[Tensor], backend: str, **options) -> None:
    expected = results(inputs, "reference", **options)
    for what, result in results(inputs, backend, **options).items():
        assert_near(result, expected[what], what)


# The definition


def test_writes_and_reads_as_the_equations_say():
    k1, k2, v, beta, n, e, F = (x.detach() for x in some_inputs(1, 1, 3, 4, 3, 2))
    F = F / F.norm() * 0.9
    y, new_F = fast_weight_memory(k1, k2, v, beta, n, e, F, write_scale=0.5, backend="reference")

    k1, k2, v, beta, n, e, F = k1[0, 0], k2[0, 0], v[0, 0], beta[0, 0], n[0, 0], e[0, 0], F[0]
    v_old = torch.einsum("srv,s,r->v", F, k1, k2)
    written = F + 0.5 * beta * torch.einsum("s,r,v->srv", k1, k2, v - v_old)  # eq. 3
    written = written / max(1, written.norm())  # eq. 4
    for i in range(2):  # eq. 7
        retrieved = torch.einsum("srv,s,r->v", written, n, e[i])
        n = (retrieved - retrieved.mean()) / (retrieved.var(correction=0) + 1e-5).sqrt()
    assert_near(new_F[0], written)
    assert_near(y[0, 0], n)


@every_backend
def test_a_fact_is_read_through_a_chain(backend):
    """Write a→b and b→c; a chain of two reads from a gives c."""
    a, b, c, relation = torch.eye(4, dtype=torch.float64)
    first_keys, values = torch.stack([a, b])[None], torch.stack([b, c])[None]
    second_keys = torch.stack([relation, relation])[None]
    queries = torch.stack([a, a])[None], second_keys.unsqueeze(2).expand(1, 2, 2, 4)
    y, _ = fast_weight_memory(
        first_keys, second_keys, values, torch.ones(1, 2, dtype=torch.float64), *queries, backend=backend
    )
    assert y[0, -1].argmax() == c.argmax()


@every_backend
@every_pairing
def test_gradients_are_the_derivatives(backend, pairing):
    inputs = some_inputs(2, 4, 2, 3, 2, 2, pairing)
    masks = {
        "output_mask": torch.tensor([[1, 0, 1, 1], [0, 1, 1, 0]]).bool(),
        "mask": torch.tensor([[1, 1, 0, 1], [1, 1, 1, 1]]).bool(),
        "resets": torch.tensor([[0, 0, 0, 0], [0, 0, 1, 0]]).bool(),
    }
    for options in ({}, masks):
        assert torch.autograd.gradcheck(
            lambda *x, options=options: fast_weight_memory(*x, pairing=pairing, backend=backend, **options),
            inputs,
        )


@every_backend
@every_pairing
def test_second_gradients_are_the_second_derivatives(backend, pairing):
    inputs = some_inputs(2, 3, 2, 2, 2, 2, pairing)
    masks = {
        "output_mask": torch.tensor([[1, 0, 1], [0, 1, 1]]).bool(),
        "mask": torch.tensor([[1, 1, 0], [1, 1, 1]]).bool(),
        "resets": torch.tensor([[0, 0, 0], [0, 0, 1]]).bool(),
    }
    assert torch.autograd.gradgradcheck(
        lambda *x: fast_weight_memory(*x, pairing=pairing, backend=backend, **masks), inputs
    )


# Every backend against the definition


@every_fast_backend
@every_pairing
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    "sizes",
    [(1, 1, 4, 4, 4, 1), (5, 1, 4, 3, 4, 2), (5, 63, 4, 5, 4, 3), (1, 63, 3, 5, 6, 1), (1, 200, 4, 4, 4, 2)],
    ids=str,
)
def test_equals_the_reference(backend, pairing, sizes, masked):
    masks = some_masks(*sizes[:2]) if masked else {}
    assert_like_the_reference(some_inputs(*sizes, pairing), backend, pairing=pairing, **masks)


@every_fast_backend
@pytest.mark.parametrize("mask", ["output_mask", "mask", "resets"])
def test_equals_the_reference_with_one_mask(backend, mask):
    inputs = some_inputs(5, 90, 4, 4, 4, 3)
    masks = some_masks(5, 90)
    assert_like_the_reference(inputs, backend, **{mask: masks[mask]})


@every_fast_backend
@pytest.mark.parametrize("sharpness", [0.1, 10.0])
def test_equals_the_reference_where_the_norm_never_and_always_clamps(backend, sharpness):
    inputs = some_inputs(3, 90, 4, 4, 4, 3, sharpness=sharpness)
    inputs[-1] = (inputs[-1].detach() * 0.1).requires_grad_()
    assert_like_the_reference(inputs, backend)


@every_fast_backend
@pytest.mark.parametrize(
    "options", [{"write_scale": 0.25}, {"tanh_first_query": True}, {"tanh_queries": True}], ids=str
)
def test_equals_the_reference_with_options(backend, options):
    inputs = some_inputs(2, 45, 4, 4, 4, 3)
    with torch.no_grad():
        inputs[4] *= 3
        inputs[5] *= 3
    assert_like_the_reference(inputs, backend, **options)


@every_fast_backend
@settings(max_examples=30)
@given(st.data())
def test_equals_the_reference_at_any_size_with_any_masks(backend, data):
    B, T, S, R = (data.draw(st.integers(1, most), label=name) for name, most in zip("BTSR", (4, 90, 5, 5), strict=True))
    N = data.draw(st.integers(1, 3), label="N")
    V = S if N > 1 else data.draw(st.integers(1, 5), label="V")
    torch.manual_seed(data.draw(st.integers(0, 2**31), label="seed"))
    pairing = data.draw(st.sampled_from(sorted(PAIRINGS)), label="pairing")
    inputs = some_inputs(B, T, S, R, V, N, pairing)
    masks = {}
    for name in ("output_mask", "mask", "resets"):
        share = data.draw(st.sampled_from([None, 0.0, 0.05, 0.5, 0.95, 1.0]), label=name)
        if share is not None:
            masks[name] = torch.rand(B, T) < share
    expected = results(inputs, "reference", pairing=pairing, **masks)
    for what, result in results(inputs, backend, pairing=pairing, **masks).items():
        # near the layer norm's singular points rounding is magnified, so the bound is wider than elsewhere,
        # and what is zero but for rounding (a layer norm of one or two values) has no relative error
        scale = max(1e-3, expected[what].detach().abs().max().item())
        torch.testing.assert_close(result, expected[what], rtol=0, atol=1e-7 * scale, msg=lambda m, w=what: f"{w}: {m}")


@every_fast_backend
@pytest.mark.parametrize("write_scale", [1.0, 1 / 32])
def test_saturated_keys_in_float32_are_as_exact_as_the_reference(backend, write_scale):
    B, T, d = 2, 200, 32
    inputs = some_inputs(B, T, d, d, d, 3)
    with torch.no_grad():
        for index in (0, 1):
            inputs[index].copy_(inputs[index].sign())
    inputs32 = [x.detach().float().requires_grad_() for x in inputs]
    inputs64 = [x.detach().double().requires_grad_() for x in inputs32]
    output_mask = torch.rand(B, T) < 0.2
    truth, definition, fast = (
        results(x, name, write_scale=write_scale, output_mask=output_mask)
        for x, name in ((inputs64, "reference"), (inputs32, "reference"), (inputs32, backend))
    )
    for what in truth:
        assert fast[what].isfinite().all(), what
        assert relative_error(fast[what], truth[what]) <= 2 * relative_error(definition[what], truth[what]), what


@every_fast_backend
def test_in_float32(backend):
    assert_like_the_reference(some_inputs(3, 63, 8, 8, 8, 3, dtype=torch.float32), backend, **some_masks(3, 63))


@every_backend
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs(backend, dtype):
    inputs = some_inputs(3, 63, 8, 8, 8, 2, dtype=dtype)
    widened = [x.detach().float().requires_grad_() for x in inputs]
    expected = results(widened, "reference")
    found = results(inputs, backend)
    assert found["read-outs"].dtype == dtype
    assert found["final memory"].dtype == torch.float32
    for what, result in found.items():
        assert result.isfinite().all(), what
        assert_near(result, expected[what], what, TOLERANCES[dtype])


@every_backend
def test_autocast_leaves_the_recurrence_alone(backend):
    inputs = some_inputs(3, 63, 8, 8, 8, 2, dtype=torch.float32)
    expected = results(inputs, backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, memory = fast_weight_memory(*inputs, backend=backend)
    assert torch.equal(y, expected["read-outs"])
    assert torch.equal(memory, expected["final memory"])
    loss_of(y, memory).backward()  # outside, as torch recommends
    for name, x in zip(NAMES, inputs, strict=True):
        assert torch.equal(x.grad, expected[f"gradient of {name}"]), name


@every_fast_backend
def test_autocast_leaves_the_gradient_alone(backend):
    inputs = some_inputs(3, 63, 8, 8, 8, 2, dtype=torch.float32)
    expected = results(inputs, backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = results(inputs, backend)
    assert all(torch.equal(found[what], expected[what]) for what in expected)


# What a user may rely on


@every_backend
@every_pairing
def test_segments_equal_the_whole(backend, pairing):
    inputs = some_inputs(3, 83, 4, 4, 4, 2, pairing)
    masks = some_masks(3, 83)
    *tensors, memory = inputs
    whole, final = fast_weight_memory(*inputs, pairing=pairing, backend=backend, **masks)
    parts = []
    for start, stop in ((0, 1), (1, 42), (42, 83)):
        part, memory = fast_weight_memory(
            *(x[:, start:stop] for x in tensors),
            memory,
            pairing=pairing,
            backend=backend,
            **{name: mask[:, start:stop] for name, mask in masks.items()},
        )
        parts.append(part)
    assert_near(torch.cat(parts, 1), whole, "read-outs")
    assert_near(memory, final, "final memory")
    expected = torch.autograd.grad(loss_of(whole, final), inputs)
    gradients = torch.autograd.grad(loss_of(torch.cat(parts, 1), memory), inputs)
    for name, gradient, wanted in zip(NAMES, gradients, expected, strict=True):
        assert_near(gradient, wanted, f"gradient of {name}")


@every_backend
def test_rows_are_independent(backend):
    inputs = some_inputs(4, 50, 4, 4, 4, 2)
    masks = some_masks(4, 50)
    together = results(inputs, backend, **masks)
    for row in range(4):
        alone = [x[row : row + 1].detach() for x in inputs]
        masks_alone = {name: mask[row : row + 1] for name, mask in masks.items()}
        y, memory = fast_weight_memory(*alone, backend=backend, **masks_alone)
        assert_near(y[0], together["read-outs"][row])
        assert_near(memory[0], together["final memory"][row])


@every_backend
def test_outputs_are_zero_where_none_is_needed(backend):
    inputs = some_inputs(2, 50, 4, 4, 4, 2)
    output_mask = torch.rand(2, 50) < 0.3
    y, memory = fast_weight_memory(*inputs, output_mask=output_mask, backend=backend)
    y_everywhere, memory_everywhere = fast_weight_memory(*inputs, backend=backend)
    assert (y[~output_mask] == 0).all()
    assert_near(y[output_mask], y_everywhere[output_mask])
    assert_near(memory, memory_everywhere)


@every_backend
def test_no_reads_anywhere(backend):
    inputs = some_inputs(2, 50, 4, 4, 4, 2)
    found = results(inputs, backend, output_mask=torch.zeros(2, 50, dtype=torch.bool))
    assert (found["read-outs"] == 0).all()
    assert (found["gradient of first_queries"] == 0).all()
    assert (found["gradient of second_queries"] == 0).all()
    expected = results(inputs, "reference")["final memory"]
    assert_near(found["final memory"], expected)


@every_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_padding_leaves_the_memory_to_the_bit(backend, dtype):
    inputs = some_inputs(3, 50, 4, 4, 4, 2, dtype=dtype)  # the last row's norm is above 1
    mask = torch.ones(3, 50, dtype=torch.bool)
    mask[1:] = False
    _, memory = fast_weight_memory(*inputs, mask=mask, backend=backend)
    assert torch.equal(memory[1:], inputs[-1][1:])
    assert not torch.equal(memory[0], inputs[-1][0])


@every_backend
def test_a_reset_starts_from_an_empty_memory(backend):
    inputs = some_inputs(2, 50, 4, 4, 4, 2)
    resets = torch.zeros(2, 50, dtype=torch.bool)
    resets[:, [0, 30]] = True
    y, memory = fast_weight_memory(*inputs, resets=resets, backend=backend)
    y_fresh, memory_fresh = fast_weight_memory(*(x[:, 30:] for x in inputs[:-1]), backend=backend)
    assert_near(y[:, 30:], y_fresh)
    assert_near(memory, memory_fresh)
    assert_near(y[:, :30], fast_weight_memory(*(x[:, :30] for x in inputs[:-1]), backend=backend)[0])


@every_backend
def test_the_memory_never_grows_above_one(backend):
    inputs = some_inputs(3, 50, 4, 4, 4, 1, sharpness=10.0)
    for length in (1, 10, 50):
        _, memory = fast_weight_memory(*(x[:, :length] for x in inputs[:-1]), inputs[-1] * 10, backend=backend)
        assert (memory.flatten(1).norm(dim=1) <= 1 + 1e-12).all()


@every_backend
def test_no_memory_means_an_empty_one(backend):
    *tensors, memory = some_inputs(2, 10, 4, 4, 4, 2)
    y, final = fast_weight_memory(*tensors, backend=backend)
    y_zeros, final_zeros = fast_weight_memory(*tensors, torch.zeros_like(memory), backend=backend)
    assert torch.equal(y, y_zeros)
    assert torch.equal(final, final_zeros)


@every_backend
def test_inputs_need_not_be_contiguous_and_stay_as_they_were(backend):
    inputs = some_inputs(3, 50, 4, 4, 4, 2)
    masks = some_masks(3, 50)
    expected = results(inputs, backend, **masks)
    strided = [x.detach().transpose(0, -1).contiguous().transpose(0, -1).requires_grad_() for x in inputs]
    before = [x.detach().clone() for x in strided]
    strided_masks = {name: mask.T.contiguous().T for name, mask in masks.items()}
    for what, result in results(strided, backend, **strided_masks).items():
        assert_near(result, expected[what], what)
    assert all(torch.equal(x, y) for x, y in zip(strided, before, strict=True))


@every_backend
def test_the_gradient_does_not_depend_on_create_graph(backend):
    inputs = some_inputs(2, 50, 4, 4, 4, 2)
    masks = some_masks(2, 50)
    expected = results(inputs, backend, **masks)
    for what, result in results(inputs, backend, create_graph=True, **masks).items():
        assert_near(result, expected[what], what)


@every_backend
@pytest.mark.parametrize("wanted", range(7))
def test_gradients_of_single_inputs(backend, wanted):
    inputs = some_inputs(2, 20, 4, 4, 4, 2)
    expected = results(inputs, "reference")[f"gradient of {NAMES[wanted]}"]
    only = [x.detach().requires_grad_(index == wanted) for index, x in enumerate(inputs)]
    loss = loss_of(*fast_weight_memory(*only, backend=backend))
    assert_near(torch.autograd.grad(loss, only[wanted])[0], expected)


@every_backend
def test_the_same_bits_twice(backend):
    inputs = some_inputs(3, 63, 8, 8, 8, 3, dtype=torch.float32)
    masks = some_masks(3, 63)
    first, second = (results(inputs, backend, **masks) for _ in range(2))
    assert all(torch.equal(first[what], second[what]) for what in first)


# Errors


@pytest.mark.parametrize("index", range(7))
def test_a_wrong_shape_is_named(index):
    inputs = [x.detach() for x in some_inputs(2, 5, 4, 3, 4, 2)]
    inputs[index] = inputs[index][:1]
    named = NAMES[index] if NAMES[index] != "values" else "first_keys"  # all are compared with the values
    with pytest.raises(ValueError, match=f"{named} has shape .* must be"):
        fast_weight_memory(*inputs)


@pytest.mark.parametrize("mask", ["output_mask", "mask", "resets"])
def test_a_wrong_mask_is_named(mask):
    inputs = some_inputs(2, 5, 4, 3, 4, 2)
    with pytest.raises(ValueError, match=rf"{mask} has shape \[2, 4\]"):
        fast_weight_memory(*inputs, **{mask: torch.ones(2, 4, dtype=torch.bool)})


def test_other_mistakes_are_explained():
    inputs = some_inputs(2, 5, 4, 3, 4, 2)
    with pytest.raises(ValueError, match="pairing is 'sum'; it must be one of product, concatenation"):
        fast_weight_memory(*inputs, pairing="sum")
    with pytest.raises(ValueError, match='has no backend "plane"; did you mean "plain"'):
        fast_weight_memory(*inputs, backend="plane")
    with pytest.raises(ValueError, match=r"values have shape \[2, 5\]"):
        fast_weight_memory(*inputs[:2], inputs[2][..., 0], *inputs[3:])
    with pytest.raises(ValueError, match="the sequence is empty"):
        fast_weight_memory(*(x[:, :0] for x in inputs[:-1]))
    with pytest.raises(ValueError, match="2 reads with values of size 5 and first keys of size 4"):
        fast_weight_memory(*some_inputs(2, 5, 4, 3, 5, 2))
    with pytest.raises(ValueError, match="0 reads"):
        fast_weight_memory(*inputs[:5], inputs[5][:, :, :0], inputs[6])
