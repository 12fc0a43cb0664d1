"""What every core promises about its state (fastweights.cores.contract). A new core is one line in CASES."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from fastweights.cores import (
    AWDLSTM,
    CORES,
    LSTM,
    Core,
    FastWeightLSTM,
    FastWeightMemory,
    FastWeightRNN,
    LayerNormLSTM,
    Losses,
    LSTMStack,
    MetalearnedMemory,
    TransformerXL,
    map_state,
    state_size,
)
from fastweights.cores.contract import (
    OPTIONAL_ARGUMENTS,
    ProjectedTokens,
    call_core,
    reset_state,
    state_from_dict,
    state_to_dict,
    tensors_of,
)
from fastweights.cores.lstm import LSTMState
from fastweights.ops.fwm.writes import WriteLog
from fastweights.specs import import_object
from own_cores import LearnedStart, NestedState, SegmentAttention, Unmasked
from tolerances import assert_near

INPUT_SIZE = 5
CASES = {
    "LSTM": lambda: LSTM(INPUT_SIZE, 6),
    "LSTMStack": lambda: LSTMStack(INPUT_SIZE, 6, num_layers=3),
    "LSTMStack without residual": lambda: LSTMStack(INPUT_SIZE, 6, num_layers=2, residual=False),
    "AWD-LSTM": lambda: AWDLSTM(INPUT_SIZE, 6, output_size=5),
    "FWM": lambda: FastWeightMemory(INPUT_SIZE, 6, 4),
    "FWM over LSTMStack": lambda: FastWeightMemory(INPUT_SIZE, memory_size=4, slow=LSTMStack(INPUT_SIZE, 6, 2)),
    "FWM over AWD-LSTM": lambda: FastWeightMemory(
        INPUT_SIZE, memory_size=4, slow=AWDLSTM(INPUT_SIZE, 7, output_size=6)
    ),
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
    "MNM": lambda: MetalearnedMemory(INPUT_SIZE, 6, 4),
    "MNM, two layers, one head": lambda: MetalearnedMemory(INPUT_SIZE, 6, 4, num_layers=2, num_heads=1),
    "FWM over MNM": lambda: FastWeightMemory(INPUT_SIZE, memory_size=4, slow=MetalearnedMemory(INPUT_SIZE, 6, 4)),
    "Transformer-XL": lambda: TransformerXL(INPUT_SIZE, 6, 2, num_heads=3, memory_length=8),
    "Transformer-XL, long memory": lambda: TransformerXL(INPUT_SIZE, 4, 2, num_heads=2, head_size=5, memory_length=80),
    "FWM over FW-LSTM": lambda: FastWeightMemory(INPUT_SIZE, memory_size=4, slow=FastWeightLSTM(INPUT_SIZE, 6)),
}
GRU = import_object(f"{Path(__file__).parents[2] / 'examples' / 'own_core.py'}:GRU")
OWN_CASES = {  # cores that no recipe has, with what the contract allows beside
    "the example": lambda: GRU(INPUT_SIZE, 6),
    "learned initial state": lambda: LearnedStart(INPUT_SIZE),
    "nested state": lambda: NestedState(INPUT_SIZE),
    "FWM over a nested state": lambda: FastWeightMemory(INPUT_SIZE, memory_size=4, slow=NestedState(INPUT_SIZE)),
    "segmented": lambda: SegmentAttention(INPUT_SIZE),
    "segmented, with gradient": lambda: SegmentAttention(INPUT_SIZE, stops_gradient=False),
    "FWM over segmented": lambda: FastWeightMemory(INPUT_SIZE, memory_size=4, slow=SegmentAttention(INPUT_SIZE)),
}
STOP_GRADIENTS = ("segmented", "Transformer-XL", "Transformer-XL, long memory")  # at the border of a segment
B, T = 4, 53


@pytest.fixture(params=[*CASES, *OWN_CASES])
def core(request) -> Core:
    """A core in float64, with weights large enough that all its parts matter."""
    return make(request.param)


def make(name: str) -> Core:
    core = (CASES | OWN_CASES)[name]().double().eval()
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
    return {"mask": torch.rand(B, T) < 0.8, "resets": torch.rand(B, T) < 0.1}


SEGMENT_ENDS = [1, 20, 44, T]


def in_segments(core: Core, x: Tensor, state, ends: list[int], **masks: Tensor) -> tuple:
    """The outputs and the last state of a core that is called once for each segment."""
    parts, begin = [], 0
    for end in ends:
        part, state = core(x[:, begin:end], state, **{name: mask[:, begin:end] for name, mask in masks.items()})
        parts.append(part)
        begin = end
    return torch.cat(parts, 1), state


def row_of(state, row: int):
    return map_state(lambda part: part[row : row + 1], state)


# Time


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", ["segments", "steps"])
def test_the_whole_equals_its_parts(core, x, kind, masked):
    if core.state_consistency != "exact":
        pytest.skip("this core promises equal results for equal segments only")
    masks = some_masks() if masked else {}
    start = used_state(core)
    whole, expected_state = core(x, start, **masks)
    expected_gradients = torch.autograd.grad(whole.square().sum(), list(core.parameters()), allow_unused=True)

    ends = list(range(1, T + 1)) if kind == "steps" else SEGMENT_ENDS
    parts, state = in_segments(core, x, start, ends, **masks)
    assert_near(parts, whole, "outputs")
    assert_same_state(state, expected_state)
    gradients = torch.autograd.grad(parts.square().sum(), list(core.parameters()), allow_unused=True)
    for (name, _), gradient, wanted in zip(core.named_parameters(), gradients, expected_gradients, strict=True):
        assert (gradient is None) == (wanted is None), f"gradient of {name}"
        if gradient is not None:
            assert_near(gradient, wanted, f"gradient of {name}")


@pytest.mark.parametrize("steps", [1, 9, 10, T])
def test_a_core_is_exact_where_it_says_so(core, x, steps):
    """From the initial state; a core with exact state says so for every number of steps."""
    exact = core.is_exact(steps)
    assert exact or core.state_consistency == "segmented"
    whole, expected_state = core(x[:, :steps])
    parts, state = in_segments(core, x, core.initial_state(B), list(range(1, steps + 1)))
    if exact:
        assert_near(parts, whole)
        assert_same_state(state, expected_state)
    else:
        assert not torch.allclose(parts, whole, rtol=1e-3)


def test_equal_segmentations_give_equal_results_row_by_row(core, x):
    """Each row alone, without its padding, in the same segments."""
    masks, start = some_masks(), used_state(core)
    y, state = in_segments(core, x, start, SEGMENT_ENDS, **masks)
    again, same_state = in_segments(core, x, start, SEGMENT_ENDS, **masks)
    assert torch.equal(again, y)
    for part, same in zip(tensors_of(state), tensors_of(same_state), strict=True):
        assert torch.equal(part, same)
    for row in range(B):
        live = masks["mask"][row]
        resets = masks["resets"][row].clone()
        for step in range(T - 1):  # a reset at padding comes before the next step
            if resets[step] and not live[step]:
                resets[step + 1] = True
        ends = sorted({int(live[:end].sum()) for end in SEGMENT_ENDS} - {0})
        last = live.nonzero().max()
        if resets[last + 1 :].any():
            continue  # nothing behind the reset would be left
        y_alone, state_alone = in_segments(
            core, x[row : row + 1, live], row_of(start, row), ends, resets=resets[None, live]
        )
        assert_near(y_alone[0], y[row, live])
        assert_same_state(state_alone, row_of(state, row), f"of row {row}")


def test_a_state_carries_values_into_the_next_segment(core, x):
    """The second segment depends on the first, through the state alone."""
    other = x.clone()
    other[:, :20] = torch.randn(B, 20, INPUT_SIZE, dtype=torch.float64)
    (_, state), (_, other_state) = core(x[:, :20]), core(other[:, :20])
    y, y_other = core(x[:, 20:], state)[0], core(x[:, 20:], other_state)[0]
    assert (y[:, 0] - y_other[:, 0]).abs().amax(-1).min() > 1e-6
    assert torch.equal(y, core(x[:, 20:], map_state(lambda part: part.detach().clone(), state))[0])


@pytest.mark.parametrize("name", [*CASES, *OWN_CASES])
def test_gradients_cross_the_border_of_a_segment_unless_a_core_stops_them(name, x):
    core = make(name)
    x.requires_grad_()
    y, _ = in_segments(core, x, core.initial_state(B), [20, T])
    (gradient,) = torch.autograd.grad(y[:, 20:].square().sum(), x)
    assert bool((gradient[:, :20] == 0).all()) == (name in STOP_GRADIENTS)
    assert (gradient[:, 20:] != 0).any()


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
            row_of(start, row),
            **{k: v[only] for k, v in masks.items()},
        )
        assert_near(y_alone, y[only])
        assert_same_state(state_alone, row_of(state, row), f"of row {row}")


# Padding


def test_a_row_does_not_depend_on_padding(core, x):
    start = used_state(core)
    mask = torch.rand(B, T) < 0.7
    x[~mask] *= 100
    y, state = core(x, start, mask=mask)
    for row in range(B):
        y_compact, state_compact = core(x[row, mask[row]].unsqueeze(0), row_of(start, row))
        assert_near(y[row, mask[row]], y_compact[0])
        assert_same_state(row_of(state, row), state_compact, f"of row {row}")


def test_padding_leaves_the_state_to_the_bit(core, x):
    start = used_state(core)
    y, state = core(x, start, mask=torch.zeros(B, T, dtype=torch.bool))
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
        assert_same_state(row_of(state, row), state_fresh, f"of row {row}")


def test_a_reset_at_a_padded_step_still_resets(core, x):
    here, mask = torch.zeros(B, T, dtype=torch.bool), torch.ones(B, T, dtype=torch.bool)
    here[:, 20], mask[:, 20] = True, False
    y, state = core(x, used_state(core), resets=here, mask=mask)
    y_fresh, state_fresh = core(x[:, 21:])
    assert_near(y[:, 21:], y_fresh)
    assert_same_state(state, state_fresh)


def test_a_reset_restores_the_initial_state(core, x):
    """Of the rows where it is: a padded step after it leaves the state as it is."""
    last, mask = torch.zeros(B, T, dtype=torch.bool), torch.ones(B, T, dtype=torch.bool)
    last[:2, -1], mask[:, -1] = True, False
    start = used_state(core)
    _, state = core(x, start, resets=last, mask=mask)
    _, without = core(x, start, mask=mask)
    found = zip(tensors_of(state), tensors_of(core.initial_state(B)), tensors_of(without), strict=True)
    for part, initial, other in found:
        assert torch.equal(part[:2], initial[:2])
        assert_near(part[2:], other[2:])
        assert not torch.equal(part, other)


@pytest.mark.parametrize("name", ["learned initial state", "nested state", "FWM over a nested state"])
def test_a_learned_initial_state_gets_a_gradient_through_a_reset(name, x):
    core, resets = make(name), torch.zeros(B, T, dtype=torch.bool)
    starts = [parameter for label, parameter in core.named_parameters() if "start" in label]
    start = used_state(core)
    y, _ = core(x, start, resets=resets)
    nothing = torch.autograd.grad(y.square().sum(), starts, allow_unused=True)
    assert all(gradient is None or not gradient.any() for gradient in nothing)  # the state was given
    resets[1, 30] = True
    y, _ = core(x, start, resets=resets)
    assert all(gradient.all() for gradient in torch.autograd.grad(y[1].square().sum(), starts, retain_graph=True))
    before = torch.autograd.grad(y[1, :30].square().sum() + y[0].square().sum(), starts)
    assert not any(gradient.any() for gradient in before)


def test_no_gradient_passes_a_reset(core, x):
    x.requires_grad_()
    resets = torch.zeros(B, T, dtype=torch.bool)
    resets[:, 30] = True
    y, _ = core(x, resets=resets)
    (gradient,) = torch.autograd.grad(y[:, 30:].square().sum(), x)
    assert (gradient[:, :30] == 0).all()
    assert (gradient[:, 30:] != 0).any()


# Output mask


def test_outputs_are_right_where_they_are_needed(core, x):
    y, state = core(x)
    output_mask = torch.rand(B, T) < 0.3
    y_needed, state_needed = call_core(core, x, output_mask=output_mask)
    assert y_needed.isfinite().all()
    assert_near(y_needed[output_mask], y[output_mask])
    assert_same_state(state_needed, state)


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


NESTED = [
    lambda x, y, z: [x, y, z],
    lambda x, y, z: (x, (y, z)),
    lambda x, y, z: {"x": x, "rest": [y, {"z": z}]},
    lambda x, y, z: LSTMState([x, y], (z,)),
    lambda x, y, z: [LSTMState(x, y), z],
]


@pytest.mark.parametrize("nest", NESTED)
def test_a_state_may_be_any_nesting(nest):
    parts = torch.randn(3, 4, 5), torch.randn(3, 4, 1), torch.randn(3, 4)[:, 0]
    initial = [torch.zeros_like(part) - 7 for part in parts]
    state = nest(*parts)

    def same(one, other):
        if isinstance(one, Tensor):
            return torch.equal(one, other)
        if isinstance(one, dict):
            return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))

    assert same(map_state(lambda part: 3 * part, state), nest(*(3 * part for part in parts)))
    assert same(map_state(lambda part: part[[2, 0]], state), nest(*(part[[2, 0]] for part in parts)))
    assert [part.data_ptr() for part in tensors_of(state)] == [part.data_ptr() for part in parts]
    named = state_to_dict(state)
    assert len(named) == 3 and all(torch.equal(part, old) for part, old in zip(named.values(), parts, strict=True))
    assert same(state_from_dict(nest(*initial), named), state)
    where = torch.tensor([True, False, True])
    chosen = [torch.stack([first[0], part[1], first[2]]) for first, part in zip(initial, parts, strict=True)]
    assert same(reset_state(state, nest(*initial), where), nest(*chosen))


def test_the_names_of_a_nested_state():
    state = make("FWM over a nested state").initial_state(1)
    assert list(state_to_dict(state)) == ["slow.below.0", "slow.below.1", "slow.above.0.0", "memory"]


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
    assert core.state_consistency in ("exact", "segmented")
    assert core.input_size == INPUT_SIZE
    losses = Losses()
    y, _ = call_core(core, x, losses=losses)
    assert y.shape == (B, T, core.output_size)
    assert all(term.ndim == 0 for term in losses.values())
    y_without, _ = core(x)
    assert torch.equal(y, y_without)


@pytest.mark.parametrize("name", ["nested state", "FWM over a nested state"])
def test_a_core_adds_its_own_losses_by_name(name, x):
    core, losses = make(name), Losses()
    call_core(core, x, losses=losses)
    assert list(losses) == ["size"] and losses.total().requires_grad
    once = losses.total().detach().clone()
    call_core(core, x, losses=losses)
    assert_near(losses["size"], 2 * once)


def test_supported_arguments_are_those_of_forward(core, x):
    given = {name: torch.ones(B, T, dtype=torch.bool) for name in ("output_mask", "mask")}
    given |= {"resets": torch.zeros(B, T, dtype=torch.bool), "losses": Losses()}
    assert set(given) == set(OPTIONAL_ARGUMENTS) >= core.supported_arguments
    expected, _ = core(x)
    for name, value in given.items():
        if name in core.supported_arguments:
            assert_near(core(x, **{name: value})[0], expected)
        else:
            with pytest.raises(TypeError, match=name):
                core(x, **{name: value})


@pytest.mark.parametrize(
    "build", [lambda: Unmasked(INPUT_SIZE), lambda: FastWeightMemory(INPUT_SIZE, slow=Unmasked(5))]
)
def test_a_mask_or_resets_that_a_core_lacks_are_refused(build, x):
    """Masks of outputs and losses are no duty: without them a core gives more than is needed."""
    core = build().double()
    masks = some_masks()
    assert not set(masks) & core.supported_arguments
    for name, mask in masks.items():
        with pytest.raises(ValueError, match=f"{type(core).__name__} does not support {name}: its forward"):
            call_core(core, x, **{name: mask})
    y, _ = call_core(core, x, output_mask=masks["mask"], losses=Losses(), mask=None, resets=None)
    assert_near(y[masks["mask"]], core(x)[0][masks["mask"]])


@pytest.mark.parametrize("missing", ["forward", "initial_state"])
def test_a_core_without_its_methods_cannot_be_made(missing):
    methods = {name: getattr(LearnedStart, name) for name in ("forward", "initial_state") if name != missing}
    with pytest.raises(TypeError, match=missing):
        type("Half", (Core,), methods)()


def test_an_input_projection_gives_the_same_result(core, x):
    projection = core.input_projection(x)
    if projection is None:
        pytest.skip("this core does not begin with a linear map")
    start = used_state(core)
    y, state = core(x, start)
    tokens = torch.arange(B * T).view(B, T)
    y_projected, state_projected = core(ProjectedTokens(projection.flatten(0, 1), tokens), start)
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
    assert {type(build()) for build in CASES.values()} == set(CORES.entries.values())


@torch.no_grad()
def test_a_rollout_step_by_step_gives_the_same(core, x):
    """The state of a rollout may have another form."""
    assert core.is_exact(9)
    expected, _ = core(x[:, :9])
    state = core.rollout_state(B, 9)
    found = []
    for step in range(9):
        y, state = core(x[:, step : step + 1], state)
        found.append(y)
    assert_near(torch.cat(found, 1), expected)


def test_the_memory_of_a_rollout_has_the_smaller_form():
    core = FastWeightMemory(INPUT_SIZE, 6, memory_size=16)
    assert isinstance(core.rollout_state(3, steps=30).memory, WriteLog)
    assert core.rollout_state(3, steps=200).memory.shape == (3, 16, 16, 16)
