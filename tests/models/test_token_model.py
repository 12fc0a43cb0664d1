import pytest
import torch

from fastweights import UserError
from fastweights.cores import LSTM, FastWeightLSTM, FastWeightMemory, FastWeightRNN, LayerNormLSTM, Losses, LSTMStack
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
