"""The recipes of Penn Treebank and WikiText-2: the paper's sizes and settings (table 4 and appendix H)."""

import pytest
import torch

from fastweights import recipes, specs
from fastweights.cores import AWDLSTM, FastWeightMemory
from fastweights.models import token_model
from fastweights.training.optimization import Optimization

WEIGHTS = {
    "ptb/fwm": 24_325_025,
    "ptb/lstm": 24_221_600,
    "ptb/fwm-small": 3_938_321,
    "ptb/lstm-small": 3_938_720,
    "wikitext-2/fwm": 33_659_503,
    "wikitext-2/lstm": 33_556_078,
}


def build(name):
    """A recipe, and its model without weights."""
    recipe = recipes.load(name)
    with torch.device("meta"):
        return recipe, specs.call("model", token_model, recipe.model, recipe.task["vocabulary_size"])


@pytest.mark.parametrize("name", WEIGHTS)
def test_sizes_are_as_the_description_says(name):
    recipe, model = build(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == WEIGHTS[name]
    assert f"{WEIGHTS[name]:,} weights" in recipe.description
    assert isinstance(model.core, FastWeightMemory if "fwm" in name else AWDLSTM)
    assert model.tie_weights and model.locked_dropout


@pytest.mark.parametrize(
    ("corpus", "vocabulary_size", "batch_size", "dropouts", "rate"),
    [
        ("ptb", 10_000, 20, (0.4, 0.1, 0.3, 0.5, 0.66), 2.0),
        ("wikitext-2", 33_278, 80, (0.4, 0.1, 0.25, 0.7, 0.61), 0.5),
    ],
)
@pytest.mark.parametrize("kind", ["fwm", "lstm"])
def test_settings_are_those_of_table_4(corpus, vocabulary_size, batch_size, dropouts, rate, kind):
    recipe, model = build(f"{corpus}/{kind}")
    layers = (model.core.slow if kind == "fwm" else model.core).layers
    layer_dropout = (model.core.slow if kind == "fwm" else model.core).layer_dropout
    found = (model.output_dropout, model.token_dropout, layer_dropout, model.embedding_dropout)
    assert (*found, layers[0].recurrent_dropout) == dropouts
    assert [layer.hidden_size for layer in layers] == [1150, 1150, 400]
    assert (model.activation_regularization, model.temporal_activation_regularization) == (2, 1)
    training = recipe.training
    assert (training.batch_size, training.learning_rate, training.clip_norm) == (batch_size, 0.001, 0.25)
    assert training.average.learning_rate == rate and training.average.start_step % training.evaluate_every == 0
    assert recipe.task["vocabulary_size"] == vocabulary_size
    optimization = Optimization(torch.nn.Linear(2, 2), training)
    (group,) = optimization.optimizer.param_groups
    assert (type(optimization.optimizer), group["weight_decay"]) == (torch.optim.Adam, 1.2e-6)
    optimization._start_average()
    (group,) = optimization.optimizer.param_groups
    assert (type(optimization.optimizer), group["weight_decay"]) == (torch.optim.SGD, 1.2e-6)


@pytest.mark.parametrize("kinds", [("ptb/fwm", "ptb/lstm"), ("wikitext-2/fwm", "wikitext-2/lstm")])
def test_the_two_of_a_corpus_differ_in_the_memory_alone(kinds):
    (fwm, _), (lstm, _) = map(build, kinds)
    assert (fwm.task, fwm.training) == (lstm.task, lstm.training)
    assert fwm.model | {"core": fwm.model["core"]["slow"]} == lstm.model


def test_the_small_models_have_equal_weights_and_differ_in_their_core_alone():
    (fwm, _), (lstm, _) = build("ptb/fwm-small"), build("ptb/lstm-small")
    assert (fwm.task, fwm.training) == (lstm.task, lstm.training)
    assert fwm.model | {"core": None} == lstm.model | {"core": None}
    assert (
        WEIGHTS["ptb/fwm-small"] == pytest.approx(WEIGHTS["ptb/lstm-small"], rel=1e-3)
        and max(WEIGHTS["ptb/fwm-small"], WEIGHTS["ptb/lstm-small"]) <= 6_000_000
    )
    assert f"{WEIGHTS['ptb/lstm-small']:,}" in fwm.description and f"{WEIGHTS['ptb/fwm-small']:,}" in lstm.description
