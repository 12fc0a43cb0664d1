"""What every core promises about its state (fastweights.cores.contract). A new core is one line in CASES."""

import pytest
import torch
from torch import Tensor

from fastweights.cores import (
    CORES,
    LSTM,
    Core,
    FastWeightLSTM,
    FastWeightMemory,
    FastWeightRNN,
    LayerNormLSTM,
    LSTMStack,
    map_state,
    state_size,
)
from fastweights.cores.contract import state_from_dict, state_to_dict, tensors_of
from fastweights.ops.fwm.writes import Writes
from tolerances import assert_near

INPUT_SIZE = 5
CASES = {
    "LSTM": lambda: LSTM(INPUT_SIZE, 6),
    "LSTMStack": lambda: LSTMStack(INPUT_SIZE, 6, num_layers=3),
    "LSTMStack without residual": lambda: LSTMStack(INPUT_SIZE, 6, num_layers=2, residual=False),
    "FWM": lambda: FastWeightMemory(INPUT_SIZE, 6, 4),
    "FWM over LSTMStack": lambda: FastWeightMemory(INPUT_SIZE, memory_size=4, slow=LSTMStack(INPUT_SIZE, 6, 2)),
    "FWM over FWM": lambda: FastWeightMemory(INPUT_SIZE, memory_size=3, slow=FastWeightMemory(INPUT_SIZE, 6, 4)),
    "FWM, concatenation": lambda: FastWeightMemory(INPUT_SIZE, 6, 4, pairing="concatenation"),
    "FWM, one read": lambda: FastWeightMemory(INPUT_SIZE, 6, 4, num_reads=1, second_key_size=3, value_size=7),
    "FWM, published code": lambda: FastWeightMemory(
        INPUT_SIZE, 6, 4, write_scale=1 / 4, tanh_first_query=False, residual=False
    ),
    "LN-LSTM": lambda: LayerNormLSTM(INPUT_SIZE, 6),
    "FW-LSTM": lambda: FastWeightLSTM(INPUT_SIZE, 6),
    "FW-LSTM, decaying": lambda: FastWeightLSTM(INPUT_SIZE, 6, decay=0.9, rate=0.5),
    "FW-RNN": lambda: FastWeightRNN(INPUT_SIZE, 6),
    "FW-RNN, three inner steps": lambda: FastWeightRNN(INPUT_SIZE, 6, inner_steps=3, bias=False),
    "FWM over FW-LSTM": lambda: FastWeightMemory(INPUT_SIZE, memory_size=4, slow=FastWeightLSTM(INPUT_SIZE, 6)),
}
B, T = 4, 53


@pytest.fixture(params=CASES)
def core(request) -> Core:
    """A core in float64, with weights large enough that all its parts matter."""
    core = CASES[request.param]().double().eval()
    with torch.no_grad():
        for parameter in core.parameters():
            parameter.mul_(2).add_(torch.randn_like(parameter) * 0.1)
    return core


@pytest.fixture
def x() -> Tensor:
    return torch.randn(B, T, INPUT_SIZE, dtype=torch.float64)


def used_state(core: Core) -> tuple:
    """The state after some steps."""
    _, state = core(torch.randn(B, 7, INPUT_SIZE, dtype=torch.float64))
    return map_state(Tensor.detach, state)


def assert_same_state(state: tuple, expected: tuple, what: str = "") -> None:
    assert type(state) is type(expected)
    for index, (tensor, wanted) in enumerate(zip(tensors_of(state), tensors_of(expected), strict=True)):
        assert_near(tensor, wanted, f"part {index} of the state {what}")


def some_masks() -> dict[str, Tensor]:
    return {"valid": torch.rand(B, T) < 0.8, "resets": torch.rand(B, T) < 0.1}


def segment_ends(core: Core, kind: str) -> list[int]:
    if core.state_law != "exact":
        pytest.skip("this core promises equal results for equal segments only")
    return list(range(1, T + 1)) if kind == "steps" else [1, 20, 44, T]


# Time


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", ["segments", "steps"])
def test_the_whole_equals_its_parts(core, x, kind, masked):
    masks = some_masks() if masked else {}
    start = used_state(core)
    whole, expected_state = core(x, start, **masks)
    expected_gradients = torch.autograd.grad(whole.square().sum(), list(core.parameters()), allow_unused=True)

    parts, state, begin = [], start, 0
    for end in segment_ends(core, kind):
        part, state = core(x[:, begin:end], state, **{name: mask[:, begin:end] for name, mask in masks.items()})
        parts.append(part)
        begin = end
    assert_near(torch.cat(parts, 1), whole, "outputs")
    assert_same_state(state, expected_state)
    gradients = torch.autograd.grad(torch.cat(parts, 1).square().sum(), list(core.parameters()), allow_unused=True)
    for (name, _), gradient, wanted in zip(core.named_parameters(), gradients, expected_gradients, strict=True):
        assert_near(gradient, wanted, f"gradient of {name}")


def test_the_future_does_not_change_the_past(core, x):
    y, _ = core(x)
    changed = x.clone()
    changed[:, 30:] = torch.randn_like(changed[:, 30:])
    assert_near(core(changed)[0][:, :30], y[:, :30])


def test_no_state_is_the_initial_state(core, x):
    y, state = core(x)
    y_initial, state_initial = core(x, core.initial_state(B))
    assert torch.equal(y, y_initial)
    assert_same_state(state, state_initial)


# Rows


def test_a_row_does_not_depend_on_its_neighbours(core, x):
    masks, start = some_masks(), used_state(core)
    y, state = core(x, start, **masks)
    for row in range(B):
        only = slice(row, row + 1)
        y_alone, state_alone = core(
            x[only],
            map_state(lambda part, only=only: part[only], start),
            **{k: v[only] for k, v in masks.items()},
        )
        assert_near(y_alone, y[only])
        assert_same_state(state_alone, map_state(lambda part, only=only: part[only], state), f"of row {row}")


# Padding


def test_a_row_does_not_depend_on_padding(core, x):
    if core.state_law != "exact":
        pytest.skip("padding moves the segments' borders")
    start = used_state(core)
    valid = torch.rand(B, T) < 0.7
    x[~valid] *= 100
    y, state = core(x, start, valid=valid)
    for row in range(B):
        only = slice(row, row + 1)
        y_compact, state_compact = core(
            x[row, valid[row]].unsqueeze(0), map_state(lambda part, only=only: part[only], start)
        )
        assert_near(y[row, valid[row]], y_compact[0])
        assert_same_state(map_state(lambda part, only=only: part[only], state), state_compact, f"of row {row}")


def test_padding_leaves_the_state_to_the_bit(core, x):
    start = used_state(core)
    y, state = core(x, start, valid=torch.zeros(B, T, dtype=torch.bool))
    assert y.isfinite().all()
    for part, expected in zip(tensors_of(state), tensors_of(start), strict=True):
        assert torch.equal(part, expected)


# Resets


def test_a_reset_equals_a_fresh_start(core, x):
    resets = torch.zeros(B, T, dtype=torch.bool)
    starts = [0, 17, 43, T - 1]
    resets[range(B), starts] = True
    y, state = core(x, used_state(core), resets=resets)
    for row, first in enumerate(starts):
        only = slice(row, row + 1)
        y_fresh, state_fresh = core(x[only, first:])
        assert_near(y[only, first:], y_fresh)
        assert_same_state(map_state(lambda part, only=only: part[only], state), state_fresh, f"of row {row}")


def test_a_reset_at_a_padded_step_still_resets(core, x):
    here, valid = torch.zeros(B, T, dtype=torch.bool), torch.ones(B, T, dtype=torch.bool)
    here[:, 20], valid[:, 20] = True, False
    y, state = core(x, used_state(core), resets=here, valid=valid)
    y_fresh, state_fresh = core(x[:, 21:])
    assert_near(y[:, 21:], y_fresh)
    assert_same_state(state, state_fresh)


def test_no_gradient_passes_a_reset(core, x):
    x.requires_grad_()
    resets = torch.zeros(B, T, dtype=torch.bool)
    resets[:, 30] = True
    y, _ = core(x, resets=resets)
    (gradient,) = torch.autograd.grad(y[:, 30:].square().sum(), x)
    assert (gradient[:, :30] == 0).all()
    assert (gradient[:, 30:] != 0).any()


# Reads


def test_outputs_are_right_where_they_are_read(core, x):
    y, state = core(x)
    reads = torch.rand(B, T) < 0.3
    y_read, state_read = core(x, reads=reads)
    assert y_read.isfinite().all()
    assert_near(y_read[reads], y[reads])
    assert_same_state(state_read, state)


# The state itself


def test_a_state_is_batch_first_and_detached_from_nothing_else(core):
    state = core.initial_state(3)
    assert all(tensor.shape[0] == 3 for tensor in tensors_of(state))
    assert all(tensor.dtype == torch.float64 for tensor in tensors_of(state))
    assert sum(tensor.numel() for tensor in tensors_of(state)) == 3 * state_size(core)


def test_map_state_keeps_the_form(core):
    state = used_state(core)
    doubled = map_state(lambda tensor: 2 * tensor, state)
    assert_same_state(doubled, map_state(lambda tensor: tensor + tensor, state))
    selected = map_state(lambda tensor: tensor[[2, 0]], state)
    assert type(selected) is type(state)
    for tensor, original in zip(tensors_of(selected), tensors_of(state), strict=True):
        assert torch.equal(tensor, original[[2, 0]])


def test_a_state_becomes_a_dictionary_and_back(core, x):
    state = used_state(core)
    back = state_from_dict(core.initial_state(1), state_to_dict(state))
    assert type(back) is type(state)
    for tensor, original in zip(tensors_of(back), tensors_of(state), strict=True):
        assert torch.equal(tensor, original)
    assert torch.equal(core(x, back)[0], core(x, state)[0])


def test_a_missing_part_of_a_state_is_an_error(core):
    values = state_to_dict(used_state(core))
    values.pop(sorted(values)[0])
    with pytest.raises(KeyError):
        state_from_dict(core.initial_state(1), values)


# The rest of the contract


def test_sizes_and_losses_are_as_declared(core, x):
    assert core.state_law in ("exact", "segmented")
    assert core.input_size == INPUT_SIZE
    y, _ = core(x)
    assert y.shape == (B, T, core.output_size)
    assert all(term.ndim == 0 for term in core.losses.values())


def test_an_input_projection_gives_the_same_result(core, x):
    projection = core.input_projection(x)
    if projection is None:
        pytest.skip("this core does not begin with a linear map")
    start = used_state(core)
    y, state = core(x, start)
    tokens = torch.arange(B * T).view(B, T)
    y_projected, state_projected = core(projection.flatten(0, 1), start, tokens=tokens)
    assert_near(y_projected, y)
    assert_same_state(state_projected, state)


def test_autocast(core, x):
    core.float()
    x = x.float()
    y, _ = core(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y_autocast, state_autocast = core(x)
    y_autocast.float().square().mean().backward()
    assert y_autocast.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in core.parameters() if parameter.grad is not None)
    difference = (y_autocast.float() - y).square().mean().sqrt() / y.square().mean().sqrt()
    assert difference < 0.2  # a rough bound: bfloat16 keeps three digits, and chains of reads lose some more
    assert all(tensor.dtype == torch.float32 for tensor in tensors_of(state_autocast))


def test_weights_can_be_saved_and_loaded(core, x):
    weights = {name: tensor.clone() for name, tensor in core.state_dict().items()}
    expected = core(x)[0].detach()
    with torch.no_grad():
        for parameter in core.parameters():
            parameter.zero_()
    core.load_state_dict(weights)
    assert torch.equal(core(x)[0], expected)


def test_every_registered_core_is_tested():
    assert {type(build()) for build in CASES.values()} == set(CORES.values())


@torch.no_grad()
def test_acting_step_by_step_is_reading(core, x):
    """A state for acting may have another form, and gives the same."""
    expected, _ = core(x[:, :9])
    state = core.acting_state(B, 9)
    found = []
    for step in range(9):
        y, state = core(x[:, step : step + 1], state)
        found.append(y)
    assert_near(torch.cat(found, 1), expected)


def test_an_agents_memory_is_kept_in_the_smaller_form():
    core = FastWeightMemory(INPUT_SIZE, 6, memory_size=16)
    assert isinstance(core.acting_state(3, steps=30).memory, Writes)
    assert core.acting_state(3, steps=200).memory.shape == (3, 16, 16, 16)
