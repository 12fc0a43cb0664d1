"""Language modelling: perplexity and bits from the loss, the best model by the lower perplexity, early stopping."""

import json
import math

import pytest
import torch

from fastweights import cli, load_model
from fastweights.errors import UserError
from fastweights.objectives import LanguageModel, Sums
from fastweights.training import checkpoint
from trainings import STORIES, assert_resumes, records, resumed

RECIPE = ("catbabi-lm/fwm", *STORIES, "--objective.type=language-model")


def validate_as(trainer, values):
    """Let the validations of a training report these perplexities, one after another."""
    validate, values = trainer.objective.validate, iter(values)
    trainer.objective.validate = lambda *arguments: validate(*arguments) | {"perplexity": next(values)}


def test_training_learns_and_is_evaluated(trainings):
    trainer = trainings.begin(*RECIPE, "--training.steps=40", "--training.learning_rate=0.01")
    trainer.train()
    losses = [record["loss"] for record in records(trainer, "train")]
    assert sum(losses[-5:]) < sum(losses[:5]) * 0.8
    for record in records(trainer, "train"):
        assert record.keys() == {"loss", "perplexity", "bits_per_token"}
    for record in records(trainer, "valid"):
        assert record.keys() == {"loss", "perplexity", "bits_per_token", "tokens"}
    for record in (*records(trainer, "train"), *records(trainer, "valid")):
        assert record["perplexity"] == pytest.approx(math.exp(record["loss"]))
        assert record["bits_per_token"] == pytest.approx(record["loss"] / math.log(2))
    trained = load_model(trainer.run.path)
    assert isinstance(trained.assembly.objective, LanguageModel)
    found = trainer.objective.evaluate(trained.model, trainer.task, None, "valid", 2, trained.state)
    assert found == trained.metadata["valid"]
    counts = trainer.objective.evaluation_counts(trainer.task, None, "valid")
    assert found["tokens"] == counts["tokens"]


def test_the_loss_is_the_mean_over_all_tokens(trainings):
    """By hand, from the logits of one call."""
    trainer = trainings.begin(*RECIPE, "--task.segment_length=1000")
    (batch, *rest) = trainer.task.evaluation_batches(None, "valid", 4)
    assert not rest and torch.equal(batch.loss_mask, batch.mask)
    logits, _ = trainer.model(batch.inputs, mask=batch.mask)
    log_probabilities = logits.log_softmax(-1).gather(-1, batch.targets.unsqueeze(-1)).squeeze(-1)
    expected = -log_probabilities[batch.mask].double().mean().item()
    metrics = trainer.objective.evaluate(trainer.model, trainer.task, None, "valid", 4)
    assert metrics["loss"] == pytest.approx(expected, rel=1e-5)


def test_resuming_is_bit_for_bit(trainings):
    assert_resumes(trainings, *RECIPE)


AWD_FWM = (
    "--model.core={type: fwm, memory_size: 4, slow: {type: awd-lstm, hidden_size: 9, output_size: 8,"
    " layer_dropout: 0.3, recurrent_dropout: 0.6}}",
    "--model.token_dropout=0.1",
    "--model.embedding_dropout=0.5",
    "--model.output_dropout=0.4",
    "--model.locked_dropout=true",
    "--model.tie_weights=true",
    "--model.embedding_range=0.25",
    "--training.clip_norm=0.25",
    "--training.average={start_step: 2, optimizer: {type: sgd, weight_decay: 0.0000012}, learning_rate: 2.0}",
)
REGULARIZED = ("--model.activation_regularization=2", "--model.temporal_activation_regularization=1")


def awd_fwm(*overrides):
    """A recipe with all of AWD-LSTM's regularization, on stories."""
    recipe, *others = (word for word in RECIPE if "model.core" not in word)
    return recipe, *others, *AWD_FWM, *overrides


@pytest.mark.parametrize("stop", [2, 3, 4])
def test_a_regularized_model_resumes_across_the_switch_to_averaged_sgd(trainings, stop):
    whole = assert_resumes(trainings, *awd_fwm(*REGULARIZED), stop=stop)
    for record in records(whole, "train"):
        assert record["activation_loss"] > 0 and record["temporal_activation_loss"] > 0
        assert record["perplexity"] == pytest.approx(math.exp(record["loss"]))  # without the regularization
    assert all("activation_loss" not in record for record in records(whole, "valid"))


def test_tied_weights_are_evaluated_by_their_average(trainings):
    """Of the one parameter in two places, a checkpoint keeps one value."""
    trainer = trainings.begin(*awd_fwm())
    trainer.train()
    trained = load_model(trainer.run.last)
    for parameter, mean in zip(trained.model.parameters(), trainer.optimization.average, strict=True):
        assert torch.equal(parameter, mean)
    found = trainer.objective.validate(trained.model, trainer.task, None, 2, trainer.state)
    assert found == records(trainer, "valid")[-1]


def test_regularization_is_added_to_the_loss(trainings):
    """The same random numbers in both: the losses of the first step differ by the terms alone."""
    losses = []
    for overrides in ((), REGULARIZED):
        trainer = trainings.begin(*awd_fwm(*overrides))
        torch.manual_seed(3)
        losses.append((step := trainer._forward(next(trainer.source))).loss.item())
    added = step.sums["added/activation"] + step.sums["added/temporal_activation"]
    assert added > 0 and losses[1] == pytest.approx(losses[0] + added.item())


def test_the_best_model_has_the_lowest_perplexity(trainings):
    trainer = trainings.begin(*RECIPE, "--training.steps=10")
    validate_as(trainer, [9.0, 7.0, 8.0, 7.0, 10.0])
    trainer.train()
    best = checkpoint.read_metadata(trainer.run.best)
    assert (best["step"], best["valid"]["perplexity"]) == (4, 7.0)
    assert checkpoint.read_metadata(trainer.run.last)["best"] == 7.0


def test_training_stops_at_a_perplexity_not_above_the_target(trainings):
    trainer = trainings.begin(*RECIPE, "--training.early_stopping.target=7.5", "--training.steps=50")
    validate_as(trainer, [9.0, 8.0, 7.5, 1.0])
    trainer.train()
    assert trainer.step == 6 and trainer.stopped_early
    assert resumed(trainer).finished


def test_training_stops_where_the_perplexity_falls_no_more(trainings):
    trainer = trainings.begin(*RECIPE, "--training.early_stopping.patience=2", "--training.steps=50")
    validate_as(trainer, [9.0, 10.0, 8.0, 8.0, 8.5, 1.0])
    trainer.train()
    assert trainer.step == 10 and trainer.stopped_early


def test_a_hopeless_model_has_a_finite_perplexity():
    sums = Sums({"loss": torch.tensor(1e6).double(), "positions": torch.tensor(1.0).double()})
    metrics = LanguageModel().metrics(sums)
    assert math.isfinite(metrics["perplexity"]) and metrics["loss"] == 1e6


# The temperature of the softmax


def evaluate(trainer, split="valid", **options):
    return LanguageModel(**options).evaluate(trainer.model, trainer.task, None, split, 2)


def test_a_temperature_divides_the_softmaxs_input(trainings):
    """By hand, from the core's output; the bias is not divided, as in the published code."""
    trainer = trainings.begin(*awd_fwm("--task.segment_length=1000"))
    model = trainer.model.eval()
    with torch.no_grad():
        model.softmax_bias.normal_()
    (batch,) = trainer.task.evaluation_batches(None, "valid", 2)
    y, _ = model.core(model.embedding(batch.inputs), mask=batch.mask)
    logits = y[batch.mask] / 0.9 @ model.embedding.weight.T + model.softmax_bias
    expected = torch.nn.functional.cross_entropy(logits, batch.targets[batch.mask]).item()
    found = evaluate(trainer, temperature=0.9)
    assert found["loss"] == pytest.approx(expected, rel=1e-5) and found["temperature"] == 0.9
    assert found["loss"] != pytest.approx(evaluate(trainer)["loss"], rel=1e-3)
    assert model.temperature == 1  # afterwards as before


def test_the_temperature_is_tuned_on_validation_to_the_first_rise(trainings):
    """As the published script does, one evaluation after another."""
    trainer = trainings.begin(*RECIPE, "--training.steps=30", "--training.learning_rate=0.01")
    while trainer.step < 30:
        trainer.optimizer_step()
        trainer.step += 1
    best, expected = math.inf, None
    for hundredths in range(80, 120):
        loss = evaluate(trainer, temperature=hundredths / 100)["loss"]
        if loss > best:
            break
        best, expected = loss, hundredths / 100
    assert 0.8 < expected < 1.19
    tuned = evaluate(trainer, temperature="tuned")
    assert tuned["temperature"] == expected and tuned["loss"] == pytest.approx(best)
    test = evaluate(trainer, "test", temperature="tuned")
    assert test == evaluate(trainer, "test", temperature=expected)


def test_a_model_of_ones_own_has_no_temperature(trainings):
    trainer = trainings.begin(*RECIPE)
    with pytest.raises(UserError, match="Module has no temperature of its softmax; leave objective"):
        LanguageModel(temperature=0.9).evaluate(torch.nn.Module(), trainer.task, None, "valid", 2)


def test_on_the_command_line(tmp_path, capsys):
    out = tmp_path / "run"
    assert cli.main(["train", *RECIPE, f"--out={out}", "--json"]) == 0
    trained = json.loads(capsys.readouterr().out)
    assert trained["perplexity"] > 1
    assert cli.main(["evaluate", str(out), "--split=valid", "--batch-size=2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    best = checkpoint.read_metadata(out / "best.safetensors")
    assert {key: found[key] for key in best["valid"]} == best["valid"] and found["step"] == best["step"]
    assert cli.main(["evaluate", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "perplexity" in printed and "bits per token" in printed and f"{found['tokens']:,}" in printed
    assert cli.main(["evaluate", str(out), "--split=test", "--objective.temperature=tuned"]) == 0
    assert "temperature" in capsys.readouterr().out
    assert cli.main(["evaluate", str(out), "--objective.temperature=tune"]) == 2
    assert "temperature of the objective \"language-model\" is 'tune'; it must be" in capsys.readouterr().err
