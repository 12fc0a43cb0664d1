"""The agent's ends, and that its LSTM is torch's."""

import torch

from fastweights.cores import LSTM
from fastweights.models import ActorCritic, actor_critic
from tolerances import assert_near


def test_shapes_and_the_state_that_goes_on():
    model = ActorCritic(LSTM(5, 8), 3).double()
    observations = torch.randn(2, 6, 5).double()
    logits, values, state = model(observations)
    assert logits.shape == (2, 6, 3) and values.shape == (2, 6)
    first = model(observations[:, :4])
    second = model(observations[:, 4:], first[2])
    assert_near(torch.cat([first[0], second[0]], 1), logits)
    assert_near(torch.cat([first[1], second[1]], 1), values)
    assert_near(second[2].cell, state.cell)


def test_an_lstm_with_two_biases_is_torchs():
    torch.manual_seed(1)
    ours, torchs = LSTM(5, 16, forget_bias=0.0, second_bias=True), torch.nn.LSTM(5, 16, batch_first=True)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in torchs.parameters())
    assert ours.bias.abs().max() <= 0.25 and ours.second_bias.abs().max() <= 0.25
    assert ours.bias.std() > 0.1 and not torch.equal(ours.bias, ours.second_bias)
    with torch.no_grad():
        for own, other in ((ours.input_weight, torchs.weight_ih_l0), (ours.recurrent_weight, torchs.weight_hh_l0),
                           (ours.bias, torchs.bias_ih_l0), (ours.second_bias, torchs.bias_hh_l0)):  # fmt: skip
            own.copy_(other)
    x = torch.randn(3, 7, 5)
    y, _ = ours(x)
    expected, _ = torchs(x)
    assert_near(y, expected)
    gradients = torch.autograd.grad(y.square().sum(), [ours.bias, ours.second_bias])
    wanted = torch.autograd.grad(expected.square().sum(), [torchs.bias_ih_l0, torchs.bias_hh_l0])
    for own, other in zip(gradients, wanted, strict=True):
        assert_near(own, other)


def test_builds_from_the_words_of_a_recipe():
    model = actor_critic(5, 3, core={"type": "lstm", "hidden_size": 8})
    assert (model.core.input_size, model.policy.out_features, model.value.in_features) == (5, 3, 8)
    assert type(actor_critic(5, 3, core="lstm").core) is LSTM


def test_the_mask_reaches_the_core():
    model = ActorCritic(LSTM(5, 8), 3).double()
    observations, mask = torch.randn(2, 6, 5).double(), torch.ones(2, 6, dtype=torch.bool)
    mask[1, 4:] = False
    _, _, state = model(observations, mask=mask)
    _, _, shorter = model(observations[1:, :4])
    assert_near(state.cell[1:], shorter.cell)
