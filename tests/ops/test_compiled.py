"""The compiled kernels, with every instruction set that this processor has, against the definitions in float64."""

import subprocess
import sys

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_fast_weight_memory import results as memory_results
from test_fast_weight_memory import some_inputs, some_masks
from test_lstm_recurrence import results as lstm_results
from test_lstm_recurrence import some_inputs as some_lstm_inputs
from test_lstm_recurrence import some_masks as some_lstm_masks
from torch import Tensor

from fastweights.cores import LSTM, FastWeightMemory
from fastweights.models import TokenModel
from fastweights.ops import cpu
from fastweights.ops.fwm import cpu as fwm_cpu
from fastweights.ops.fwm import fast_weight_memory
from fastweights.ops.lstm import lstm
from tolerances import assert_near, relative_error

if cpu.PROBLEM:
    pytest.skip(cpu.PROBLEM, allow_module_level=True)

AVAILABLE = cpu.INSTRUCTION_SETS[: cpu.best() + 1]
FUNCTIONS = {"fwm": memory_results, "lstm": lstm_results}


@pytest.fixture(params=AVAILABLE, autouse=True)
def instruction_set(request, monkeypatch):
    monkeypatch.setattr(cpu, "INSTRUCTION_SET", cpu.INSTRUCTION_SETS.index(request.param))


def truth_definition_and_compiled(op: str, inputs: list[Tensor], **options) -> list[dict[str, Tensor]]:
    """The definition in float64 and in float32, and the kernel, on the same float32 inputs."""
    inputs32 = [x.detach().float().requires_grad_() for x in inputs]
    inputs64 = [x.detach().double().requires_grad_() for x in inputs32]
    cases = ((inputs64, "reference"), (inputs32, "reference"), (inputs32, "cpu"))
    return [FUNCTIONS[op](x, backend, **options) for x, backend in cases]


def root_mean_square_error(result: Tensor, expected: Tensor) -> float:
    return ((result.double() - expected).norm() / expected.norm()).item()


def assert_as_exact_as_float32_can_be(op: str, inputs: list[Tensor], **options) -> None:
    """No worse than five times what the definition itself loses in float32, or than 1e-4."""
    truth, definition, found = truth_definition_and_compiled(op, inputs, **options)
    for what in truth:
        assert found[what].isfinite().all(), what
        if truth[what].abs().max() > 1e-3:  # what is smaller is mostly the rounding of larger terms
            allowed = max(1e-4, 5 * relative_error(definition[what], truth[what]))
            assert relative_error(found[what], truth[what]) <= allowed, what


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("d", fwm_cpu.SIZES)
@pytest.mark.parametrize("sizes", [(1, 1, 1), (5, 1, 3), (1, 63, 2), (5, 63, 3), (3, 200, 3), (2, 230, 1)], ids=str)
def test_the_memory_equals_the_reference(sizes, d, masked):
    B, T, N = sizes
    masks = some_masks(B, T) if masked else {}
    assert_as_exact_as_float32_can_be("fwm", some_inputs(B, T, d, d, d, N), write_scale=1 / d, **masks)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("H", [1, 10, 16, 64, 115])
@pytest.mark.parametrize("sizes", [(1, 1), (5, 1), (1, 63), (7, 30)], ids=str)
def test_the_lstm_equals_the_reference(sizes, H, masked):
    gate_inputs, weight, hidden, cell = some_lstm_inputs(*sizes, H)
    inputs = [gate_inputs, weight.detach() / H**0.5, hidden, cell]
    masks = some_lstm_masks(*sizes) if masked else {}
    assert_as_exact_as_float32_can_be("lstm", inputs, **masks)


def a_norm_is_one_but_for_rounding(inputs: list[Tensor], write_scale: float, mask=None, resets=None, **_) -> bool:
    """Whether some ‖F'‖ of eq. 4 is so near to 1 that float32 cannot tell if it scales: there the gradient jumps."""
    k1, k2, v, beta, *_, memory = (x.detach().float().double() for x in inputs)
    F, nearest = memory.flatten(1, 2), 1.0
    for t in range(v.shape[1]):
        F = F if resets is None else F * ~resets[:, t, None, None]
        u = (k1[:, t].unsqueeze(2) * k2[:, t].unsqueeze(1)).flatten(1).unsqueeze(2)
        written = F + write_scale * beta[:, t, None, None] * u * (v[:, t].unsqueeze(1) - u.mT @ F)
        norm = written.flatten(1).norm(dim=1)
        passes = torch.ones_like(norm, dtype=torch.bool) if mask is None else mask[:, t]
        nearest = min([nearest, *(norm - 1).abs()[passes].tolist()])
        F = torch.where(passes[:, None, None], written / norm.clamp(min=1)[:, None, None], F)
    return nearest < 1e-6


@settings(max_examples=20)
@given(
    sizes=st.tuples(st.integers(1, 4), st.integers(1, 130), st.integers(1, 4)),
    d=st.sampled_from(fwm_cpu.SIZES),
    shares=st.tuples(*[st.sampled_from([None, 0.0, 0.05, 0.5, 0.95, 1.0])] * 3),
    seed=st.integers(0, 2**31),
)
def test_the_memory_equals_the_reference_at_any_length_with_any_masks(sizes, d, shares, seed):
    torch.manual_seed(seed)
    B, T, N = sizes
    names = ("output_mask", "mask", "resets")
    masks = {name: torch.rand(B, T) < share for name, share in zip(names, shares, strict=True) if share is not None}
    inputs = some_inputs(B, T, d, d, d, N)
    assume(not a_norm_is_one_but_for_rounding(inputs, 1 / d, **masks))
    assert_as_exact_as_float32_can_be("fwm", inputs, write_scale=1 / d, **masks)


@pytest.mark.parametrize("chunk_size", [16, 48, 208])
def test_the_length_of_the_chunks_does_not_matter(chunk_size):
    inputs = [x.detach() for x in some_inputs(2, 200, 8, 8, 8, 2, dtype=torch.float32)]
    inputs[-1] = inputs[-1].flatten(1, 2)
    masks = some_masks(2, 200).values()
    y, memory = fwm_cpu.compiled(*inputs, *masks, "product", chunk=chunk_size)
    expected, expected_memory = fwm_cpu.compiled(*inputs, *masks, "product")
    assert_near(y, expected)
    assert_near(memory, expected_memory)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("T", [1, 30, 250])
def test_no_memory_is_one_of_zeros_to_the_bit(T, masked):
    """Answers, final memory and gradients, also those that come through the final memory, over one chunk or several."""
    *inputs, memory = some_inputs(3, T, 16, 16, 16, 2, dtype=torch.float32)
    options = some_masks(3, T) if masked else {}

    def found(memory):
        y, last = fast_weight_memory(*inputs, memory, backend="cpu", **options)
        return y, last, *torch.autograd.grad(y.square().sum() + last.sum(), inputs)

    pairs = zip(found(None), found(torch.zeros_like(memory)), strict=True)
    assert all(torch.equal(none, zeros) for none, zeros in pairs)


def test_errors_at_the_papers_sizes():
    """Ordinary inputs: 1e-6 of the outputs and 2e-5 of the gradients, root mean square."""
    inputs = some_inputs(8, 200, 32, 32, 32, 3, sharpness=0.5)
    truth, _, found = truth_definition_and_compiled("fwm", inputs, write_scale=1 / 32)
    for what in truth:
        allowed = 2e-5 if "gradient" in what else 1e-6
        assert root_mean_square_error(found[what], truth[what]) <= allowed, what


@pytest.mark.parametrize("write_scale", [1.0, 1 / 32])
def test_saturated_keys_are_as_exact_as_the_reference(write_scale):
    inputs = some_inputs(2, 200, 32, 32, 32, 3)
    with torch.no_grad():
        for index in (0, 1):
            inputs[index].copy_(inputs[index].sign())
    options = {"write_scale": write_scale, "output_mask": torch.rand(2, 200) < 0.2}
    truth, definition, found = truth_definition_and_compiled("fwm", inputs, **options)
    for what in truth:
        assert found[what].isfinite().all(), what
        assert relative_error(found[what], truth[what]) <= 2 * relative_error(definition[what], truth[what]), what


def test_saturated_gates_stay_finite():
    gate_inputs, *others = some_lstm_inputs(2, 50, 16, dtype=torch.float32)
    found = lstm_results([(gate_inputs.detach() * 1e4).requires_grad_(), *others], "cpu")
    assert all(result.isfinite().all() for result in found.values())


@pytest.mark.parametrize("op", FUNCTIONS)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_same_bits_whatever_the_threads(op, threads):
    if op == "fwm":
        inputs, masks = some_inputs(5, 130, 16, 16, 16, 2, dtype=torch.float32), some_masks(5, 130)
    else:
        inputs, masks = some_lstm_inputs(5, 60, 32, dtype=torch.float32), some_lstm_masks(5, 60)
    before = torch.get_num_threads()
    expected = FUNCTIONS[op](inputs, "cpu", **masks)
    try:
        torch.set_num_threads(threads)
        found = FUNCTIONS[op](inputs, "cpu", **masks)
    finally:
        torch.set_num_threads(before)
    # torch's own product that sums the recurrent weight's gradient may split its sum by threads
    exempt = {"gradient of recurrent_weight"} if threads != before else set()
    assert all(torch.equal(found[what], expected[what]) for what in expected.keys() - exempt)


def test_tokens_choose_rows_of_a_table():
    table, weight, hidden, cell = some_lstm_inputs(3, 11, 16)
    table = table[0].detach().requires_grad_()
    tokens = torch.randint(11, (3, 40)).T.contiguous().T
    masks = some_lstm_masks(3, 40)
    inputs = [table, weight.detach() / 4, hidden, cell]
    assert_as_exact_as_float32_can_be("lstm", inputs, tokens=tokens, **masks)


def test_inputs_need_not_be_contiguous_and_stay_as_they_were():
    inputs = [x.detach() for x in some_inputs(3, 50, 8, 8, 8, 2, dtype=torch.float32)]
    masks = some_masks(3, 50)
    y, memory = fast_weight_memory(*inputs, backend="cpu", **masks)
    strided = [x.transpose(0, -1).contiguous().transpose(0, -1) for x in inputs]
    before = [x.clone() for x in strided]
    found, found_memory = fast_weight_memory(
        *strided, backend="cpu", **{name: mask.T.contiguous().T for name, mask in masks.items()}
    )
    assert torch.equal(found, y) and torch.equal(found_memory, memory)
    assert all(torch.equal(x, y) for x, y in zip(strided, before, strict=True))


def test_without_a_gradient_the_same_bits():
    inputs = some_inputs(3, 150, 8, 8, 8, 2, dtype=torch.float32)
    expected = fast_weight_memory(*inputs, backend="cpu")
    with torch.no_grad():
        found = fast_weight_memory(*inputs, backend="cpu")
    assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


@pytest.mark.parametrize("wanted", range(7))
def test_gradients_of_single_inputs(wanted):
    """The initial memory's gradient, for one, is found only where it is wanted."""
    inputs = some_inputs(2, 130, 8, 8, 8, 2, dtype=torch.float32)
    y, _ = fast_weight_memory(*inputs, write_scale=0.1, backend="cpu")
    expected = torch.autograd.grad((y.square() * y.cumsum(1)).sum(), inputs, allow_unused=True)[wanted]
    only = [x.detach().requires_grad_(index == wanted) for index, x in enumerate(inputs)]
    y, _ = fast_weight_memory(*only, write_scale=0.1, backend="cpu")
    assert torch.equal(torch.autograd.grad((y.square() * y.cumsum(1)).sum(), only[wanted])[0], expected)


def test_second_derivatives_are_those_of_the_definition():
    inputs = some_inputs(2, 6, 8, 8, 8, 2, dtype=torch.float32)
    found = {}
    for backend in ("cpu", "reference"):
        y, memory = fast_weight_memory(*inputs, backend=backend)
        first = torch.autograd.grad(y.pow(3).sum() + memory.sum(), inputs, create_graph=True)
        found[backend] = torch.autograd.grad(sum(x.square().sum() for x in first), inputs)
    for result, expected in zip(found["cpu"], found["reference"], strict=True):
        assert_near(result, expected)


def test_what_the_kernels_cannot_do_is_left_to_plain_torch_and_said_when_insisted_on():
    memory = some_inputs(1, 3, 8, 8, 8, 1)
    with pytest.raises(ValueError, match=r"float32.*float64"):
        fast_weight_memory(*memory, backend="cpu")
    with pytest.raises(ValueError, match="8, 16, 32"):
        fast_weight_memory(*some_inputs(1, 3, 4, 4, 4, 1, dtype=torch.float32), backend="cpu")
    with pytest.raises(ValueError, match="not by concatenation"):
        inputs = some_inputs(1, 3, 8, 8, 8, 1, "concatenation", dtype=torch.float32)
        fast_weight_memory(*inputs, pairing="concatenation", backend="cpu")
    assert torch.equal(fast_weight_memory(*memory)[0], fast_weight_memory(*memory, backend="plain")[0])


@pytest.mark.parametrize("masked", [False, True])
def test_custom_operators_keep_torchs_rules(masked):
    B, T, V, H = 2, 20, 5, 16
    masks = some_lstm_masks(B, T) if masked else {}
    _, hidden, cell = lstm(*some_lstm_inputs(B, T, H, dtype=torch.float32), backend="cpu", **masks)
    table = torch.randn(V, 4 * H, requires_grad=True)
    tokens = torch.randint(V, (B, T))
    state = [x.detach().requires_grad_() for x in (torch.randn(4 * H, H) / 4, hidden, cell)]
    mask = [masks.get(name) for name in ("mask", "resets")]
    torch.library.opcheck(torch.ops.fastweights.lstm_cpu, (table, *state, *mask, tokens, False, True))
    inputs = some_inputs(B, T, 8, 8, 8, 2, dtype=torch.float32)
    inputs[-1] = inputs[-1].detach().flatten(1, 2).requires_grad_()
    mask = list(some_masks(B, T).values()) if masked else [None] * 3
    torch.library.opcheck(torch.ops.fastweights.fwm_cpu, (*inputs, *mask, "product", 16, True))


def test_a_whole_model_compiles_as_one_graph():
    model = TokenModel(11, FastWeightMemory(16, memory_size=8, slow=LSTM(16, 16, backend="cpu"), backend="cpu"))
    tokens = torch.randint(11, (3, 20))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    gradients = []
    for run in (model, compiled):
        model.zero_grad()
        logits, _ = run(tokens)
        logits.square().sum().backward()
        gradients.append([logits.detach(), *(x.grad.clone() for x in model.parameters())])
    for found, expected in zip(*gradients, strict=True):
        assert_near(found, expected)


def test_autocast_leaves_the_recurrences_alone():
    inputs = some_inputs(3, 63, 8, 8, 8, 2, dtype=torch.float32)
    expected = memory_results(inputs, "cpu")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = memory_results(inputs, "cpu")
        halved = fast_weight_memory(*(x.bfloat16() for x in inputs), backend="cpu")
    assert all(torch.equal(found[what], expected[what]) for what in expected)
    assert halved[0].dtype == torch.bfloat16 and halved[0].isfinite().all()


def test_denormal_numbers_survive_the_library():
    code = (
        "import torch, fastweights.ops.cpu as cpu; assert cpu.LIBRARY; x = torch.tensor([1e-40]); "
        "assert (x * 0.5 > 0).all(); assert torch.tensor([float('nan')]).isnan().all()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
