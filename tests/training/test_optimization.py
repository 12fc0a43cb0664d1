"""The optimizer, its schedule, clipping, accumulation and averaged weights, and that all of their state is saved."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from fastweights import load_model, recipes
from fastweights.errors import UserError
from fastweights.recipes import TrainingOptions
from fastweights.specs import from_dict
from fastweights.training import checkpoint
from fastweights.training.loop import Observer
from fastweights.training.optimization import OPTIMIZERS, Optimization, learning_rate
from trainings import SEQUENCES, STORIES, assert_resumes, assert_same_run, records, resumed


@pytest.fixture
def begin(trainings):
    """Begins the training of a tiny model on stories."""
    return lambda *overrides, **options: trainings.begin("catbabi-qa/fwm", *STORIES, *overrides, **options)


def tiny(device="cpu", **options):
    """A model of one layer, and its optimization."""
    torch.manual_seed(1)
    model = nn.Linear(3, 2, device=device)
    return model, Optimization(model, from_dict(TrainingOptions, {"steps": 10, "learning_rate": 0.1, **options}))


def descend(model, optimization, step=0, x=None, lr_scale=1.0):
    x = torch.arange(12.0).view(4, 3) / 10 if x is None else x
    model(x).square().mean().backward()
    return optimization.step(step, lr_scale)


def weights(model):
    return [parameter.detach().clone() for parameter in model.parameters()]


def same(one, other):
    return all(map(torch.equal, one, other))


# Learning rate


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


def test_the_learning_rate_falls_along_a_line():
    assert rates(schedule="linear") == pytest.approx([1 - step / 10 for step in range(10)])


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_warm_up_and_a_schedule_together(schedule):
    plain, warm = rates(schedule=schedule), rates(schedule=schedule, warmup_steps=2)
    assert warm[0] == plain[0] / 2
    assert warm[1:] == plain[1:]


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_the_optimizer_gets_the_learning_rate(begin, schedule):
    seen = []

    class Look(Observer):
        def step(self, progress):
            seen.append(trainer.optimization.optimizer.param_groups[0]["lr"])

    trainer = begin(f"--training.schedule={schedule}", "--training.warmup_steps=3", observer=Look())
    trainer.train()
    assert seen == [learning_rate(trainer.options, step) for step in range(6)]


def test_a_batch_scales_the_learning_rate(begin):
    """`Batch.lr_scale`, as of a segment of another length (Merity et al. 2018)."""
    seen = []

    class Look(Observer):
        def step(self, progress):
            seen.append(trainer.optimization.optimizer.param_groups[0]["lr"])

    trainer = begin("--training.learning_rate=0.5", "--training.optimizer=sgd", "--training.steps=3", observer=Look())
    batches, scales = trainer.source, iter([1.0, 0.5, 3.0])

    class Scaled:
        def __next__(self):
            return next(batches)._replace(lr_scale=next(scales))

        def state_dict(self):
            return batches.state_dict()

    trainer.source = Scaled()
    trainer.train()
    assert seen == [0.5, 0.25, 1.5]


def test_half_the_scale_is_half_the_step():
    steps = []
    for scale in (1.0, 0.5):
        model, optimization = tiny(optimizer="sgd")
        start = weights(model)
        descend(model, optimization, lr_scale=scale)
        steps.append([now - then for now, then in zip(weights(model), start, strict=True)])
    for whole, half in zip(*steps, strict=True):
        torch.testing.assert_close(half, whole / 2)


# Clipping and accumulation


def test_clipping_limits_the_step_that_the_gradient_makes(begin):
    norms, returned = [], []
    for clip in ("null", "0.001"):
        trainer = begin(f"--training.clip_norm={clip}", "--training.steps=1")
        optimizer, step = trainer.optimization.optimizer, trainer.optimization.step
        optimizer.register_step_pre_hook(lambda *_, trainer=trainer: norms.append(gradient_norm(trainer.model)))
        trainer.optimization.step = lambda *arguments, step=step: (returned.append(step(*arguments)), returned[-1])[1]
        trainer.train()
        assert all(parameter.grad is None for parameter in trainer.model.parameters())  # cleared behind the step
    assert norms[0] > 0.01
    assert norms[1] == pytest.approx(0.001, rel=1e-3)
    assert [norm.item() for norm in returned] == pytest.approx([norms[0]] * 2)  # the norm before clipping


def gradient_norm(model):
    return torch.stack([parameter.grad.norm() for parameter in model.parameters()]).norm().item()


def test_a_gradient_that_is_not_finite_changes_nothing():
    model, optimization = tiny(average={})
    descend(model, optimization)
    start, state = weights(model), checkpoint.flatten(optimization.state_dict()[0])
    state = {name: tensor.clone() for name, tensor in state.items()}
    norm = descend(model, optimization, x=torch.full((4, 3), math.inf))
    assert not norm.isfinite() and same(weights(model), start)
    assert all(parameter.grad is None for parameter in model.parameters())
    for name, tensor in checkpoint.flatten(optimization.state_dict()[0]).items():
        assert torch.equal(tensor, state[name]), name


def test_two_accumulated_batches_are_one_of_twice_the_size(trainings):
    """Where the loss is a mean over equally many positions."""
    found = []
    for size, accumulate in ((8, 1), (4, 2)):
        sizes = f"--training.batch_size={size}", f"--training.accumulate={accumulate}"
        sgd = "--training.optimizer=sgd", "--training.learning_rate=0.5"  # Adam would not see the loss's scale
        trainer = trainings.begin("art/lstm", *SEQUENCES, *sizes, *sgd, "--task.examples=64")
        trainer.train()
        found.append((weights(trainer.model), records(trainer, "train"), records(trainer, "valid")))
        assert trainer.run.timings()[0]["tokens"] == 2 * 8 * trainer.task.segment_length
    (one, one_train, one_valid), (two, two_train, two_valid) = found
    for whole, parts in zip(one, two, strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-5)
    for whole, parts in zip((*one_train, *one_valid), (*two_train, *two_valid), strict=True):
        assert parts["loss"] == pytest.approx(whole["loss"], rel=1e-5)
    assert trainer.source.state_dict()["next"] == 48


def test_accumulated_segments_go_on_from_each_other(trainings):
    """The state is carried from batch to batch within a step, too."""
    starts = []
    trainer = trainings.begin("catbabi-lm/fwm", *STORIES, "--training.accumulate=2", "--training.steps=2")
    forward = trainer._forward

    def spy(item):
        starts.append((trainer.state, forward(item)))
        return starts[-1][1]

    trainer._forward = spy
    trainer.train()
    assert starts[0][0] is None and len(starts) == 4
    for (_, before), (state, _) in pairwise(starts):
        assert state is before.state and state.memory.any()
    assert_resumes(trainings, "catbabi-lm/fwm", *STORIES, "--training.accumulate=2")


# Optimizers


OTHERS = {
    "adam, by its name": "adam",
    "adam, not fused": {"type": "adam", "fused": False, "eps": 1e-4},
    "adamw": {"type": "adamw", "weight_decay": 0.1},
    "adam, amsgrad": {"type": "adam", "amsgrad": True, "betas": [0.8, 0.99]},
    "sgd": "sgd",
    "sgd with momentum": {"type": "sgd", "momentum": 0.9, "nesterov": True},
    "asgd": {"type": "asgd", "t0": 2, "lambd": 0.01},
    "rmsprop": {"type": "rmsprop", "momentum": 0.5, "centered": True},
    "adagrad": "adagrad",
    "nadam": "nadam",
    "radam": "radam",
    "adamax, for each parameter": {"type": "adamax", "foreach": False},
    "adadelta, all at once": {"type": "adadelta", "foreach": True},
}


@pytest.mark.parametrize("optimizer", OTHERS)
def test_an_optimizer_trains_and_resumes(trainings, optimizer):
    options = (f"--training.optimizer={OTHERS[optimizer]}", "--training.learning_rate=0.02", "--training.steps=5")
    whole = assert_resumes(trainings, "art/lstm", *SEQUENCES, *options)
    at_start = recipes.assemble(whole.recipe).model.parameters()
    assert not any(map(torch.equal, whole.model.parameters(), at_start))


@pytest.mark.parametrize("optimizer", [name for name in OPTIMIZERS if name != "muon"])
def test_all_of_an_optimizers_state_is_saved(optimizer):
    """Tensors and plain values alike, after JSON has seen the latter."""
    import json

    model, optimization = tiny(optimizer=optimizer)
    for step in range(3):
        descend(model, optimization, step)
    tensors, plain = optimization.state_dict()
    other, restored = tiny(optimizer=optimizer)
    other.load_state_dict(model.state_dict())
    tensors = {name: tensor.clone() for name, tensor in checkpoint.flatten(tensors).items()}
    restored.load_state_dict(checkpoint.unflatten(tensors), json.loads(json.dumps(plain)))
    for step in range(3, 6):
        descend(model, optimization, step)
        descend(other, restored, step)
    assert same(weights(model), weights(other))


class Counting(torch.optim.Optimizer):
    """Steps that become smaller with the count of them, which is a plain number in its state."""

    def __init__(self, parameters, lr: float = 0.1):
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                count = self.state[parameter]["count"] = self.state[parameter].get("count", 0) + 1
                parameter -= group["lr"] / count * parameter.grad


def test_plain_values_of_an_optimizers_state_are_saved(trainings):
    optimizer = {"type": f"{__name__}:Counting"}
    whole = assert_resumes(trainings, "art/lstm", *SEQUENCES, f"--training.optimizer={optimizer}")
    plain = checkpoint.read_metadata(whole.run.last)["optimization"]["optimizer"]
    assert plain["core.recurrent_weight"] == {"count": 6}


def test_weight_decay_shrinks_the_weights():
    norms = []
    for decay in (0.0, 0.5):
        model, optimization = tiny(optimizer={"type": "adamw", "weight_decay": decay})
        for step in range(5):
            descend(model, optimization, step, x=torch.zeros(4, 3))  # of the weights, only decay changes
        norms.append(model.weight.norm().item())
    assert norms[1] == pytest.approx(norms[0] * (1 - 0.1 * 0.5) ** 5)


@pytest.mark.parametrize(
    ("optimizer", "sentence"),
    [
        ({"type": "adam", "lr": 0.1}, "training.optimizer has lr; set training.learning_rate instead."),
        ({"type": "adam", "epz": 0.1}, 'The optimizer "adam" has no option "epz"; did you mean "eps"? It has: '),
        ({"type": "sgdd"}, 'There is no optimizer "sgdd"; did you mean "sgd"? Set its type to one of: '),
        ({"momentum": 0.9}, 'The optimizer "adam" has no option "momentum"'),  # without a type
        ({"type": "sgd", "momentum": -1.0}, 'The optimizer "sgd" cannot be built: Invalid momentum value: -1.0.'),
        ({"type": "sgd", "momentum": "much"}, "momentum of the optimizer \"sgd\" is 'much'; it must be a valid number"),
        ({"type": "lbfgs"}, 'There is no optimizer "lbfgs"'),
    ],
)
def test_what_is_no_optimizer_is_refused(optimizer, sentence):
    with pytest.raises(UserError) as caught:
        tiny(optimizer=optimizer)
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


def test_a_wrong_optimizer_is_refused_before_there_is_a_run(tmp_path, capsys):
    from fastweights import cli

    out = tmp_path / "run"
    settings = ("--training.optimizer={type: adam, lr: 1}", "--training.average={patience: 1, optimizer: sgdd}")
    for setting, sentence in zip(settings, ("has lr", 'no optimizer "sgdd"'), strict=True):
        assert cli.main(["train", "catbabi-qa/fwm", *STORIES, setting, f"--out={out}"]) == 2
        printed = capsys.readouterr().err
        assert sentence in printed and printed.count("\n") == 1
        assert not out.exists()


def test_an_optimizer_of_ones_own(trainings):
    optimizer = {"type": "torch.optim:SGD", "momentum": 0.9}
    trainer = trainings.begin("art/lstm", *SEQUENCES, f"--training.optimizer={optimizer}")
    trainer.train()
    assert type(trainer.optimization.optimizer) is torch.optim.SGD
    resumed(trainer)


# Averaged weights


def test_the_uniform_mean_begins_behind_its_start():
    model, optimization = tiny(average={"start_step": 2}, optimizer="sgd")
    history = []
    for step in range(5):
        descend(model, optimization, step)
        history.append(weights(model))
        with optimization.evaluation_weights():
            averaged = history[2:] if step >= 2 else [history[-1]]
            for found, *parts in zip(weights(model), *averaged, strict=True):
                torch.testing.assert_close(found, torch.stack(parts).mean(0))
        assert same(weights(model), history[-1])  # the weights come back
    assert not any(mean.requires_grad for mean in optimization.average)


def test_the_exponential_mean():
    model, optimization = tiny(average={"decay": 0.9}, optimizer="sgd")
    expected = None
    for step in range(4):
        descend(model, optimization, step)
        now = weights(model)
        expected = (
            now if expected is None else [0.9 * mean + 0.1 * new for mean, new in zip(expected, now, strict=True)]
        )
        with optimization.evaluation_weights():
            for found, mean in zip(weights(model), expected, strict=True):
                torch.testing.assert_close(found, mean)


def test_the_weights_come_back_after_an_evaluation_that_fails():
    model, optimization = tiny(average={"decay": 0.9})
    for step in range(2):
        descend(model, optimization, step)
    before = weights(model)
    with pytest.raises(RuntimeError), optimization.evaluation_weights():
        assert not same(weights(model), before)
        raise RuntimeError
    assert same(weights(model), before)


@pytest.mark.parametrize("average", [{"decay": 0.5}, {"start_step": 2}])
def test_evaluation_and_the_best_checkpoint_use_the_average(trainings, average):
    recipe = ("art/lstm", *SEQUENCES, "--training.learning_rate=0.05")
    plain = trainings.begin(*recipe)
    plain.train()
    trainer = assert_resumes(trainings, *recipe, f"--training.average={average}")
    assert records(trainer, "train") == records(plain, "train")  # training itself does not change
    assert same(weights(trainer.model), weights(plain.model))
    assert records(trainer, "valid") != records(plain, "valid")
    best = load_model(trainer.run.best)
    validated = trainer.objective.validate(best.model, trainer.task, None, 2, None)
    assert validated == best.metadata["valid"]
    last = load_model(trainer.run.last)  # of the last checkpoint, too, the average is loaded
    assert same(weights(last.model), trainer.optimization.average)
    assert not same(weights(last.model), weights(trainer.model))
    assert trainer.objective.validate(last.model, trainer.task, None, 2, None) == records(trainer, "valid")[-1]


NT_ASGD = "{patience: 2, optimizer: {type: sgd, momentum: 0.5}, learning_rate: 0.25}"


def nt_asgd(trainings, *overrides, values=(0.5, 0.4, 0.4, 0.3, 0.45, 0.2)):
    """A training whose validations get no better after the first."""
    trainer = trainings.begin(
        "art/lstm", *SEQUENCES, "--training.evaluate_every=1", f"--training.average={NT_ASGD}", *overrides
    )
    falsify(trainer, values)
    return trainer


def falsify(trainer, values):
    validate, values = trainer.objective.validate, iter(values)
    trainer.objective.validate = lambda *arguments: validate(*arguments) | {"answer_accuracy": next(values)}


def test_averaging_begins_where_validations_get_no_better(trainings):
    seen = []

    class Look(Observer):
        def step(self, progress):
            optimization = trainer.optimization
            (group,) = optimization.optimizer.param_groups
            seen.append((type(optimization.optimizer).__name__, group["lr"], optimization.averaged_steps))
            history.append(weights(trainer.model))

    history = []
    trainer = nt_asgd(trainings)
    trainer.observer = Look()
    trainer.train()
    adam = ("Adam", 0.001, 0)
    assert seen == [adam, adam, adam, *(("SGD", 0.25, number) for number in (1, 2, 3))]
    for mean, *parts in zip(trainer.optimization.average, *history[3:], strict=True):
        torch.testing.assert_close(mean, torch.stack(parts).mean(0))


@pytest.mark.parametrize("stop", range(1, 6))
def test_a_run_resumes_across_the_change_of_optimizer(trainings, stop):
    values = (0.5, 0.4, 0.4, 0.3, 0.45, 0.2)
    whole = nt_asgd(trainings)
    whole.train()
    stopped = nt_asgd(trainings)
    for _ in range(stop):
        stopped.optimizer_step()
        stopped.step += 1
        if stopped.step % 2 == 0:
            stopped._report(0.0)
        stopped._validate()
    stopped.save()
    again = resumed(stopped)
    falsify(again, values[stop:])
    again.train()
    assert_same_run(again.run, whole.run)


ASGD = "--training.average={start_step: 3, optimizer: {type: sgd, weight_decay: 0.1}, learning_rate: 0.25}"


def test_averaging_and_its_optimizer_begin_behind_a_step(trainings):
    """Averaged SGD from the fourth step on: that step is SGD's already, and the average is of its weights."""
    seen, history = [], []

    class Look(Observer):
        def step(self, progress):
            (group,) = trainer.optimization.optimizer.param_groups
            seen.append((type(trainer.optimization.optimizer).__name__, group["lr"], group["weight_decay"]))
            history.append(weights(trainer.model))

    trainer = trainings.begin("art/lstm", *SEQUENCES, ASGD, observer=Look())
    trainer.train()
    assert seen == [("Adam", 0.001, 0)] * 3 + [("SGD", 0.25, 0.1)] * 3
    for mean, *parts in zip(trainer.optimization.average, *history[3:], strict=True):
        torch.testing.assert_close(mean, torch.stack(parts).mean(0))


def test_averaged_sgd_is_torchs():
    """With t0 0 and lambd 0, but that torch's average leaves out the first step's weights."""
    model, optimization = tiny(average={"start_step": 0, "optimizer": "sgd"}, optimizer="adam")
    torchs = nn.Linear(3, 2)
    torchs.load_state_dict(model.state_dict())
    asgd = torch.optim.ASGD(torchs.parameters(), lr=0.1, t0=0, lambd=0.0)
    x, first = torch.arange(12.0).view(4, 3) / 10, None
    for step in range(5):
        descend(model, optimization, step)
        asgd.zero_grad()
        torchs(x).square().mean().backward()
        asgd.step()
        first = weights(torchs) if first is None else first
    for ours, theirs in zip(model.parameters(), torchs.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)
    for mean, parameter, left_out in zip(optimization.average, torchs.parameters(), first, strict=True):
        torch.testing.assert_close(mean, (4 * asgd.state[parameter]["ax"] + left_out) / 5)


@pytest.mark.parametrize("stop", range(2, 6))
def test_a_run_resumes_across_the_step_at_which_averaging_begins(trainings, stop):
    assert_resumes(trainings, "art/lstm", *SEQUENCES, ASGD, stop=stop)


def test_averaging_does_not_begin_with_a_gradient_that_is_not_finite():
    model, optimization = tiny(average={"start_step": 0, "optimizer": "sgd"})
    descend(model, optimization, x=torch.full((4, 3), math.inf))
    assert optimization.average is None and optimization.spec != "sgd"


def test_averaging_and_early_stopping_have_each_their_patience(trainings):
    trainer = nt_asgd(trainings, "--training.early_stopping.patience=3")
    trainer.train()
    assert trainer.step == 4 and trainer.optimization.averaged_steps == 1


# Devices


@pytest.mark.parametrize(
    "optimizer", ["adam", {"type": "adam", "fused": False}, {"type": "sgd", "momentum": 0.9}, "asgd", "rmsprop"]
)
def test_a_restored_state_is_on_the_device_of_its_parameter(optimizer):
    """As on a graphics card, from a checkpoint, whose tensors are on the CPU."""
    model, optimization = tiny(optimizer=optimizer, average={})
    for step in range(2):
        descend(model, optimization, step)
    tensors, plain = optimization.state_dict()
    tensors = checkpoint.unflatten({name: x.cpu().clone() for name, x in checkpoint.flatten(tensors).items()})
    _, elsewhere = tiny("meta", optimizer=optimizer, average={})
    elsewhere.load_state_dict(tensors, plain)
    state = elsewhere.optimizer.state
    assert len(state) == 2
    moments = [x for values in state.values() for name, x in values.items() if x.shape and isinstance(x, torch.Tensor)]
    assert moments and all(x.device.type == "meta" for x in moments)
    assert all(mean.device.type == "meta" for mean in elsewhere.average)


@pytest.mark.parametrize(
    ("optimizer", "fused"),
    [
        ("adam", True),
        ("sgd", True),
        ({"type": "adam", "foreach": True}, None),
        ({"type": "sgd", "fused": False}, False),
    ],
)
def test_an_optimizer_is_fused_where_its_options_allow(optimizer, fused):
    _, optimization = tiny(optimizer=optimizer)
    assert optimization.optimizer.param_groups[0]["fused"] is fused
