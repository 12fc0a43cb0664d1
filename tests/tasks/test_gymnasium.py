"""The adapter to Gymnasium's environments: POPGym's, and one whose episodes end at different times."""

import gymnasium
import numpy as np
import pytest
import torch

from fastweights import cli, recipes, tasks, training
from fastweights.errors import UserError
from fastweights.training import a2c
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
COUNTDOWN = {"type": "gymnasium", "environment": "tests/Countdown-v0", "observation_size": 6, "actions": 2, "steps": 8}


def test_episodes_that_end_early_are_masked():
    task = tasks.build(COUNTDOWN)
    recipe = recipes.load("popgym/repeat-previous")
    recipe.task = COUNTDOWN
    model = recipes.build_model(recipe, task)
    episode = a2c.play(model, task.environments("train", 40), task.steps, seed=0)
    lengths = episode.valid.sum(1)
    assert episode.observations.shape == (40, 5, 6) and set(lengths.tolist()) == {1, 2, 3, 4, 5}
    assert torch.equal(episode.rewards, episode.valid.float())  # what a next episode gives is not counted
    first = episode.observations[:, 0].argmax(1)
    assert torch.equal(first, lengths)
    found = a2c.losses(model, episode, task)
    alone = [
        a2c.losses(model, a2c.Episode(*(x[row : row + 1, :n] for x in episode[:3]), None), task)["loss"] * n
        for row, n in enumerate(lengths.tolist())
    ]
    torch.testing.assert_close(found["loss"], sum(alone) / lengths.sum(), rtol=1e-4, atol=1e-5)
    assert a2c.evaluate(model, task, "valid", 50, episodes=4)["reward"] == pytest.approx(3, abs=0.5)


def test_popgyms_task_trains(tmp_path):
    recipe = recipes.load("popgym/repeat-previous", ["--training.rows=32", "--training.learning_rate=0.01"])
    with RunFolder.create(tmp_path / "run", {}) as run:
        trained = training.begin(recipe, run)
        entropies = [trained.update().figures["entropy"] for _ in range(3)]
        assert trained.environments.single_observation_space.shape == (4,)
    assert np.isfinite(entropies).all() and len(set(entropies)) == 3


def test_a_run_resumes_and_is_evaluated(tmp_path, capsys):
    out = f"--out={tmp_path / 'run'}"
    quick = ["--task.steps=6", "--training.rows=2", "--training.evaluation_rows=2", "--training.steps=2"]
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
        ({"actions": 3}, "has observation_size 6 and actions 2, not 6 and 3"),
    ],
)
def test_what_does_not_fit_is_refused(wrong, message):
    with pytest.raises(UserError, match=message):
        tasks.build(COUNTDOWN | wrong).environments("train", 2)


def test_zero_steps_are_refused():
    with pytest.raises(UserError, match="steps is 0"):
        tasks.build(COUNTDOWN | {"steps": 0})


def test_without_popgym_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "popgym", None)
    with pytest.raises(UserError, match=r"install it with: pip install 'fastweights\[rl\]'"):
        tasks.build({"type": "gymnasium"}).environments("train", 2)
