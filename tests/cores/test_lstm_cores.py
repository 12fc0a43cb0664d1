import pytest
import torch
from torch.nn.functional import dropout

from fastweights.cores import LSTM, LSTMStack
from fastweights.cores.lstm import LSTMState
from tolerances import assert_near


@pytest.mark.parametrize("backend", ["reference", "plain"])
def test_lstm_equals_torchs(backend):
    torchs = torch.nn.LSTM(5, 6, batch_first=True, dtype=torch.float64)
    ours = LSTM(5, 6, forget_bias=0.0, backend=backend).double()
    ours.load_state_dict(
        {
            "input_weight": torchs.weight_ih_l0,
            "recurrent_weight": torchs.weight_hh_l0,
            "bias": torchs.bias_ih_l0 + torchs.bias_hh_l0,
        }
    )
    x, hidden, cell = (torch.randn(shape, dtype=torch.float64) for shape in ((3, 20, 5), (3, 6), (3, 6)))
    expected, (expected_hidden, expected_cell) = torchs(x, (hidden[None], cell[None]))
    y, state = ours(x, LSTMState(hidden, cell))
    assert_near(y, expected)
    assert_near(state.hidden, expected_hidden[0])
    assert_near(state.cell, expected_cell[0])

    expected.square().sum().backward()
    y.square().sum().backward()
    assert_near(ours.input_weight.grad, torchs.weight_ih_l0.grad)
    assert_near(ours.recurrent_weight.grad, torchs.weight_hh_l0.grad)
    assert_near(ours.bias.grad, torchs.bias_ih_l0.grad)


def test_forget_bias_is_added_to_the_forget_gate():
    with_constant, with_bias = LSTM(5, 6, forget_bias=1.5), LSTM(5, 6, forget_bias=0.0)
    with_bias.load_state_dict(with_constant.state_dict())
    with torch.no_grad():
        with_bias.bias[6:12] += 1.5
    x = torch.randn(2, 9, 5)
    assert_near(with_constant(x)[0], with_bias(x)[0])


def test_the_stack_adds_each_layers_input_from_the_second_on():
    stack = LSTMStack(5, 6, num_layers=3).double()
    x = torch.randn(2, 9, 5, dtype=torch.float64)
    first, _ = stack.layers[0](x)
    second = first + stack.layers[1](first)[0]
    third = second + stack.layers[2](second)[0]
    assert_near(stack(x)[0], third)


def test_dropout_acts_in_training_only():
    stack = LSTMStack(5, 16, num_layers=2, layer_dropout=0.5, recurrent_dropout=0.5)
    x = torch.randn(2, 9, 5)
    assert not torch.equal(stack(x)[0], stack(x)[0])
    stack.eval()
    assert torch.equal(stack(x)[0], stack(x)[0])


def test_dropouts_are_on_recurrent_weights_once_a_call_and_between_layers():
    """Written out with the same random numbers: weights for the whole call, the representation anew at every step."""
    stack = LSTMStack(5, 6, num_layers=3, layer_dropout=0.3, recurrent_dropout=0.4).double()
    plain = [LSTM(layer.input_size, 6).double() for layer in stack.layers]
    x = torch.randn(2, 9, 5, dtype=torch.float64)
    torch.manual_seed(7)
    y, _ = stack(x)

    torch.manual_seed(7)
    expected = x
    for index, layer in enumerate(stack.layers):
        below = dropout(expected, 0.3) if index else expected
        weight = dropout(layer.recurrent_weight, 0.4)
        plain[index].load_state_dict(layer.state_dict() | {"recurrent_weight": weight})
        assert 0 < (weight == 0).sum() < weight.numel()
        expected = plain[index](below)[0] + (below if index else 0)
    assert_near(y, expected)
