"""The compiled Metalearned Neural Memory, with every instruction set of this processor, against the definition."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_metalearned_memory import RESULTS, results, some_inputs, some_masks
from torch import Tensor

from fastweights.ops import cpu
from fastweights.ops.mnm import metalearned_memory
from tolerances import assert_near, relative_error

if cpu.PROBLEM:
    pytest.skip(cpu.PROBLEM, allow_module_level=True)

AVAILABLE = cpu.INSTRUCTION_SETS[: cpu.best() + 1]


@pytest.fixture(params=AVAILABLE, autouse=True)
def instruction_set(request, monkeypatch):
    monkeypatch.setattr(cpu, "INSTRUCTION_SET", cpu.INSTRUCTION_SETS.index(request.param))


def float_inputs(*sizes: int) -> list[Tensor]:
    return some_inputs(*sizes, torch.float32)


def assert_as_exact_as_float32_can_be(inputs: list[Tensor], **masks) -> None:
    """No worse than five times what the definition itself loses in float32, or than 1e-4."""
    truth = results([x.detach().double().requires_grad_() for x in inputs], backend="reference", **masks)
    definition, found = (results(inputs, backend=backend, **masks) for backend in ("reference", "cpu"))
    for what in truth:
        assert found[what].isfinite().all(), what
        # small differences grow from step to step, in the definition as in the kernel
        allowed = max(1e-4, 5 * relative_error(definition[what], truth[what]))
        if truth[what].abs().max() > 1e-3:
            assert relative_error(found[what], truth[what]) <= allowed, what


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    "sizes",
    [
        (1, 1, 3, 2, 3, 3), (5, 1, 16, 16, 1, 1), (30, 9, 20, 17, 3, 3), (3, 40, 33, 10, 2, 4), (2, 26, 64, 48, 5, 2),
        (26, 3, 70, 100, 3, 3), (2, 17, 1, 1, 1, 3),
    ],
    ids=str,
)  # fmt: skip
def test_equals_the_reference(sizes, masked):
    assert_as_exact_as_float32_can_be(float_inputs(*sizes), **(some_masks(*sizes[:2]) if masked else {}))


@settings(max_examples=15)
@given(
    sizes=st.tuples(st.integers(1, 4), st.integers(1, 30), *[st.integers(1, 40)] * 2, *[st.integers(1, 4)] * 2),
    mask_share=st.sampled_from([None, 0.0, 0.5, 1.0]),
    reset_share=st.sampled_from([None, 0.0, 0.2, 1.0]),
    seed=st.integers(0, 2**31),
)
def test_equals_the_reference_at_any_size_with_any_masks(sizes, mask_share, reset_share, seed):
    torch.manual_seed(seed)
    shares = {"mask": mask_share, "resets": reset_share}
    masks = {name: torch.rand(*sizes[:2]) < share for name, share in shares.items() if share is not None}
    assert_as_exact_as_float32_can_be(float_inputs(*sizes), **masks)


def test_the_same_bits_whatever_the_threads_or_the_need_for_a_gradient():
    inputs, masks, before = float_inputs(53, 12, 18, 11, 3, 2), some_masks(53, 12), torch.get_num_threads()
    expected = results(inputs, backend="cpu", **masks)
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found = results(inputs, backend="cpu", **masks)
            # torch's own products and sums for the slow weights' gradients may split their sums by threads
            exempt = {what for what in expected if "weight" in what or "bias" in what} if threads != before else set()
            assert all(torch.equal(found[what], expected[what]) for what in expected.keys() - exempt)
    finally:
        torch.set_num_threads(before)
    with torch.no_grad():
        found = metalearned_memory(*inputs, backend="cpu", **masks)
    assert all(torch.equal(x, expected[name]) for name, x in zip(RESULTS, found, strict=True))


def test_inputs_need_not_be_contiguous_and_stay_as_they_were():
    inputs, masks = [x.detach() for x in float_inputs(3, 12, 5, 4, 2, 3)], some_masks(3, 12)
    expected = metalearned_memory(*inputs, backend="cpu", **masks)
    strided = [x.transpose(0, -1).contiguous().transpose(0, -1) for x in inputs]
    before = [x.clone() for x in strided]
    found = metalearned_memory(*strided, backend="cpu", **{name: mask.T.contiguous().T for name, mask in masks.items()})
    assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))
    assert all(torch.equal(x, y) for x, y in zip(strided, before, strict=True))


@pytest.mark.parametrize("index", range(len(RESULTS)), ids=RESULTS)
def test_any_result_may_be_alone_in_a_loss(index):
    inputs = float_inputs(2, 10, 6, 5, 2, 3)[:-1]
    initial = torch.zeros(3, 5, 5)
    found, expected = (
        torch.autograd.grad(
            metalearned_memory(*inputs, initial, backend=backend)[index].square().sum(), inputs, materialize_grads=True
        )
        for backend in ("cpu", "reference")
    )
    for gradient, other in zip(found, expected, strict=True):
        assert_near(gradient, other, tolerance=1e-3)


def test_gradients_of_single_inputs():
    inputs, initial = float_inputs(2, 20, 6, 5, 2, 3)[:-1], torch.zeros(3, 5, 5)
    loss = lambda y: (y.square() * y.cumsum(1)).sum()  # noqa: E731
    gradients = torch.autograd.grad(loss(metalearned_memory(*inputs, initial, backend="cpu")[0]), inputs)
    for wanted, expected in enumerate(gradients):
        only = [x.detach().requires_grad_(index == wanted) for index, x in enumerate(inputs)]
        y = metalearned_memory(*only, initial, backend="cpu")[0]
        assert torch.equal(torch.autograd.grad(loss(y), only[wanted])[0], expected)


def test_second_derivatives_are_those_of_the_definition():
    inputs, initial = float_inputs(2, 3, 5, 4, 2, 2)[:-1], torch.zeros(2, 4, 4)
    found = {}
    for backend in ("cpu", "reference"):
        y = metalearned_memory(*inputs, initial, backend=backend)[0]
        first = torch.autograd.grad(y.pow(3).sum(), inputs, create_graph=True)
        found[backend] = torch.autograd.grad(sum(x.square().sum() for x in first), inputs)
    for result, expected in zip(found["cpu"], found["reference"], strict=True):
        assert_near(result, expected, tolerance=1e-3)


@pytest.mark.parametrize("masked", [False, True])
def test_custom_operators_keep_torchs_rules(masked):
    *inputs, initial = float_inputs(2, 10, 6, 5, 2, 2)
    masks = list(some_masks(2, 10).values()) if masked else [None, None]
    torch.library.opcheck(torch.ops.fastweights.mnm_cpu, (*inputs, initial.detach(), *masks, True))


def test_what_the_kernel_cannot_do_is_left_to_plain_torch_and_said_when_insisted_on():
    inputs = some_inputs(1, 3, 4, 3, 2, 2)
    with pytest.raises(ValueError, match=r"float32.*float64"):
        metalearned_memory(*inputs, backend="cpu")
    for found, expected in zip(metalearned_memory(*inputs), metalearned_memory(*inputs, backend="plain"), strict=True):
        assert torch.equal(found, expected)
