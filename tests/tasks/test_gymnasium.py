"""The adapter to Gymnasium's environments: POPGym's, and one whose episodes end at different times."""

import gymnasium
import numpy as np
import pytest
import torch

from fastweights import cli, recipes, tasks
from fastweights.errors import UserError
from fastweights.models import actor_critic
from fastweights.objectives import A2C
from fastweights.objectives.a2c import Episode, rollout
from fastweights.tasks import Spaces
from fastweights.training.loop import Trainer
from fastweights.training.runs import RunFolder


class Countdown(gymnasium.Env):
    """An episode of 1 to 5 steps; the agent sees how many are left, and each gives a reward of 1."""

    observation_space = gymnasium.spaces.Discrete(6)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = int(self.np_random.integers(1, 6))
        return self.left, {}

    def step(self, action):
        self.left -= 1
        return self.left, 1.0, self.left == 0, False, {}


gymnasium.register("tests/Countdown-v0", entry_point=Countdown)
COUNTDOWN = {"type": "gymnasium", "environment": "tests/Countdown-v0", "steps": 8}


def test_episodes_that_end_early_are_masked():
    task = tasks.build(COUNTDOWN)
    objective = A2C()
    model = objective.build_model(recipes.load("popgym/repeat-previous").model, task.prepare(None))
    episode = rollout(model, task.environments("train", 40), task.steps, seed=0)
    lengths = episode.mask.sum(1)
    assert episode.environment_steps == lengths.sum()
    assert episode.observations.shape == (40, 5, 6) and set(lengths.tolist()) == {1, 2, 3, 4, 5}
    assert torch.equal(episode.rewards, episode.mask.float())  # what a next episode gives is not counted
    first = episode.observations[:, 0].argmax(1)
    assert torch.equal(first, lengths)

    def loss(episode):
        logits, values, _ = model(episode.observations, mask=episode.mask)
        return objective.losses(logits, values, episode)["loss"]

    found = {"loss": loss(episode)}
    alone = [
        loss(Episode(*(x[row : row + 1, :n] for x in episode[:3]), None)) * n for row, n in enumerate(lengths.tolist())
    ]
    torch.testing.assert_close(found["loss"], sum(alone) / lengths.sum(), rtol=1e-4, atol=1e-5)
    evaluated = objective.evaluate(model, task, None, "valid", 50, episodes=4)
    assert evaluated["return"] == pytest.approx(3, abs=0.5) and evaluated["episodes"] == 200


def test_the_sizes_come_from_the_environment():
    assert tasks.build(COUNTDOWN).prepare(None) == Spaces(observation_size=6, num_actions=2)


def test_popgyms_task_trains(tmp_path):
    recipe = recipes.load("popgym/repeat-previous", ["--training.batch_size=32", "--training.learning_rate=0.01"])
    with RunFolder.create(tmp_path / "run", {}) as run:
        trainer, entropies = Trainer(recipes.assemble(recipe), run), []
        for trainer.step in range(3):
            trainer.optimizer_step()
            entropies.append(trainer.objective.metrics(trainer.sums)["entropy"])
            trainer.sums = type(trainer.sums)()
        assert trainer.interface == Spaces(observation_size=4, num_actions=4)
    assert np.isfinite(entropies).all() and len(set(entropies)) == 3


def test_a_run_resumes_and_is_evaluated(tmp_path, capsys):
    out = f"--out={tmp_path / 'run'}"
    quick = ["--task.steps=6", "--training.batch_size=2", "--training.eval_batch_size=2", "--training.steps=2"]
    assert cli.main(["train", "popgym/repeat-previous", *quick, out]) == 0
    assert cli.main(["train", "--resume", out]) == 0
    assert cli.main(["evaluate", str(tmp_path / "run"), "--episodes=1"]) == 0
    assert "the agent" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"environment": "tests/Countup-v0"}, "there is no environment tests/Countup-v0"),
        ({"environment": "popgym-RepeatNothing-v0"}, "there is no environment popgym-RepeatNothing-v0"),
        ({"environment": "Pendulum-v1"}, "Pendulum-v1 has actions Box"),
    ],
)
def test_what_does_not_fit_is_refused(wrong, message):
    with pytest.raises(UserError, match=message):
        tasks.build(COUNTDOWN | wrong).environments("train", 2)


def test_an_agent_of_other_sizes_is_refused():
    with pytest.raises(UserError, match=r"of size 6 and 3 actions, and the task has .*size 6 and 2 actions"):
        tasks.build(COUNTDOWN).restore(Spaces(6, 3))
    objective, task = A2C(), tasks.build(COUNTDOWN)
    objective.check_task(task)
    objective.check_core(task, actor_critic(6, 2, core="lstm").core)
    with pytest.raises(UserError, match="A2C is for tasks that extend EnvironmentTask, and Retrieval does not"):
        objective.check_task(tasks.build("retrieval"))


def test_zero_steps_are_refused():
    with pytest.raises(UserError, match='steps of the task "gymnasium" is 0'):
        tasks.build(COUNTDOWN | {"steps": 0})


def test_without_popgym_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "popgym", None)
    with pytest.raises(UserError, match=r"install it with: pip install 'fastweights\[rl\]'"):
        tasks.build({"type": "gymnasium"}).environments("train", 2)
