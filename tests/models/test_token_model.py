import pytest
import torch

from fastweights import UserError
from fastweights.cores import (
    AWDLSTM,
    LSTM,
    FastWeightLSTM,
    FastWeightMemory,
    FastWeightRNN,
    LayerNormLSTM,
    Losses,
    LSTMStack,
)
from fastweights.cores.contract import tensors_of
from fastweights.models import ActorCritic, TokenModel, token_model
from tolerances import assert_near

V = 11


@pytest.fixture
def model() -> TokenModel:
    return TokenModel(V, FastWeightMemory(5, 6, 4)).double()


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(V, (3, 12))


@pytest.mark.parametrize(
    ("vocabulary_size", "core", "weights"),
    [
        (180, lambda: FastWeightMemory(256, 256, 32), 683_745),
        (200, lambda: FastWeightMemory(256, 256, 32), 693_985),
        (200, lambda: LSTMStack(256, 512, 4), 8_026_112),
    ],
)
def test_as_many_weights_as_in_the_paper(vocabulary_size, core, weights):
    with torch.device("meta"):
        model = TokenModel(vocabulary_size, core())
    assert sum(parameter.numel() for parameter in model.parameters()) == weights


@pytest.mark.parametrize(
    ("core", "weights"),
    [
        (FastWeightLSTM, [19_497, 43_437, 99_337]),
        (LayerNormLSTM, [19_497, 43_437, 99_337]),
        (FastWeightRNN, [12_017, 20_237, 37_937]),
    ],
)
def test_as_many_weights_as_on_associative_retrieval(core, weights):
    """Embedding 100, H 20, 50 and 100, a ReLU layer of 100 (Keller et al. 2018)."""
    with torch.device("meta"):
        models = [TokenModel(37, core(100, size), head_size=100) for size in (20, 50, 100)]
    assert [sum(parameter.numel() for parameter in model.parameters()) for model in models] == weights


def test_a_head_is_a_layer_with_relu(tokens):
    model = TokenModel(V, FastWeightRNN(5, 6), head_size=7)
    y, _ = model.core(model.embedding(tokens))
    expected = model.softmax(model.head[0](y).relu())
    assert_near(model(tokens)[0], expected)
    output_mask = torch.zeros(3, 12, dtype=torch.bool)
    output_mask[:, -1] = True
    assert_near(model(tokens, output_mask=output_mask)[0], expected[:, -1])


def test_projecting_the_vocabulary_gives_the_same(model, tokens, monkeypatch):
    """12 × 3 tokens are more than the vocabulary, 3 × 3 are not."""
    projected_sizes = []
    projection = model.core.slow.input_projection
    monkeypatch.setattr(
        model.core.slow,
        "input_projection",
        lambda x: projected_sizes.append(x.shape[:-1].numel()) or projection(x),
    )
    logits, state = model(tokens)
    assert projected_sizes == [V]
    logits.square().sum().backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    model.zero_grad()
    parts, direct_state = [], None
    for segment in tokens.split(3, 1):
        part, direct_state = model(segment, direct_state)
        parts.append(part)
    assert projected_sizes[1:] == [9] * 4
    direct = torch.cat(parts, 1)
    assert_near(logits, direct)
    for part, expected in zip(tensors_of(state), tensors_of(direct_state), strict=True):
        assert_near(part, expected)
    direct.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert_near(gradients[name], parameter.grad, name)


def test_the_output_mask_picks_rows_of_all_logits(model, tokens):
    everything, _ = model(tokens)
    output_mask = torch.rand(3, 12) < 0.4
    picked, _ = model(tokens, output_mask=output_mask)
    assert_near(picked, everything[output_mask])
    nothing, _ = model(tokens, output_mask=torch.zeros_like(output_mask))
    assert nothing.shape == (0, V)


def test_masks_reach_the_core(model, tokens):
    mask, resets = torch.rand(3, 12) < 0.7, torch.rand(3, 12) < 0.2
    logits, state = model(tokens, mask=mask, resets=resets)
    y, expected_state = model.core(model.embedding(tokens), mask=mask, resets=resets)
    assert_near(logits, model.softmax(y))
    for part, expected in zip(tensors_of(state), tensors_of(expected_state), strict=True):
        assert_near(part, expected)


def test_dropout_acts_in_training_only(tokens):
    model = TokenModel(V, FastWeightMemory(5, 6, 4), token_dropout=0.5, embedding_dropout=0.2)
    assert not torch.equal(model(tokens)[0], model(tokens)[0])
    model.eval()
    assert torch.equal(model(tokens)[0], model(tokens)[0])


def test_token_dropout_drops_whole_tokens():
    model = TokenModel(V, LSTMStack(5, 6, 1), token_dropout=0.5)
    tokens = torch.randint(V, (20, 20))
    x = model._embed(tokens)
    kept = x != 0
    assert torch.equal(kept.any(-1), kept.all(-1))
    assert 0.4 < kept.any(-1).float().mean() < 0.6
    assert_near(x[kept.any(-1)], 2 * model.embedding(tokens)[kept.any(-1)])


def test_embedding_dropout_drops_elements():
    model = TokenModel(V, LSTMStack(50, 6, 1), embedding_dropout=0.2)
    tokens = torch.randint(V, (20, 20))
    x = model._embed(tokens)
    kept = x != 0
    assert 0.75 < kept.float().mean() < 0.85 and not kept.all(-1).any()
    assert_near(x[kept], model.embedding(tokens)[kept] / 0.8)


# Dropout that is drawn once a call, as in the published code of AWD-LSTM, with the same random numbers


def locked(**options):
    return TokenModel(V, AWDLSTM(5, 6, 2, output_size=5), locked_dropout=True, **options).double()


def mask(probability, *shape):
    return torch.empty(shape, dtype=torch.float64).bernoulli_(1 - probability) / (1 - probability)


def test_locked_token_dropout_drops_rows_of_the_embedding_matrix(tokens):
    model = locked(token_dropout=0.5)
    torch.manual_seed(1)
    x = model._embed(tokens)
    torch.manual_seed(1)
    rows = mask(0.5, V, 1)
    assert_near(x, (model.embedding.weight * rows)[tokens])
    assert 0 < (x == 0).all(-1).sum() < tokens.numel()


def test_locked_embedding_dropout_drops_elements_at_all_steps(tokens):
    model = locked(token_dropout=0.2, embedding_dropout=0.5)
    torch.manual_seed(1)
    x = model._embed(tokens)
    torch.manual_seed(1)
    rows, elements = mask(0.2, V, 1), mask(0.5, 3, 1, 5)
    assert_near(x, (model.embedding.weight * rows)[tokens] * elements)


@pytest.mark.parametrize("is_locked", [True, False])
def test_output_dropout_is_on_what_the_core_gives(tokens, is_locked):
    """For FWM: behind the residual."""
    model = TokenModel(V, FastWeightMemory(5, 6, 4), output_dropout=0.5, locked_dropout=is_locked).double()
    torch.manual_seed(1)
    logits, _ = model(tokens)
    torch.manual_seed(1)
    y, _ = model.core(model.embedding(tokens))
    elements = mask(0.5, 3, 1, 6) if is_locked else mask(0.5, 12, 3, 6).transpose(0, 1)  # y is time-major in memory
    assert_near(logits, model.softmax(y * elements))
    model.eval()
    assert_near(model(tokens)[0], model.softmax(y))


# Regularization of the core's output


def by_hand(y, counted, neighbours):
    """Mean squares of y `[B, T, D]` and of its changes, element by element."""
    squares, changes = [], []
    for row in range(y.shape[0]):
        for t in range(y.shape[1]):
            if counted[row, t]:
                squares += y[row, t].square().tolist()
            if t and counted[row, t] and counted[row, t - 1] and neighbours[row, t]:
                changes += (y[row, t] - y[row, t - 1]).square().tolist()
    return sum(squares) / len(squares), sum(changes) / len(changes)


@pytest.mark.parametrize("core", [lambda: AWDLSTM(5, 6, 2), lambda: FastWeightMemory(5, 6, 4)])
@pytest.mark.parametrize("given", [(), ("mask",), ("mask", "output_mask"), ("mask", "output_mask", "resets")])
def test_regularization_by_hand(tokens, core, given):
    """Of real tokens alone; no change is counted from padding, or over the border of two sequences."""
    options = {"activation_regularization": 2.0, "temporal_activation_regularization": 1.5}
    model, losses = TokenModel(V, core(), **options).double(), Losses()
    masks = {"mask": torch.rand(3, 12) < 0.8, "resets": torch.rand(3, 12) < 0.2}
    masks["output_mask"] = masks["mask"] & (torch.rand(3, 12) < 0.8)
    arguments = {name: masks[name] for name in given}
    logits, _ = model(tokens, losses=losses, **arguments)
    assert_near(model(tokens, **arguments)[0], logits)
    y, _ = model.core(model.embedding(tokens), **arguments)
    counted = arguments.get("output_mask", arguments.get("mask", torch.ones_like(masks["mask"])))
    square, change = by_hand(y, counted, ~arguments.get("resets", torch.zeros_like(masks["mask"])))
    assert losses.keys() == {"activation", "temporal_activation"}
    assert losses["activation"].item() == pytest.approx(2 * square)
    assert losses["temporal_activation"].item() == pytest.approx(1.5 * change)
    losses.total().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.core.parameters())
    assert model.embedding.weight.grad.abs().max() > 0


def test_activations_are_regularized_behind_their_dropout_and_changes_before_it(tokens):
    """As in the published code."""
    options = {"activation_regularization": 1.0, "temporal_activation_regularization": 1.0}
    model, losses = locked(output_dropout=0.5, **options), Losses()
    torch.manual_seed(1)
    model(tokens, losses=losses)
    torch.manual_seed(1)
    y, _ = model.core(model.embedding(tokens))
    assert_near(losses["activation"], (y * mask(0.5, 3, 1, 5)).square().mean())
    assert_near(losses["temporal_activation"], (y[:, 1:] - y[:, :-1]).square().mean())


def test_nothing_counted_adds_zero():
    model, losses = locked(activation_regularization=1.0, temporal_activation_regularization=1.0), Losses()
    model(torch.randint(V, (3, 1)), losses=losses, output_mask=torch.zeros(3, 1, dtype=torch.bool))
    assert losses.total().item() == 0


def test_a_model_without_regularization_adds_no_term(tokens):
    losses = Losses()
    locked()(tokens, losses=losses)
    assert not losses


# Weights


def test_tied_weights_are_one_parameter(tokens):
    model = locked(tie_weights=True)
    assert [name for name, _ in model.named_parameters() if "core" not in name] == ["softmax_bias", "embedding.weight"]
    assert model.state_dict().keys() == dict(model.named_parameters()).keys()  # the same names for all who keep them
    assert not model.softmax_bias.any()
    with torch.no_grad():
        model.softmax_bias.normal_()
    y, _ = model.core(model.embedding(tokens))
    assert_near(model(tokens)[0], y @ model.embedding.weight.T + model.softmax_bias)


def test_tied_weights_under_a_head(tokens):
    model = TokenModel(V, LSTM(5, 6), tie_weights=True, head_size=5)
    y, _ = model.core(model.embedding(tokens))
    assert_near(model(tokens)[0], model.head[0](y).relu() @ model.embedding.weight.T)


def test_tied_weights_need_the_embeddings_size():
    with pytest.raises(ValueError, match="of the embedding's size 5 before the softmax, and they have 6"):
        TokenModel(V, LSTM(5, 6), tie_weights=True)


def test_embeddings_begin_in_a_range():
    weight = TokenModel(1000, LSTM(5, 6), embedding_range=0.25).embedding.weight
    assert 0.249 < weight.abs().max() <= 0.25 and abs(weight.mean()) < 0.01


def test_builds_from_the_words_of_a_recipe():
    options = {
        "embedding_size": 5,
        "core": {"type": "fwm", "hidden_size": 6, "memory_size": 4},
        "token_dropout": 0.1,
    }
    model = token_model(V, **options)
    assert (model.core.input_size, model.token_dropout, model.softmax.out_features) == (5, 0.1, V)
    assert set(options) == {"embedding_size", "core", "token_dropout"}  # left as they were


def test_a_core_may_be_given_as_its_type_alone():
    model = token_model(V, core="lstm", embedding_size=5)
    assert type(model.core) is LSTM and model.core.input_size == 5
    with pytest.raises(UserError, match='no core "lstn"; did you mean "lstm"'):
        token_model(V, core="lstn")


def test_losses_of_the_core_reach_the_collector(tokens):
    class Adds(LSTM):
        def forward(self, x, state=None, *, losses=None):
            y, state = super().forward(x, state)
            if losses is not None:
                losses.add("size", y.square().mean())
            return y, state

    found = Losses()
    for core in (Adds(5, 6), FastWeightMemory(5, memory_size=4, slow=Adds(5, 6))):
        logits, _ = TokenModel(V, core)(tokens[:, :2], losses=found)
        assert logits.shape == (3, 2, V)
    assert list(found) == ["size"] and found.total().requires_grad
    agent_losses = Losses()
    ActorCritic(Adds(5, 6), 2)(torch.randn(3, 4, 5), losses=agent_losses)
    assert list(agent_losses) == ["size"]
