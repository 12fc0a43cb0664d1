"""AWD-LSTM alone and under FWM, against torch.nn.LSTM and the op's reference; its dropouts written out."""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import linear

from fastweights.cores import AWDLSTM, FastWeightMemory
from fastweights.cores.fwm import FWMState
from fastweights.models import TokenModel
from fastweights.ops.fwm import fast_weight_memory
from tolerances import assert_near

B, T, INPUT_SIZE, HIDDEN_SIZE, OUTPUT_SIZE = 3, 20, 5, 7, 6


def make(**options):
    return AWDLSTM(INPUT_SIZE, HIDDEN_SIZE, output_size=OUTPUT_SIZE, **options).double()


def torchs(core):
    """The layers as those of torch, with the same weights."""
    layers = []
    for layer in core.layers:
        theirs = nn.LSTM(layer.input_size, layer.hidden_size, batch_first=True, dtype=layer.bias.dtype)
        weights = (layer.input_weight, layer.recurrent_weight, layer.bias, layer.second_bias)
        theirs.load_state_dict(dict(zip(theirs.state_dict(), weights, strict=True)))
        layers.append(theirs)
    return layers


def through(layers, x, state):
    """The output of layers on top of each other, and their states."""
    new_states = []
    for layer, (hidden, cell) in zip(layers, state, strict=True):
        x, (hidden, cell) = layer(x, (hidden[None], cell[None]))
        new_states.append((hidden[0], cell[0]))
    return x, new_states


def some_state(core):
    return tuple(type(part)(*map(torch.randn_like, part)) for part in core.initial_state(B))


def some_input(size=INPUT_SIZE):
    return torch.randn(B, T, size, dtype=torch.float64)


@pytest.mark.parametrize("backend", ["reference", "plain"])
def test_the_layers_are_torchs(backend):
    core = make(backend=backend)
    layers, x, start = torchs(core), some_input(), some_state(core)
    expected, expected_states = through(layers, x, start)
    y, state = core(x, start)
    assert_near(y, expected)
    for part, wanted in zip(state, expected_states, strict=True):
        assert_near(part.hidden, wanted[0])
        assert_near(part.cell, wanted[1])

    expected.square().sum().backward()
    y.square().sum().backward()
    for layer, theirs in zip(core.layers, layers, strict=True):
        assert_near(layer.input_weight.grad, theirs.weight_ih_l0.grad)
        assert_near(layer.recurrent_weight.grad, theirs.weight_hh_l0.grad)
        assert_near(layer.bias.grad, theirs.bias_ih_l0.grad)
        assert_near(layer.second_bias.grad, theirs.bias_hh_l0.grad)


def test_weights_begin_as_torchs():
    for layer in AWDLSTM(40, 64, output_size=50).layers:
        bound = 1 / math.sqrt(layer.hidden_size)
        for parameter in layer.parameters():
            assert 0.95 * bound < parameter.abs().max() <= bound


def test_sizes():
    core = AWDLSTM(4, 8, num_layers=4, output_size=3)
    assert [(layer.input_size, layer.hidden_size) for layer in core.layers] == [(4, 8), (8, 8), (8, 8), (8, 3)]
    assert AWDLSTM(4, 8).output_size == 8
    assert [layer.hidden_size for layer in AWDLSTM(4, 8, 1, output_size=3).layers] == [3]


def test_dropouts_are_on_recurrent_weights_once_a_call_and_locked_between_layers():
    """As in the published code, written out with the same random numbers."""
    core, x = make(layer_dropout=0.3, recurrent_dropout=0.4), some_input()
    layers = torchs(core)
    torch.manual_seed(7)
    y, _ = core(x)

    torch.manual_seed(7)
    expected = x
    for index, layer in enumerate(layers):
        if index:
            mask = torch.empty(B, 1, layer.input_size, dtype=torch.float64).bernoulli_(0.7) / 0.7
            expected = expected * mask
        with torch.no_grad():
            weight = layer.weight_hh_l0
            weight *= torch.empty_like(weight).bernoulli_(0.6) / 0.6
        assert 0 < (weight == 0).sum() < weight.numel()
        expected, _ = layer(expected)
    assert_near(y, expected)


def test_dropout_acts_in_training_only():
    core, x = make(layer_dropout=0.5, recurrent_dropout=0.5), some_input()
    assert not torch.equal(core(x)[0], core(x)[0])
    core.eval()
    assert torch.equal(core(x)[0], core(x)[0])


def test_gradients_with_dropout_are_right():
    core = AWDLSTM(2, 3, 2, output_size=2, layer_dropout=0.3, recurrent_dropout=0.4).double()
    names, parameters = zip(*core.named_parameters(), strict=True)

    def call(x, *values):
        torch.manual_seed(3)
        y, state = torch.func.functional_call(core, dict(zip(names, values, strict=True)), x)
        return y, *(tensor for part in state for tensor in part)

    x = torch.randn(2, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(call, (x, *parameters))


# FWM over it


def composition(model, tokens, state):
    """AWD-FWM without dropout, of torch's layers and the paper's equations: logits, and the state as plain tuples."""
    core, embedding = model.core, model.embedding.weight
    slow, memory = state
    h, slow = through(torchs(core.slow), embedding[tokens], slow)
    S, N = core.first_key_size, core.num_reads
    k1, k2, v, beta = linear(h, core.write.weight, core.write.bias).split([S, S, S, 1], -1)
    n, *e = linear(h, core.read.weight, core.read.bias).tanh().split([S] * (1 + N), -1)
    written = (k1.tanh(), k2.tanh(), v.tanh(), torch.sigmoid(beta + 1).squeeze(-1))
    read, memory = fast_weight_memory(*written, n, torch.stack(e, 2), memory, backend="reference")
    y = h + linear(read, core.output.weight, core.output.bias)
    return y @ embedding.T + model.softmax_bias, (slow, memory)


def awd_fwm(vocabulary_size=11, **options):
    slow = AWDLSTM(INPUT_SIZE, HIDDEN_SIZE, output_size=INPUT_SIZE)
    core = FastWeightMemory(INPUT_SIZE, memory_size=4, slow=slow)
    return TokenModel(vocabulary_size, core, tie_weights=True, embedding_range=0.25, **options)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_whole_model_is_its_composition(dtype):
    """Over two segments with carried state; in float32 by the compiled kernels, where there are any."""
    model = awd_fwm()
    with torch.no_grad():
        model.softmax_bias.normal_()
        for layer in (model.core.write, model.core.read):
            layer.weight.mul_(2)
    model.double()
    segments = torch.randint(11, (B, 2 * T)).split(T, 1)
    state = expected_state = model.core.initial_state(B)
    expected = []
    for tokens in segments:
        logits, expected_state = composition(model, tokens, expected_state)
        expected.append(logits.detach())
    model.to(dtype)
    state = None
    for tokens, logits in zip(segments, expected, strict=True):
        found, state = model(tokens, state)
        assert_near(found.double(), logits, tolerance=1e-6)
    assert isinstance(state, FWMState)
    assert_near(state.memory.double(), expected_state[1], tolerance=1e-5 if dtype == torch.float32 else 1e-10)


def test_gradients_of_the_whole_model_are_its_compositions():
    model = awd_fwm().double()
    tokens = torch.randint(11, (B, T))
    state = model.core.initial_state(B)
    embedding = model.embedding.weight
    logits, _ = composition(model, tokens, state)
    (expected,) = torch.autograd.grad(logits.square().sum(), embedding)
    (found,) = torch.autograd.grad(model(tokens)[0].square().sum(), embedding)
    assert_near(found, expected)


@pytest.mark.parametrize(
    ("vocabulary_size", "memory", "weights"),
    [
        (10_000, True, 24_325_025),
        (33_278, True, 33_659_503),
        (10_000, False, 24_221_600),  # Merity et al.: 24M
        (33_278, False, 33_556_078),  # Merity et al.: 33M
    ],
)
def test_as_many_weights_as_in_the_published_code(vocabulary_size, memory, weights):
    with torch.device("meta"):
        core = AWDLSTM(400, 1150, 3, output_size=400)
        model = TokenModel(
            vocabulary_size, FastWeightMemory(400, memory_size=32, slow=core) if memory else core, tie_weights=True
        )
    assert sum(parameter.numel() for parameter in model.parameters()) == weights
