"""One step of an FWM in one compiled call: as the definition, whatever the sizes, the rows and the memory's form."""

import pytest
import torch
from torch import Tensor

from fastweights.cores import FastWeightMemory
from fastweights.cores import fwm as module
from fastweights.ops import cpu
from fastweights.ops.fwm.writes import WriteLog
from tolerances import assert_near

if cpu.PROBLEM:
    pytest.skip(cpu.PROBLEM, allow_module_level=True)

T = 9
SIZES = {  # input, hidden, memory, reads, and other options
    "paper": (10, 64, 32, 3, {"write_scale": 1 / 32, "tanh_first_query": False, "residual": False}),
    "agent": (17, 32, 16, 1, {}),
    "odd": (5, 21, 8, 2, {"tanh_queries": False}),
    "one unit": (1, 1, 8, 4, {"tanh_queries": False, "tanh_first_query": False}),
    "two biases": (3, 18, 16, 2, {"slow": {"type": "lstm", "hidden_size": 18, "second_bias": True}}),
}  # fmt: skip


@pytest.fixture(params=range(cpu.best() + 1), ids=cpu.INSTRUCTION_SETS[: cpu.best() + 1])
def instruction_set(request, monkeypatch):
    monkeypatch.setattr(cpu, "INSTRUCTION_SET", request.param)


@pytest.fixture
def steps(monkeypatch) -> list[int]:
    """The batch sizes of the compiled steps that were made."""
    made = []

    def counted(x, *others, **options):
        made.append(x.shape[0])
        return step(x, *others, **options)

    step = module.core_step
    monkeypatch.setattr(module, "core_step", counted)
    return made


def some_core(case: str) -> tuple[FastWeightMemory, FastWeightMemory]:
    """A core, and the same in float64 by the definition."""
    size, hidden, memory, reads, options = SIZES[case]
    slow = {"slow": {**options["slow"], "backend": "reference"}} if "slow" in options else {}
    core = FastWeightMemory(size, hidden, memory, reads, **options)
    definition = FastWeightMemory(size, hidden, memory, reads, **{**options, **slow}, backend="reference").double()
    definition.load_state_dict(core.state_dict())
    return core, definition


def step_by_step(core: FastWeightMemory, x: Tensor, state) -> tuple[Tensor, object]:
    found = []
    for t in range(x.shape[1]):
        y, state = core(x[:, t : t + 1], state)
        found.append(y)
    return torch.cat(found, 1), state


@torch.no_grad()
@pytest.mark.parametrize("B", [1, 3, 4, 37])
@pytest.mark.parametrize("case", SIZES)
def test_steps_equal_the_definition(case, B, instruction_set, steps):
    core, definition = some_core(case)
    x = torch.randn(B, T, core.input_size)
    expected, last = definition(x.double())
    for state in (None, core.initial_state(B), core.rollout_state(B, T)):
        y, found = step_by_step(core, x, state)
        assert_near(y, expected, "outputs", 1e-4)
        assert_near(found.slow.hidden, last.slow.hidden, "hidden", 1e-5)
        assert_near(found.slow.cell, last.slow.cell, "cell", 1e-5)
        if not isinstance(found.memory, WriteLog):
            assert_near(found.memory, last.memory, "memory", 1e-4)
    assert steps == [B] * 3 * T


@torch.no_grad()
def test_a_state_that_was_given_is_left_as_it_was(steps):
    core, _ = some_core("agent")
    _, state = core(torch.randn(2, 5, core.input_size))
    before = [x.clone() for x in (*state.slow, state.memory)]
    core(torch.randn(2, 1, core.input_size), state)
    assert steps == [2]
    assert all(torch.equal(x, y) for x, y in zip((*state.slow, state.memory), before, strict=True))


@torch.no_grad()
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_row_with_a_non_finite_input_does_not_touch_the_others(value, steps):
    core, definition = some_core("agent")
    x = torch.randn(6, 1, core.input_size)
    x[2, 0, 3] = value
    y, state = core(x)
    expected, last = definition(x.double())
    assert steps == [6]
    assert torch.equal(y.isfinite(), expected.isfinite())
    assert torch.equal(state.memory.isfinite(), last.memory.isfinite())


@torch.no_grad()
def test_a_full_log_is_an_error(steps):
    core, _ = some_core("agent")
    state = core.rollout_state(2, 16)
    x = torch.randn(2, 1, core.input_size)
    for _ in range(16):
        _, state = core(x, state)
    with pytest.raises(ValueError, match="room for 16 writes"):
        core(x, state)


def test_where_gradients_dropout_masks_or_another_form_matter_the_step_is_made_by_ops(steps):
    core, _ = some_core("agent")
    x = torch.randn(2, 1, core.input_size)
    core(x)[0].sum().backward()
    with torch.no_grad():
        core(x, mask=torch.ones(2, 1, dtype=torch.bool))
        core.double()(x.double())
        some_core("agent")[1](x.double())
        dropping = FastWeightMemory(3, 8, 8, slow={"type": "lstm", "hidden_size": 8, "recurrent_dropout": 0.5})
        dropping.train()(torch.randn(2, 1, 3))
        FastWeightMemory(3, 8, 8, pairing="concatenation")(torch.randn(2, 1, 3))
        FastWeightMemory(3, 8, 8, slow="ln-lstm")(torch.randn(2, 1, 3))
    assert steps == []
