"""How near two results must be: the largest difference over the largest magnitude of what is expected."""

import torch
from torch import Tensor

TOLERANCES = {
    torch.float64: 1e-10,
    torch.float32: 1e-4,
    torch.float16: 5e-3,
    torch.bfloat16: 3e-2,
}


def relative_error(result: Tensor, expected: Tensor) -> float:
    assert result.shape == expected.shape, f"shape {list(result.shape)}, expected {list(expected.shape)}"
    if expected.numel() == 0:
        return 0.0
    wider = torch.promote_types(result.dtype, expected.dtype)
    difference = (result.detach().to(wider) - expected.detach().to(wider)).abs().max().item()
    return difference and difference / max(expected.abs().max().item(), torch.finfo(torch.float64).tiny)


def assert_near(result: Tensor, expected: Tensor, what: str = "", tolerance: float | None = None) -> None:
    """Fail where the relative error exceeds the tolerance (of the result's dtype, if not given) or is NaN."""
    if tolerance is None:
        tolerance = TOLERANCES[result.dtype]
    error = relative_error(result, expected)
    assert error <= tolerance, f"{what}: relative error {error:.1e}, allowed {tolerance:.0e}"
