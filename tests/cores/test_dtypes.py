"""Cores in half precision, and under another default dtype than their own: dtypes are those of the parameters."""

import pytest
import torch
from test_state_consistency import CASES, INPUT_SIZE, OWN_CASES
from torch import Tensor

from fastweights.cores import Core
from fastweights.cores.contract import call_core, tensors_of
from tolerances import assert_near

B, T = 3, 9
EVERY = CASES | OWN_CASES
every_core = pytest.mark.parametrize("name", EVERY)


@pytest.fixture
def default_dtype():
    before = torch.get_default_dtype()
    yield torch.set_default_dtype
    torch.set_default_dtype(before)


def run(core: Core, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Two segments with masks, forward and backward, and a rollout's first step; outputs and states, checked."""
    dtype, masks = x.dtype, {"mask": torch.ones(B, T, dtype=torch.bool), "resets": torch.zeros(B, T, dtype=torch.bool)}
    masks["mask"][0, 4], masks["resets"][1, 5] = False, True
    masks = {name: mask for name, mask in masks.items() if name in core.supported_arguments}
    first, state = call_core(core, x, None, **masks)
    second, state = call_core(core, x, state)
    y = torch.cat([first, second], 1)
    y.square().sum().backward()
    with torch.no_grad():
        stepwise, _ = core(x[:, :1], core.rollout_state(B, 3))
    assert y.dtype == stepwise.dtype == dtype
    assert y.isfinite().all() and stepwise.isfinite().all()
    assert all(parameter.grad is None or parameter.grad.dtype == dtype for parameter in core.parameters())
    assert any(parameter.grad is not None for parameter in core.parameters())
    assert {part.dtype for part in tensors_of(core.initial_state(B))} == {dtype}
    return y.detach(), tensors_of(state)


@every_core
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(name, dtype):
    core, x = EVERY[name]().to(dtype), torch.randn(B, T, INPUT_SIZE, dtype=dtype)
    y, state = run(core, x)
    expected, _ = run(core.float(), x.float())
    # not the largest error: a layer norm of what is nearly 0 multiplies some
    assert (y.float() - expected).abs().median() <= 5 * torch.finfo(dtype).eps * expected.abs().median()
    # the package's own recurrences carry their states in float32; a core of one's own, in its dtype
    assert {part.dtype for part in state} <= ({torch.float32} if name in CASES else {torch.float32, dtype})


@every_core
@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16], ids=str)
def test_another_default_dtype(name, default, default_dtype):
    core, x = EVERY[name](), torch.randn(B, T, INPUT_SIZE)
    y, state = run(core, x)
    core.zero_grad()
    default_dtype(default)
    found, found_state = run(core, x)
    for result, expected in zip((found, *found_state), (y, *state), strict=True):
        if name in CASES:
            assert torch.equal(result, expected)
        assert_near(result, expected, tolerance=1e-2)
    assert {part.dtype for part in found_state} == {torch.float32}


@every_core
def test_built_under_another_default_dtype(name, default_dtype):
    default_dtype(torch.float64)
    core = EVERY[name]()
    assert {parameter.dtype for parameter in core.parameters()} == {torch.float64}
    _, state = run(core, torch.randn(B, T, INPUT_SIZE))
    assert {part.dtype for part in state} == {torch.float64}
