"""The training loop: early stopping, precision, saves, and what it does when numbers or the disk run out."""

import errno
import math
import os

import pytest
import torch

from fastweights import cli, load_model, recipes
from fastweights.cores.contract import tensors_of
from fastweights.errors import UserError
from fastweights.recipes.options import EarlyStopping
from fastweights.training import checkpoint
from fastweights.training.loop import Observer
from fastweights.training.runs import RunFolder
from trainings import GRAPHS, SEQUENCES, STORIES, assert_resumes, assert_same_run, records, resumed


@pytest.fixture
def begin(trainings):
    """Begins the training of a tiny model on stories."""
    return lambda *overrides, **options: trainings.begin("catbabi-qa/fwm", *STORIES, *overrides, **options)


def validate_as(trainer, name, values):
    """Let the validations of a training report these values of a metric, one after another."""
    validate, values = trainer.objective.validate, iter(values)
    trainer.objective.validate = lambda *arguments: validate(*arguments) | {name: next(values)}


def test_training_learns(begin):
    trainer = begin("--training.steps=60", "--training.learning_rate=0.01", "--training.evaluate_every=60")
    trainer.train()
    losses = [record["loss"] for record in records(trainer, "train")]
    assert sum(losses[-5:]) < sum(losses[:5]) * 0.7


# Early stopping


def test_training_stops_at_the_target(begin):
    trainer = begin("--training.early_stopping.target=0.4", "--training.steps=50")
    validate_as(trainer, "answer_accuracy", [0.0, 0.0, 0.4, 0.9])
    assert trainer.train()["answer_accuracy"] == 0.4
    assert trainer.step == 6 and trainer.stopped_early and trainer.finished
    again = resumed(trainer)
    assert again.train() == {} and again.step == 6  # it stays stopped


def test_training_stops_without_a_better_validation(begin):
    trainer = begin("--training.early_stopping.patience=2", "--training.steps=50")
    validate_as(trainer, "answer_accuracy", [0.2, 0.1, 0.3, 0.3, 0.2, 0.9])  # an equal value is no better one
    trainer.train()
    assert trainer.step == 10 and trainer.stopped_early
    assert checkpoint.read_metadata(trainer.run.best)["step"] == 6
    assert resumed(trainer).finished


def test_patience_is_counted_on_over_an_interruption(begin):
    trainer = begin("--training.early_stopping.patience=2", "--training.steps=50")
    validate_as(trainer, "answer_accuracy", [0.2, 0.1])
    trainer.options.steps = 4
    trainer.train()
    trainer.options.steps = 50
    again = resumed(trainer)
    validate_as(again, "answer_accuracy", [0.1, 0.9])
    again.train()
    assert again.step == 6 and again.stopped_early


# Records and checkpoints


def test_a_checkpoint_from_before_a_recipe_had_a_value_resumes(begin, monkeypatch):
    trainer = begin()
    metadata = trainer._metadata()
    del metadata["recipe"]["training"]["early_stopping"]
    assert trainer.options.early_stopping == EarlyStopping()
    monkeypatch.setattr(trainer, "_metadata", lambda: metadata | {"step": trainer.step})
    trainer.train()
    assert resumed(trainer).step == trainer.step


def test_saves_apart_from_validations(begin, monkeypatch):
    saved = []
    save = checkpoint.save
    monkeypatch.setattr(
        checkpoint, "save", lambda path, *parts: (saved.append((path.name, parts[1]["step"])), save(path, *parts))
    )
    trainer = begin(
        "--training.save_every=3", "--training.evaluate_every=2", "--training.steps=7", "--training.report_every=1"
    )
    trainer.train()
    assert [step for name, step in saved if name == "last.safetensors"] == [3, 6, 7]
    assert [record["step"] for record in trainer.run.records() if "valid" in record] == [2, 4, 6, 7]


def test_a_run_killed_between_two_saves_resumes_from_the_first(begin, monkeypatch):
    options = ("--training.save_every=3", "--training.evaluate_every=2", "--training.steps=7")
    whole, killed = begin(*options), begin(*options)
    whole.train()

    class Killed(Exception):
        pass

    step = killed.optimizer_step

    def optimizer_step():
        if killed.step == 5:  # after the validation of step 4
            raise Killed
        step()

    killed.optimizer_step = optimizer_step
    with pytest.raises(Killed):
        killed.train()
    assert checkpoint.read_metadata(killed.run.last)["step"] == 3
    again = resumed(killed)
    assert again.step == 3
    again.train()
    assert_same_run(killed.run, whole.run)


def test_an_observer_hears_of_each_step_once_it_is_done(begin):
    seen = []

    class Look(Observer):
        def begin(self, objective):
            seen.append(("begin", type(objective).__name__))

        def step(self, progress):
            moments = trainer.optimization.optimizer.state_dict()["state"][0]
            seen.append((progress.step, progress.steps, int(moments["step"]), progress.count))

        def validation(self, step, metrics, best):
            seen.append(("validation", step, best))

    trainer = begin("--training.accumulate=3", "--training.steps=2", observer=Look())
    trainer.train()
    assert seen == [("begin", "Answers"), (1, 2, 1, 120), (2, 2, 2, 120), ("validation", 2, True)]


def test_resuming_before_the_first_save_starts_from_the_beginning(begin):
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


def test_resuming_from_a_best_checkpoint_is_refused(begin):
    trainer = begin("--training.steps=2")
    trainer.train()
    trainer.run.last.write_bytes(trainer.run.best.read_bytes())
    with pytest.raises(UserError, match=r"last.safetensors is a checkpoint that a run cannot resume from"):
        trainer.resume()


def test_the_best_checkpoint_is_that_of_the_best_headline_metric(begin):
    trainer = begin("--training.steps=12", "--training.learning_rate=0.05")
    trainer.train()
    found = {
        record["step"]: record["valid"]["answer_accuracy"] for record in trainer.run.records() if "valid" in record
    }
    best = checkpoint.read_metadata(trainer.run.best)
    assert found[best["step"]] == max(found.values()) == best["valid"]["answer_accuracy"]
    assert best["step"] == min(step for step, value in found.items() if value == max(found.values()))


def test_the_best_checkpoint_is_not_that_of_the_lowest_loss(begin):
    trainer = begin("--training.steps=6")
    validate = trainer.objective.validate
    values = iter([(0.5, 2.0), (0.6, 3.0), (0.4, 1.0)])
    trainer.objective.validate = lambda *arguments: (
        validate(*arguments) | dict(zip(("answer_accuracy", "loss"), next(values), strict=True))
    )
    trainer.train()
    best = checkpoint.read_metadata(trainer.run.best)
    assert (best["step"], best["valid"]["answer_accuracy"], best["valid"]["loss"]) == (4, 0.6, 3.0)


# Interruptions


def test_a_signal_in_the_step_of_a_save_saves_once(begin, monkeypatch):
    """All processes save together; a second save in the same step would find nothing to add up in the others."""
    saved = []

    class Stop(Observer):
        def step(self, progress):
            if progress.step == 2:
                os.kill(os.getpid(), 15)

    trainer = begin(observer=Stop())
    save = trainer.save
    trainer.save = lambda: (saved.append(trainer.step), save())
    with pytest.raises(Exception) as caught:
        trainer.train()
    assert type(caught.value).__name__ == "Interrupted"
    assert saved == [2]


class FakeCard(str):
    """A device that says it is a graphics card, and is the processor."""

    type = "cuda"


def test_the_generator_of_a_graphics_card_is_saved(begin, monkeypatch):
    trainer = begin("--training.steps=2")
    trainer.train()
    state, restored = torch.arange(16, dtype=torch.uint8), []
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: state.clone())
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: restored.append((state, device)))
    trainer.group.device = card = FakeCard("cpu")
    trainer.save()
    assert torch.equal(checkpoint.load(trainer.run.last)[0]["random/cuda"], state.unsqueeze(0))
    trainer.resume()
    ((found, device),) = restored
    assert torch.equal(found, state) and device is card
    resumed(trainer)  # without a card, too
    assert len(restored) == 1


# Precision


@pytest.mark.parametrize(
    ("recipe", "tiny"),
    [
        ("catbabi-qa/fwm", STORIES),
        ("catbabi-lm/fwm", STORIES),
        ("art/fw-lstm", SEQUENCES),
        ("art/fw-rnn", SEQUENCES),
        ("art/ln-lstm", SEQUENCES),
        ("catbabi-qa/lstm", [word for word in STORIES if "memory_size" not in word]),
        ("graph-rl/fwm", GRAPHS),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bfloat16(trainings, recipe, tiny):
    trainers = [trainings.begin(recipe, *tiny, f"--training.precision={p}") for p in ("float32", "bfloat16")]
    for trainer in trainers:
        trainer.train()
    losses = [[record["loss"] for record in records(trainer, "train")] for trainer in trainers]
    assert all(map(math.isfinite, losses[1])) and losses[0] != losses[1]
    assert losses[0][0] == pytest.approx(losses[1][0], rel=0.1, abs=0.05)
    half = trainers[1]
    held = [*half.model.parameters(), *tensors_of(half.state)]
    held += [value for state in half.optimization.optimizer.state.values() for value in state.values()]
    assert {tensor.dtype for tensor in held} == {torch.float32}
    at_start = recipes.assemble(half.recipe).model.parameters()
    assert not any(map(torch.equal, half.model.parameters(), at_start))  # each weight gets a gradient
    assert_resumes(trainings, recipe, *tiny, "--training.precision=bfloat16")


# What is not finite, and full disks


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
    with pytest.raises(
        UserError, match=f"not finite at step 3 .*{culprit}.*The checkpoint of an earlier step is in "
    ) as caught:
        trainer.train()
    assert "\n" not in str(caught.value)
    assert trainer.run.last.read_bytes() == good
    load_model(trainer.run.last)
    kept = trainer.run.path / "non_finite_step_3.safetensors"
    assert str(kept) in str(caught.value)
    tensors, metadata = checkpoint.load(kept)
    assert tensors["inputs"].shape == tensors["targets"].shape == (2, 20)
    assert metadata["step"] == 2
    groups = sorted(set(tensors["groups"][tensors["mask"]].tolist()))
    assert str(groups) in str(caught.value)
    state = {name for name in tensors if name.startswith("state/")}
    assert state == {"state/slow.hidden", "state/slow.cell", "state/memory"}


def test_the_state_of_a_gradient_that_is_not_finite_is_the_one_before(begin):
    trainer = begin("--training.steps=4", "--training.accumulate=2")
    trainer.options.steps = 2
    trainer.train()
    trainer.options.steps = 4
    seen = []
    forward = trainer._forward
    trainer._forward = lambda *arguments: (seen.append(trainer.state), forward(*arguments))[1]
    trainer.model.softmax.weight.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(UserError, match=r"at step 3 .*the gradient \(all tensors of the forward pass are finite\)"):
        trainer.train()
    tensors, _ = checkpoint.load(trainer.run.path / "non_finite_step_3.safetensors")
    assert torch.equal(tensors["state/memory"], seen[1].memory)  # of the second batch of the step


def test_the_module_that_overflows_is_named(begin):
    trainer = begin()
    trainer.model.core.output.register_forward_hook(lambda module, inputs, output: output * math.inf)
    with pytest.raises(UserError, match=r"at step \d .*the output of core\.output \[\d+, 8\]"):
        trainer.train()


def test_an_absurd_learning_rate_ends_with_exit_code_2(tmp_path, capsys):
    out = tmp_path / "run"
    arguments = ["train", "catbabi-qa/fwm", *STORIES, "--training.learning_rate=1e30", "--training.evaluate_every=6"]
    assert cli.main([*arguments, f"--out={out}"]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("fastweights: The loss or its gradient is not finite at step ")
    assert captured.err.count("\n") == 1
    assert len(list(out.glob("non_finite_step_*.safetensors"))) == 1
    assert not RunFolder(out).last.exists() and not RunFolder(out).config.exists()  # a lower rate may follow


def test_weights_that_are_not_finite_are_never_saved(begin):
    trainer = begin("--training.learning_rate=1e300", "--training.evaluate_every=1")
    with pytest.raises(UserError, match=r"The validation's metrics are not finite after step 1\. Lower "):
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


SPOILED = {
    "moments of another shape": lambda tensors, saved: tensors.update({MOMENT: tensors[MOMENT].repeat(2, 1)}),
    "moments of another type": lambda tensors, saved: tensors.update({MOMENT: tensors[MOMENT].double()}),
    "no moments of a kind": lambda tensors, saved: tensors.pop(MOMENT),
    "a weight of another name": lambda tensors, saved: tensors.update(
        {"model/x": tensors.pop("model/embedding.weight")}
    ),
    "a state of another batch size": lambda tensors, saved: tensors.update({STATE: tensors[STATE][:1]}),
    "a state of another size": lambda tensors, saved: tensors.update({STATE: tensors[STATE][..., :1]}),
    "random numbers of another length": lambda tensors, saved: tensors.update({RANDOM: tensors[RANDOM][:, :5]}),
    "a name that is a folder": lambda tensors, saved: tensors.update({f"{MOMENT}/x": tensors[MOMENT]}),
    "a step that is a word": lambda tensors, saved: saved.update(step="x"),
    "a later step than the last": lambda tensors, saved: saved.update(step=7),
    "a best value that is a word": lambda tensors, saved: saved.update(best="x"),
    "no count": lambda tensors, saved: saved.pop("count"),
    "sums that are words": lambda tensors, saved: saved.update(sums={"loss": "x"}),
    "sums of something else": lambda tensors, saved: saved.update(sums={"x": 1.0}),
    "a cursor of another kind": lambda tensors, saved: saved.update(cursor=[1]),
    "a cursor that cannot be read from": lambda tensors, saved: saved["cursor"].update(next="x"),
    "no state of the optimization": lambda tensors, saved: saved.update(optimization={}),
}
WEIGHT, MOMENT = "model/embedding.weight", "optimizer/embedding.weight/exp_avg"
STATE, RANDOM = "state/memory", "random/torch"


@pytest.mark.parametrize("kind", SPOILED)
def test_a_checkpoint_with_a_valid_digest_and_wrong_contents_is_refused(kind, trainings):
    trainer = trainings.begin("catbabi-qa/fwm", *STORIES, "--training.steps=2")
    trainer.train()
    tensors, metadata = checkpoint.load(trainer.run.last)
    SPOILED[kind](tensors, metadata)
    checkpoint.save(trainer.run.last, tensors, metadata)
    before = trainer.run.metrics.read_bytes()
    with pytest.raises(UserError, match=r"last\.safetensors holds no state of this run"):
        resumed(trainer)
    assert trainer.run.metrics.read_bytes() == before
