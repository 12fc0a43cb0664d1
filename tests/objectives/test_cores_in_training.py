"""What a core may do beyond recurrence: losses of its own, a learned initial state, fewer masks, segmented state."""

import pytest
import torch

from fastweights import load_model, recipes
from fastweights.cores import Core, FastWeightMemory
from fastweights.errors import UserError
from fastweights.models import TokenModel
from fastweights.objectives import a2c
from training_cores import LearnedStart, MetaLSTM, Window
from trainings import GRAPHS, SEQUENCES, STORIES, assert_resumes, records

WITHOUT_CORE = {
    "art/lstm": tuple(word for word in SEQUENCES if "model.core" not in word),
    "catbabi-qa/fwm": tuple(word for word in STORIES if "model.core" not in word),
    "catbabi-lm/fwm": tuple(word for word in STORIES if "model.core" not in word),
    "graph-rl/fwm": tuple(word for word in GRAPHS if "model.core" not in word),
}


def with_core(recipe, core, *overrides):
    """The arguments of a tiny training of a recipe with another core."""
    return recipe, *WITHOUT_CORE[recipe], f"--model.core={core}", *overrides


def over(core):
    return {"type": "fwm", "memory_size": 4, "slow": core}


META = {"type": "training_cores:MetaLSTM", "hidden_size": 8}
LEARNED = {"type": "training_cores:LearnedStart", "hidden_size": 8}


# Losses of cores


@pytest.mark.parametrize("core", [META, over(META), over(over(META))], ids=["alone", "under FWM", "under two FWMs"])
@pytest.mark.parametrize("recipe", WITHOUT_CORE)
def test_a_cores_own_loss_is_learned_and_recorded(trainings, recipe, core):
    trainer = trainings.begin(*with_core(recipe, core, "--training.optimizer=sgd", "--training.learning_rate=0.1"))
    meta = next(parameter for name, parameter in trainer.model.named_parameters() if name.endswith("meta"))
    trainer.train()
    # θ² descends by itself: θ ← θ − 0.1 · 2 θ
    steps = trainer.options.steps
    assert meta.item() == pytest.approx(3 * 0.8**steps, rel=1e-4)
    squares = [(3 * 0.8**step) ** 2 for step in range(steps)]
    means = [sum(pair) / 2 for pair in zip(squares[::2], squares[1::2], strict=True)]  # of the steps of a report
    found = records(trainer, "train")
    assert [record["meta_loss"] for record in found] == pytest.approx(means, rel=1e-4)
    assert not any("meta_loss" in record for record in records(trainer, "valid"))
    if recipe == "graph-rl/fwm":
        parts = (r["policy_loss"] + 0.1 * r["value_loss"] - 0.03 * r["entropy"] + r["meta_loss"] for r in found)
        assert [record["loss"] for record in found] == pytest.approx(list(parts), rel=1e-4)


@pytest.mark.parametrize("recipe", ["catbabi-qa/fwm", "graph-rl/fwm"])
def test_sums_of_a_cores_own_loss_are_saved(trainings, recipe):
    whole = assert_resumes(trainings, *with_core(recipe, over(META)))  # stops between two reports
    assert len(records(whole, "train")) == whole.options.steps // 2


def test_a_cores_own_loss_is_a_mean_over_accumulated_batches(trainings):
    options = ("--training.optimizer=sgd", "--training.learning_rate=0.1", "--training.accumulate=2")
    trainer = trainings.begin(*with_core("catbabi-qa/fwm", META, *options))
    trainer.train()
    assert trainer.model.core.meta.item() == pytest.approx(3 * 0.8**6, rel=1e-4)
    assert records(trainer, "train")[0]["meta_loss"] == pytest.approx((9 + 9 * 0.64) / 2)


def test_a_rollout_and_an_evaluation_add_no_loss(trainings):
    trainer = trainings.begin(*with_core("graph-rl/fwm", META))
    environments = trainer.task.environments("train", 2)
    a2c.rollout(trainer.model, environments, 3, seed=0)
    trainer.objective.evaluate(trainer.model, trainer.task, None, "valid", 2)
    assert trainer.model.core.meta.grad is None


MNM = {"type": "mnm", "hidden_size": 8, "memory_size": 4}


@pytest.mark.parametrize("core", [MNM, over(MNM)], ids=["alone", "under FWM"])
@pytest.mark.parametrize("recipe", WITHOUT_CORE)
def test_a_metalearned_memory_learns_every_task(trainings, recipe, core):
    whole = assert_resumes(trainings, *with_core(recipe, core))
    assert all(0 < record["meta_loss"] < 10 for record in records(whole, "train"))
    kept = {name: x for name, x in load_model(whole.run.path).model.state_dict().items() if "initial_memory" in name}
    at_start = recipes.assemble(whole.recipe).model.state_dict()
    assert kept and all(torch.equal(x, at_start[name]) for name, x in kept.items())


# A learned initial state


def test_the_initial_state_is_learned_at_every_step_of_sequences(trainings):
    trainer = trainings.begin(*with_core("art/lstm", LEARNED, "--training.optimizer=sgd", "--training.steps=5"))
    gradients = []
    start = trainer.model.core.start
    trainer.optimization.optimizer.register_step_pre_hook(lambda *_: gradients.append(start.grad.clone()))
    trainer.train()
    assert len(gradients) == 5 and all(gradient.abs().min() > 0 for gradient in gradients)


@pytest.mark.parametrize("core", [LEARNED, over(LEARNED)], ids=["alone", "under FWM"])
@pytest.mark.parametrize("recipe", WITHOUT_CORE)
def test_a_learned_initial_state_trains_resumes_and_is_evaluated(trainings, recipe, core):
    whole = assert_resumes(trainings, *with_core(recipe, core))
    start = next(parameter for name, parameter in whole.model.named_parameters() if name.endswith("start"))
    at_start = dict(recipes.assemble(whole.recipe).model.named_parameters())
    name = "core.start" if core is LEARNED else "core.slow.start"
    assert not torch.equal(start, at_start[name])
    trained = load_model(whole.run.path, trust=True)
    found = whole.objective.validate(trained.model, whole.task, None, whole.options.eval_batch_size, trained.state)
    assert found == trained.metadata["valid"]


def test_in_streams_the_initial_state_gets_a_gradient_in_the_first_segment(trainings):
    trainer = trainings.begin(*with_core("catbabi-lm/fwm", LEARNED, "--training.steps=3"))
    gradients = []
    start = trainer.model.core.start
    trainer.optimization.optimizer.register_step_pre_hook(lambda *_: gradients.append(start.grad))
    trainer.train()
    assert gradients[0].abs().min() > 0 and gradients[1:] == [None, None]


def test_evaluation_starts_from_the_learned_initial_state():
    """Without a state, and with the initial state given, the same."""
    torch.manual_seed(0)
    task = recipes.assemble(recipes.load("catbabi-qa/fwm", STORIES)).task
    from fastweights.objectives import Answers

    model = TokenModel(180, FastWeightMemory(8, memory_size=4, slow=LearnedStart(8)))
    without = Answers().evaluate(model, task, None, "valid", 3)
    assert Answers().evaluate(model, task, None, "valid", 3, model.core.initial_state(1)) == without
    model.core.slow.start.data.mul_(5)
    assert Answers().evaluate(model, task, None, "valid", 3) != without


# Segmented state


WINDOW = {"type": "training_cores:Window", "hidden_size": 8}


@pytest.mark.parametrize("core", [WINDOW, over(WINDOW)], ids=["alone", "under FWM"])
def test_a_segmented_core_is_refused_by_a2c(core):
    recipe = recipes.load(with_core("graph-rl/fwm", core)[0], with_core("graph-rl/fwm", core)[1:])
    with pytest.raises(UserError, match=r"on an episode of 6 steps as step by step, so A2C cannot train it") as caught:
        recipes.assemble(recipe)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("core", [WINDOW | {"memory": 6}, over(WINDOW | {"memory": 6})], ids=["alone", "under FWM"])
def test_a_segmented_core_that_is_exact_on_an_episode_is_accepted_by_a2c(trainings, core):
    trainer = trainings.begin(*with_core("graph-rl/fwm", core))
    trainer.train()
    environments = trainer.task.environments("train", 4)
    episode = a2c.rollout(trainer.model, environments, 6, seed=1)
    logits, _, _ = trainer.model(episode.observations)
    noise = a2c.policy_noise(1, 6, 4, 2).transpose(0, 1)
    assert torch.equal((logits + noise).argmax(-1), episode.actions)


def test_a_segmented_core_learns_sequences_and_stories(trainings):
    for recipe in ("art/lstm", "catbabi-qa/fwm"):
        assert_resumes(trainings, *with_core(recipe, WINDOW))


TRANSFORMER = {"type": "transformer-xl", "hidden_size": 8, "num_layers": 2, "num_heads": 2, "dropout": 0.1}


@pytest.mark.parametrize("core", [TRANSFORMER, over(TRANSFORMER)], ids=["alone", "under FWM"])
@pytest.mark.parametrize("recipe", WITHOUT_CORE)
def test_a_transformer_xl_trains_and_resumes_on_any_task(trainings, recipe, core):
    assert_resumes(trainings, *with_core(recipe, core))


@pytest.mark.parametrize(("memory_length", "accepted"), [(5, True), (4, False)])
def test_a_transformer_xl_acts_step_by_step_as_in_one_call_where_its_memory_is_long_enough(memory_length, accepted):
    core = TRANSFORMER | {"dropout": 0.0, "memory_length": memory_length}
    source, *overrides = with_core("graph-rl/fwm", core)
    recipe = recipes.load(source, overrides)
    if not accepted:
        with pytest.raises(UserError, match=r"TransformerXL does not give the same.* or a longer memory"):
            recipes.assemble(recipe)
        return
    parts = recipes.assemble(recipe)
    episode = a2c.rollout(parts.model, parts.task.environments("train", 4), 6, seed=1)
    logits, _, _ = parts.model(episode.observations)
    noise = a2c.policy_noise(1, 6, 4, 2).transpose(0, 1)
    assert torch.equal((logits + noise).argmax(-1), episode.actions)


# Masks


NO_MASK = {"type": "training_cores:NoMask", "hidden_size": 8}


@pytest.mark.parametrize(("core", "name"), [(NO_MASK, "NoMask"), (over(NO_MASK), "FastWeightMemory")])
@pytest.mark.parametrize("recipe", ["catbabi-qa/fwm", "art/lstm"])
def test_a_core_without_mask_is_refused_by_tasks_that_pad(recipe, core, name):
    source, *overrides = with_core(recipe, core)
    with pytest.raises(UserError, match=rf"needs a core that supports mask, and {name} does not; choose another core"):
        recipes.assemble(recipes.load(source, overrides))


@pytest.mark.parametrize("core", [NO_MASK, over(NO_MASK)], ids=["alone", "under FWM"])
def test_a_core_without_mask_is_accepted_on_graphs(trainings, core):
    trainer = trainings.begin(*with_core("graph-rl/fwm", core))
    trainer.train()
    assert trainer.step == 4


def test_fwm_supports_the_masks_of_its_slow_core():
    assert FastWeightMemory(5, 8, 4).supported_arguments == {"output_mask", "mask", "resets", "losses"}
    window = FastWeightMemory(5, memory_size=4, slow=Window(5))
    assert window.supported_arguments == {"output_mask", "mask", "losses"}
    assert MetaLSTM(5).supported_arguments == {"output_mask", "mask", "resets", "losses"}
    with pytest.raises(ValueError, match="FastWeightMemory does not support resets"):
        from fastweights.cores.contract import call_core

        call_core(window, torch.zeros(1, 2, 5), resets=torch.zeros(1, 2, dtype=torch.bool))


def test_objective_and_task_must_fit():
    recipe = recipes.load("graph-rl/fwm", [*GRAPHS, "--objective.type=answers"])
    with pytest.raises(
        UserError, match="The objective Answers is for tasks that extend SequenceTask, and GraphRL does not"
    ):
        recipes.assemble(recipe)
    recipe = recipes.load("art/lstm", [*SEQUENCES, "--objective.type=a2c"])
    with pytest.raises(
        UserError, match="The objective A2C is for tasks that extend EnvironmentTask, and Retrieval does not"
    ):
        recipes.assemble(recipe)


def test_a_core_must_say_what_it_is():
    class Half(Core):
        def forward(self, x, state=None):
            return x, state

    with pytest.raises(TypeError, match="initial_state"):
        Half()
