"""A log of writes against the memory itself, step by step."""

import pytest
import torch
from test_fast_weight_memory import some_inputs
from torch import Tensor

from fastweights.ops import cpu
from fastweights.ops.fwm import fast_weight_memory
from fastweights.ops.fwm.writes import WriteLog, write_and_read
from tolerances import assert_near

OPTIONS = {"write_scale": 0.7, "tanh_first_query": True, "tanh_queries": True}
SIZES = [(4, 4, 4, 3), (5, 3, 6, 1), (8, 8, 8, 2), (16, 16, 16, 3), (32, 32, 32, 1)]  # S, R, V and reads


def step_by_step(inputs: list[Tensor], backend: str = "auto") -> tuple[Tensor, WriteLog]:
    """The read-outs `[B, T, V]` of a memory that starts empty, and what was written."""
    k1, k2, v = inputs[:3]
    memory = WriteLog.empty(v, *v.shape[:1], k1.shape[-1], k2.shape[-1], v.shape[-1], capacity=v.shape[1])
    steps = zip(*(x.unbind(1) for x in inputs), strict=True)
    return torch.stack([write_and_read(memory, *step, **OPTIONS, backend=backend) for step in steps], 1), memory


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_equals_the_memory(sizes):
    inputs = [x.detach() for x in some_inputs(3, 33, *sizes)[:6]]
    found, writes = step_by_step(inputs)
    expected, memory = fast_weight_memory(*inputs, **OPTIONS, backend="reference")
    assert_near(found, expected)
    count = int(writes.num_writes)
    assert count == 33 and writes.decay.shape == (3, 48)
    k1, k2, decay = writes.first_keys[:, :, :count], writes.second_keys[:, :, :count], writes.decay[:, :count]
    formed = torch.einsum("bsc,brc,bc,bcv->bsrv", k1, k2, decay, writes.written[:, :count])
    assert_near(formed, memory)
    assert_near(writes.squared_norm, memory.square().sum((1, 2, 3)))


@pytest.mark.skipif(cpu.PROBLEM is not None, reason=str(cpu.PROBLEM))
@pytest.mark.parametrize("name", cpu.INSTRUCTION_SETS[: cpu.best() + 1])
@pytest.mark.parametrize("sizes", SIZES[2:], ids=str)
def test_the_kernel_equals_plain_torch(sizes, name, monkeypatch):
    monkeypatch.setattr(cpu, "INSTRUCTION_SET", cpu.INSTRUCTION_SETS.index(name))
    inputs = [x.detach() for x in some_inputs(5, 20, *sizes)[:6]]
    inputs[3] = torch.rand(20, 5, dtype=torch.float64).T  # not contiguous
    truth, _ = step_by_step(inputs)
    halved = [x.float() for x in inputs]
    calls = []
    monkeypatch.setattr(cpu, "call", lambda *given, call=cpu.call: (calls.append(given[0]), call(*given)))
    found, _ = step_by_step(halved)
    plain, _ = step_by_step(halved, "plain")
    assert calls == ["fwm_step"] * 20
    for result in (found, plain):
        assert_near(result.double(), truth, tolerance=1e-4)


def test_a_full_memory_and_other_pairings_are_refused():
    inputs = [x.detach() for x in some_inputs(1, 16, 4, 4, 4, 1)[:6]]
    _, memory = step_by_step(inputs)
    with pytest.raises(ValueError, match="room for 16 writes"):
        write_and_read(memory, *(x[:, 0] for x in inputs))
    with pytest.raises(ValueError, match="concatenation"):
        write_and_read(WriteLog.empty(inputs[2], 1, 4, 4, 4, 3), *(x[:, 0] for x in inputs), pairing="concatenation")


def test_a_backend_that_cannot_run_is_said_when_insisted_on():
    inputs = [x.detach() for x in some_inputs(1, 3, 4, 4, 4, 1)[:6]]
    with pytest.raises(ValueError, match='cannot run with backend "cpu"'):
        step_by_step(inputs, "cpu")
