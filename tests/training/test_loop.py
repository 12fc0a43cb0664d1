"""The supervised loop: its learning rate, what it does when numbers or the disk run out, and loading its models."""

import errno
import math
import os

import pytest
import torch

from fastweights import cli, load_model, recipes
from fastweights.cores import map_state
from fastweights.errors import UserError
from fastweights.recipes import TrainingOptions
from fastweights.training import checkpoint
from fastweights.training.loop import Observer, learning_rate
from fastweights.training.runs import RunFolder
from fastweights.training.supervised import Trainer

TINY = [
    "--model.embedding_size=8",
    "--model.core.hidden_size=8",
    "--model.core.memory_size=4",
    "--task.tasks=1,2",
    "--task.segment_length=20",
    "--task.validation_stories=2",
    "--training.rows=2",
    "--training.evaluation_rows=2",
    "--training.steps=6",
    "--training.report_every=2",
    "--training.evaluate_every=2",
]


@pytest.fixture
def begin(tmp_path):
    """Return a function that begins a run of a tiny model and gives its trainer."""
    opened = []

    def begin(*overrides, observer=None):
        recipe = recipes.load("catbabi-qa/fwm", [*TINY, *overrides])
        run = RunFolder.create(tmp_path / f"run{len(opened)}", {"recipe": recipe.to_dict(), "data": None})
        opened.append(run)
        return Trainer(recipe, run, None, observer)

    yield begin
    for run in opened:
        run.unlock()


def test_training_ends_where_it_is_good_enough(begin):
    trainer = begin("--training.stop_at_accuracy=1e-9", "--training.report_every=1", "--training.steps=50")
    validate, accuracies = trainer._validate, iter([0.0, 0.0, 0.5, 0.9])
    trainer._validate = lambda: validate() | {"answer_accuracy": next(accuracies)}
    assert trainer.train()["answer_accuracy"] == 0.5
    assert trainer.step == 6
    again = Trainer(trainer.recipe, trainer.run)
    again.resume()
    assert again.train() == {} and again.step == 6  # it stays good enough


def test_a_checkpoint_from_before_a_recipe_had_a_value_goes_on(begin, monkeypatch):
    trainer = begin()
    metadata = trainer._metadata()
    del metadata["recipe"]["training"]["stop_at_accuracy"]
    monkeypatch.setattr(trainer, "_metadata", lambda: metadata | {"step": trainer.step})
    trainer.train()
    again = Trainer(trainer.recipe, trainer.run)
    again.resume()
    assert again.step == trainer.step


def rates(**options):
    options = TrainingOptions(**{"steps": 10, "learning_rate": 1.0, **options})
    return [learning_rate(options, step) for step in range(options.steps)]


def test_a_constant_learning_rate():
    assert rates() == [1.0] * 10


def test_the_learning_rate_rises_in_equal_steps_and_stays():
    assert rates(warmup_steps=4) == [0.25, 0.5, 0.75] + [1.0] * 7


def test_the_learning_rate_falls_along_a_cosine():
    found = rates(schedule="cosine")
    assert found == pytest.approx([(1 + math.cos(math.pi * step / 10)) / 2 for step in range(10)])
    assert found[0] == 1.0 and found[5] == pytest.approx(0.5) and 0 < found[-1] < 0.03
    assert found == sorted(found, reverse=True)


def test_warm_up_and_cosine_together():
    plain, warm = rates(schedule="cosine"), rates(schedule="cosine", warmup_steps=2)
    assert warm[0] == plain[0] / 2
    assert warm[1:] == plain[1:]


def test_the_optimizer_gets_the_learning_rate(begin):
    seen = []

    class Look(Observer):
        def step(self, progress):
            seen.append(trainer.optimizer.param_groups[0]["lr"])

    trainer = begin("--training.schedule=cosine", "--training.warmup_steps=3", observer=Look())
    trainer.train()
    assert seen == [learning_rate(trainer.options, step) for step in range(6)]


def test_training_learns(begin):
    trainer = begin("--training.steps=60", "--training.learning_rate=0.01", "--training.evaluate_every=60")
    trainer.train()
    losses = [record["train"]["loss"] for record in trainer.run.records() if "train" in record]
    assert sum(losses[-5:]) < sum(losses[:5]) * 0.7


def test_clipping_limits_the_step_that_the_gradient_makes(begin):
    norms = []
    for clip in ("null", "0.001"):
        trainer = begin(f"--training.clip_norm={clip}", "--training.steps=1")
        trainer.train()
        norms.append(torch.stack([p.grad.norm() for p in trainer.model.parameters()]).norm().item())
    assert norms[0] > 0.01
    assert norms[1] == pytest.approx(0.001, rel=1e-3)


@pytest.mark.parametrize("poisoned", ["weight", "state"])
def test_a_poisoned_number_is_found(begin, poisoned):
    trainer = begin("--training.steps=2")
    trainer.train()
    good = trainer.run.last.read_bytes()
    trainer.options.steps = 4
    if poisoned == "weight":
        trainer.model.core.write.weight.data[3, 1] = math.nan
        culprit = r"the weight core\.write\.weight \[13, 8\]"
    else:
        trainer.state.memory[1, 0, 0, 0] = math.inf
        culprit = r"the carried state memory \[2, 4, 4, 4\]"
    with pytest.raises(UserError, match=f"not finite at step 3 .*{culprit}.*The last good checkpoint") as caught:
        trainer.train()
    assert "\n" not in str(caught.value)
    assert trainer.run.last.read_bytes() == good
    load_model(trainer.run.last)
    kept = trainer.run.path / "non_finite_step_3.safetensors"
    assert str(kept) in str(caught.value)
    tensors, metadata = checkpoint.load(kept)
    assert tensors["inputs"].shape == tensors["targets"].shape == (2, 20)
    assert metadata["step"] == 2
    groups = sorted(set(tensors["groups"][tensors["valid"]].tolist()))
    assert str(groups) in str(caught.value)


def test_the_module_that_overflows_is_named(begin):
    trainer = begin()
    trainer.model.core.output.register_forward_hook(lambda module, inputs, output: output * math.inf)
    with pytest.raises(UserError, match=r"at step \d .*the output of core\.output \[\d+, 8\]"):
        trainer.train()


def test_an_absurd_learning_rate_ends_with_exit_code_2(tmp_path, capsys):
    out = tmp_path / "run"
    arguments = ["train", "catbabi-qa/fwm", *TINY, "--training.learning_rate=1e30", "--training.evaluate_every=6"]
    assert cli.main([*arguments, f"--out={out}"]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("fastweights: The loss or its gradient is not finite at step ")
    assert captured.err.count("\n") == 1
    assert len(list(out.glob("non_finite_step_*.safetensors"))) == 1
    assert not RunFolder.open(out).last.exists()


def test_weights_that_are_not_finite_are_never_saved(begin):
    trainer = begin("--training.learning_rate=1e300", "--training.evaluate_every=1")
    with pytest.raises(UserError, match=r"The validation loss is not finite after step 1\."):
        trainer.train()
    assert not trainer.run.last.exists() and not trainer.run.best.exists()


def test_a_full_disk_is_the_users_to_mend_and_the_old_checkpoint_survives(begin, monkeypatch):
    trainer = begin("--training.steps=2")
    trainer.train()
    before = trainer.run.last.read_bytes()

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    trainer.options.steps = 4
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(UserError, match=r"No space left on device.*free some space"):
            trainer.train()
    assert trainer.run.last.read_bytes() == before
    assert not list(trainer.run.path.glob(".*.partial"))


def test_resuming_before_the_first_save_begins_anew(begin):
    whole, killed = begin(), begin()
    whole.train()
    killed.run.record({"step": 2, "train": {}})
    killed.resume()
    killed.train()
    assert killed.run.metrics.read_bytes() == whole.run.metrics.read_bytes()


def test_resuming_from_another_recipe_is_refused(begin):
    first, second = begin("--training.steps=2"), begin("--training.steps=2", "--training.learning_rate=0.5")
    first.train()
    second.run.last.write_bytes(first.run.last.read_bytes())
    with pytest.raises(UserError, match=r"last.safetensors was saved by another recipe"):
        second.resume()


@pytest.mark.parametrize("recipe_options", [[], ["--task.mode=lm"], ["--task.as_published=true"]])
def test_a_loaded_model_is_the_one_that_was_trained(begin, recipe_options):
    trainer = begin(*recipe_options)
    trainer.train()
    model, state, metadata = load_model(trainer.run.last)
    assert metadata["recipe"] == trainer.recipe.to_dict()
    assert metadata["step"] == 6
    assert not model.training
    first_row = map_state(lambda tensor: tensor[:1], trainer.state)
    assert all(map(torch.equal, flat(state), flat(first_row)))
    tokens = torch.randint(trainer.task.vocabulary_size, (1, 30))
    trainer.model.eval()
    expected, expected_state = trainer.model(tokens, first_row)
    logits, new_state = model(tokens, state)
    assert torch.equal(logits, expected)
    assert all(map(torch.equal, flat(new_state), flat(expected_state)))


def test_a_run_folder_stands_for_its_best_checkpoint(begin):
    trainer = begin("--training.steps=4")
    trainer.train()
    checkpoint.save(trainer.run.best, *load_with_step(trainer.run.best, 123))
    assert load_model(trainer.run.path)[2]["step"] == 123
    trainer.run.best.unlink()
    assert load_model(str(trainer.run.path))[2]["step"] == 4


def test_the_best_checkpoint_is_that_of_the_lowest_validation_loss(begin):
    trainer = begin("--training.steps=12", "--training.learning_rate=0.05")
    trainer.train()
    losses = {record["step"]: record["valid"]["loss"] for record in trainer.run.records() if "valid" in record}
    best = checkpoint.read_metadata(trainer.run.best)
    assert losses[best["step"]] == min(losses.values()) == best["valid"]["loss"]


def load_with_step(path, step):
    tensors, metadata = checkpoint.load(path)
    return tensors, metadata | {"step": step}


def flat(state):
    found = []
    map_state(found.append, state)
    return found
