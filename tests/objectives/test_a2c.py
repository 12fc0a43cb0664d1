"""A2C: the episode replayed in one call has the gradients of 30 small ones; acting, its loss, and what it refuses."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from fastweights import cli, recipes, tasks, training
from fastweights.cores import LSTM, FastWeightMemory
from fastweights.errors import UserError
from fastweights.models import ActorCritic
from fastweights.ops import cpu
from fastweights.training import a2c
from fastweights.training.distributed import Group
from fastweights.training.runs import RunFolder
from tolerances import assert_near

TINY = (
    "--task.places=3",
    "--task.actions=2",
    "--task.steps=6",
    "--task.graphs=12",
    "--model.core.memory_size=4",
    "--model.core.slow={type: lstm, hidden_size: 16}",
    "--training.rows=8",
    "--training.evaluation_rows=8",
    "--training.steps=4",
    "--training.report_every=2",
    "--training.evaluate_every=2",
)
CORES = {
    "fwm": lambda backend: FastWeightMemory(17, 32, 16, write_scale=1 / 16, tanh_queries=False, backend=backend),
    "lstm": lambda backend: LSTM(17, 32, second_bias=True, backend=backend),
}


@pytest.fixture
def task():
    return tasks.build({"type": "graph-rl", "graphs": 20})


def agent(core="fwm", backend="plain", dtype=torch.float64):
    return ActorCritic(CORES[core](backend), 3).to(dtype)


def episode_of(dtype, valid, rows=5, steps=30):
    observations = torch.randn(rows, steps, 17, dtype=dtype)
    masks = torch.arange(steps) < torch.tensor([[30], [1], [7], [29], [16]]) if valid else None
    return a2c.Episode(observations, torch.randint(3, (rows, steps)), torch.randn(rows, steps, dtype=dtype), masks)


def step_by_step(model, episode, task):
    """The loss as one would write it beside the acting: one call a step, row by row."""
    rows, steps = episode.rewards.shape
    lengths = [steps] * rows if episode.valid is None else episode.valid.sum(1).tolist()
    loss = 0.0
    for row, length in enumerate(lengths):
        state, logits, values = None, [], []
        for t in range(length):
            policy, value, state = model(episode.observations[row : row + 1, t : t + 1], state)
            logits.append(policy[0, 0])
            values.append(value[0, 0])
        future = 0.0
        for t in reversed(range(length)):
            future = episode.rewards[row, t] + task.discount * future
            distribution = torch.distributions.Categorical(logits=logits[t])
            advantage = future - values[t]
            loss = loss - distribution.log_prob(episode.actions[row, t]) * advantage.detach()
            loss = loss + task.value_weight * advantage**2 - task.entropy_weight * distribution.entropy()
    return loss / sum(lengths)


@pytest.mark.parametrize("valid", [False, True], ids=["whole", "of unequal lengths"])
@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("backend", ["plain", "cpu"])
def test_the_replay_has_the_gradients_of_single_steps(core, backend, valid, task):
    if backend == "cpu" and cpu.PROBLEM:
        pytest.skip(cpu.PROBLEM)
    dtype = torch.float64 if backend == "plain" else torch.float32
    model = agent(core, backend, dtype)
    episode = episode_of(dtype, valid)
    if valid:
        episode = episode._replace(rewards=episode.rewards * episode.valid)
    expected = step_by_step(model, episode, task)
    wanted = torch.autograd.grad(expected, list(model.parameters()))
    found = a2c.losses(model, episode, task)["loss"]
    assert_near(found, expected, "loss")
    for (name, _), own, other in zip(
        model.named_parameters(), torch.autograd.grad(found, list(model.parameters())), wanted, strict=True
    ):
        assert_near(own, other, name)


def test_the_replay_sees_what_the_agent_saw(task):
    """The policy of the replay, with the noise of the acting, chooses what the agent chose."""
    model = agent(dtype=torch.float32)
    environments = task.environments("train", 20)
    episode = a2c.play(model, environments, 30, seed=1)
    noise = a2c.policy_noise(1, 30, 20, 3)
    logits, _, _ = model(episode.observations)
    assert torch.equal((logits + noise.transpose(0, 1)).argmax(-1), episode.actions)
    assert episode.observations.shape == (20, 30, 17) and episode.valid is None and episode.moves == 600


def test_actions_are_drawn_from_the_policy():
    model = agent(dtype=torch.float32)
    nn.init.zeros_(model.policy.weight)
    wanted = torch.tensor([0.7, 0.2, 0.1])
    model.policy.bias.data = wanted.log()
    actions, _ = model.act(torch.zeros(20_000, 17), a2c.policy_noise(0, 20_000, 3))
    assert actions.bincount() / 20_000 == pytest.approx(wanted, abs=0.015)


def test_the_first_step_starts_afresh(task):
    model = agent(dtype=torch.float32)
    environments = task.environments("train", 4)
    first = a2c.play(model, environments, 30, seed=1)
    again = a2c.play(model, environments, 30, seed=1)
    other = a2c.play(model, environments, 30, seed=2)
    assert all(torch.equal(x, y) for x, y in zip(first[:3], again[:3], strict=True))
    assert not torch.equal(first.observations, other.observations)


def test_returns_are_discounted_and_end_at_the_end():
    rewards = torch.tensor([[1.0, 0.0, 10.0], [0.0, 0.0, -0.05]])
    torch.testing.assert_close(a2c.returns(rewards, 0.9), torch.tensor([[9.1, 9.0, 10.0], [-0.0405, -0.045, -0.05]]))
    assert rewards[0, 0] == 1.0


def test_the_loss_by_hand(task):
    """A uniform policy and a value of 2 everywhere, one step, a reward of 10."""
    model = agent(dtype=torch.float64)
    for layer in (model.policy, model.value):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    model.value.bias.data.fill_(2.0)
    episode = a2c.Episode(torch.randn(1, 1, 17).double(), torch.tensor([[1]]), torch.tensor([[10.0]]).double(), None)
    found = {name: part.item() for name, part in a2c.losses(model, episode, task).items()}
    expected = {"policy_loss": 8 * math.log(3), "value_loss": 64.0, "entropy": math.log(3)}
    expected["loss"] = expected["policy_loss"] + 0.1 * 64 - 0.03 * math.log(3)
    assert found == pytest.approx(expected)


@pytest.fixture
def begin(tmp_path):
    """Return a function that begins a run of a tiny agent."""
    opened = []

    def begin(*overrides, **options):
        recipe = recipes.load("graph-rl/fwm", [*TINY, *overrides])
        run = RunFolder.create(tmp_path / f"run{len(opened)}", {"recipe": recipe.to_dict(), "data": None})
        opened.append(run)
        return training.begin(recipe, run, **options)

    yield begin
    for run in opened:
        run.unlock()


def test_training_learns(begin):
    """On one graph there is nothing to explore: what it learns, it learns by heart."""
    trained = begin(
        "--task.graphs=1", "--task.steps=10", "--training.rows=64", "--training.learning_rate=0.02",
        "--training.steps=80", "--training.report_every=20", "--training.evaluate_every=80",
    )  # fmt: skip
    trained.train()
    rewards = [record["train"]["reward"] for record in trained.run.records() if "train" in record]
    moves = trained.environments.moves
    bounds = trained.task.bounds("train")
    assert moves.shape == (1, 3, 2) and bounds["random"] < bounds["best"]
    share = (rewards[-1] - bounds["random"]) / (bounds["best"] - bounds["random"])
    assert share > 0.6 and rewards[-1] > rewards[0]


def test_records_and_checkpoints(begin):
    trained = begin()
    metrics = trained.train()
    records = trained.run.records()
    assert [record["step"] for record in records] == [2, 2, 4, 4]
    assert set(records[0]["train"]) == {"reward", "loss", "policy_loss", "value_loss", "entropy"}
    assert records[-1]["valid"] == metrics and set(metrics) == {"reward", "test_reward"}
    assert trained.run.timings()[0]["moves"] == 2 * 8 * 6
    best = max((record["valid"]["reward"], -record["step"]) for record in records if "valid" in record)
    from fastweights import load_model

    model, state, metadata = load_model(trained.run.path)
    assert metadata["step"] == -best[1] and not state.memory.any()
    assert a2c.evaluate(model, trained.task, "valid", 8)["reward"] == pytest.approx(best[0])


def test_evaluations_are_the_same_and_leave_the_training_alone(begin):
    first = begin()
    first.train()
    again = begin("--training.evaluate_every=1")
    again.train()
    wanted = first.model.state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in again.model.state_dict().items())
    found = [a2c.evaluate(first.model, first.task, "test", 8, episodes=3) for _ in range(2)]
    assert found[0] == found[1] and found[0]["episodes"] == 24 and found[0]["error"] > 0


def test_seeds_decide_the_episodes(begin):
    rewards = []
    for seed in (0, 0, 1):
        trained = begin(f"--training.seed={seed}")
        trained.train()
        rewards.append([record["train"]["reward"] for record in trained.run.records() if "train" in record])
    assert rewards[0] == rewards[1] != rewards[2]


def test_a_poisoned_weight_is_found(begin):
    trained = begin()
    trained.train()
    good = trained.run.last.read_bytes()
    trained.options.steps = 5
    trained.model.core.write.weight.data[3, 1] = math.nan
    with pytest.raises(
        UserError, match=r"not finite at step 5 \(an episode; .*the weight core\.write\.weight \[13, 16\]"
    ):
        trained.train()
    assert trained.run.last.read_bytes() == good
    assert (trained.run.path / "non_finite_step_5.safetensors").exists()


def test_several_processes_are_refused(begin, monkeypatch):
    monkeypatch.setattr("fastweights.training.loop.DistributedDataParallel", lambda model: model)
    with pytest.raises(UserError, match="trains in one process; start it without torchrun"):
        begin(group=Group(0, 2))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("trained") / "run"
    assert cli.main(["train", "graph-rl/fwm", *TINY, f"--out={out}"]) == 0
    return out


def test_evaluate_on_the_command_line(run, capsys):
    found = {}
    for arguments in (["--split=test"], ["--split=valid"], ["--split=test", "--task.variant=paper", "--task.steps=9"]):
        capsys.readouterr()
        assert cli.main(["evaluate", str(run), *arguments, "--episodes=2", "--json"]) == 0
        found[" ".join(arguments)] = json.loads(capsys.readouterr().out)
    test, valid, longer = found.values()
    assert set(test) == {"split", "step", "reward", "error", "episodes", "bounds"}
    assert (test["split"], test["episodes"], set(test["bounds"])) == ("test", 16, {"random", "best"})
    assert test["bounds"]["random"] < test["bounds"]["best"] < longer["bounds"]["best"]
    assert valid["bounds"] != test["bounds"]
    assert cli.main(["evaluate", str(run), "--split=test"]) == 0
    printed = capsys.readouterr().out
    assert "the agent" in printed and "knowing the map" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task.places=4"], "made for observations of size 12, and here it is 14; choose another checkpoint"),
        (["--task.places=4", "--task.actions=1"], "there is no graph of 4 places and 1 actions"),
        (["--task.steps=0"], "steps is 0; an episode needs at least 1"),
        (["--episodes=0"], "--episodes is 0; give at least 1"),
        (["--generated"], "--generated is for models of words"),
        (["--task.variant=papre"], 'variant is "papre"; it must be "paper" or "as-published"'),
    ],
)
def test_what_does_not_fit_is_refused_in_evaluation(run, arguments, message, capsys):
    capsys.readouterr()
    assert cli.main(["evaluate", str(run), *arguments]) == 2
    printed = capsys.readouterr().err
    assert message in printed and printed.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task.steps=0"], "steps is 0; an episode needs at least 1"),
        (["--task.actions=1"], "there is no graph of 3 places and 1 actions"),
        (["--task.places=2", "--task.graphs=9"], "there are not enough graphs of 2 places and 2 actions"),
        (["--task.graphs=0"], "graphs is 0; there must be at least 1"),
        (["--task.discount=1.5"], "discount is 1.5; it must be between 0 and 1"),
        (["--data=."], "makes its own environments; leave --data out"),
        (["--model.embedding_size=8"], "model.embedding_size is for words"),
        (["--training.adam_epsilon=0"], "training.adam_epsilon is 0.0; it must be positive"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_there_is_a_run(arguments, message, tmp_path, capsys):
    out = tmp_path / "run"
    assert cli.main(["train", "graph-rl/fwm", *TINY, *arguments, f"--out={out}"]) == 2
    printed = capsys.readouterr().err
    assert message in printed and printed.count("\n") == 1
    assert not out.exists()


def test_without_gymnasium_the_extra_is_named(monkeypatch, task):
    monkeypatch.setitem(__import__("sys").modules, "fastweights.environments.walks", None)
    with pytest.raises(UserError, match=r"install it with: pip install 'fastweights\[rl\]'"):
        task.environments("train", 2)


def test_the_published_agent_acts_on_all_graphs():
    recipe = recipes.load("graph-rl/fwm")
    task = tasks.build(recipe.task)
    model = recipes.build_model(recipe, task)
    found = a2c.evaluate(model, task, "test", 600)
    assert found["reward"] == pytest.approx(task.bounds("test")["random"], abs=5 * found["error"])
    assert np.isfinite(found["error"])
