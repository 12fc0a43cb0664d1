"""The ops as torch sees them: custom operators that keep its rules, and functions that it can compile."""

import pytest
import torch
from test_fast_weight_memory import GENERAL
from test_fast_weight_memory import some_inputs as some_memory_inputs
from test_fast_weight_recurrences import OPS as RECURRENCES
from test_fast_weight_recurrences import some_inputs as some_recurrence_inputs
from test_lstm_recurrence import some_inputs as some_lstm_inputs
from test_metalearned_memory import some_inputs as some_mnm_inputs
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from fastweights.ops import fwm, lstm, mnm
from tolerances import assert_near

NAMESPACE = "fastweights"


class CustomOps(TorchDispatchMode):
    """Notes down every call of an operator of ours, also within a backward pass."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        if operator.namespace == NAMESPACE:
            copies = tree_map_only(torch.Tensor, lambda x: x.detach().clone(), [*args])
            self.calls.append((operator, copies, kwargs or {}))
        return operator(*args, **(kwargs or {}))


def masks_of(B: int, T: int, *names: str) -> dict[str, torch.Tensor]:
    return {name: torch.rand(B, T) < 0.5 for name in names}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("op", "backend"), [(op, name) for op in ("fwm", "lstm", "mnm", *RECURRENCES) for name in GENERAL]
)
def test_custom_operators_keep_torchs_rules(op, backend, masked):
    B, T = 2, 5
    with CustomOps() as custom_ops:
        if op == "fwm":
            masks = masks_of(B, T, "output_mask", "mask", "resets") if masked else {}
            outputs = fwm.fast_weight_memory(*some_memory_inputs(B, T, 3, 3, 3, 2), backend=backend, **masks)
        elif op in RECURRENCES:
            masks = masks_of(B, T, "mask", "resets") if masked else {}
            run, _ = RECURRENCES[op]
            outputs = run(*some_recurrence_inputs(op, B, T, 3), chunk=3, backend=backend, **masks)
        elif op == "mnm":
            masks = masks_of(B, T, "mask", "resets") if masked else {}
            outputs = mnm.metalearned_memory(*some_mnm_inputs(B, T, 4, 3, 2, 3), backend=backend, **masks)
        else:
            masks = masks_of(B, T, "mask", "resets") if masked else {}
            outputs = lstm.lstm(*some_lstm_inputs(B, T, 3), backend=backend, **masks)
        sum(x.square().sum() for x in outputs if x is not None).backward()
    assert bool(custom_ops.calls) == (backend != "reference")
    for operator, args, kwargs in custom_ops.calls:
        torch.library.opcheck(operator, args, kwargs)
        if not operator.name().endswith("backward"):
            tensors = [x.requires_grad_() if torch.is_tensor(x) and x.is_floating_point() else x for x in args]
            torch.library.opcheck(operator, tensors, kwargs)


@pytest.mark.parametrize("backend", sorted({*GENERAL} - {"reference"}))
@pytest.mark.parametrize("masked", [False, True])
def test_compiles_as_one_graph(backend, masked):
    B, T, H, d = 2, 6, 4, 3
    masks = masks_of(B, T, "mask", "resets") if masked else {}
    output_mask = masks_of(B, T, "output_mask") if masked else {}

    def model(gate_inputs, weight, hidden, cell, memory):
        h, hidden, cell = lstm.lstm(
            gate_inputs,
            weight,
            hidden,
            cell,
            backend=backend,
            **masks,
        )
        k1, k2, v, n, e = (h[..., :d] * factor for factor in (0.5, 1.0, 1.5, 2.0, 3.0))
        y, memory = fwm.fast_weight_memory(
            k1, k2, v, h[..., 3].sigmoid(), n, e.unsqueeze(2), memory,
            backend=backend, **masks, **output_mask,
        )  # fmt: skip
        return y, hidden, cell, memory

    inputs = [*some_lstm_inputs(B, T, H), torch.randn(B, d, d, d, dtype=torch.float64, requires_grad=True)]
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    found, expected = compiled(*inputs), model(*inputs)
    weights = [torch.randn_like(x) for x in expected]
    gradients, expected_gradients = (torch.autograd.grad(x, inputs, weights) for x in (found, expected))
    for result, wanted in zip((*found, *gradients), (*expected, *expected_gradients), strict=True):
        assert_near(result, wanted)
