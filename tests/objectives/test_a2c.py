"""A2C: the episode replayed in one call has the gradients of 30 small ones; acting, its loss, and what it refuses."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from fastweights import cli, load_model, recipes, tasks
from fastweights.cores import LSTM, FastWeightMemory
from fastweights.distributed import Group
from fastweights.errors import UserError
from fastweights.models import ActorCritic
from fastweights.objectives import A2C, a2c
from fastweights.ops import cpu
from fastweights.training import checkpoint
from tolerances import assert_near
from trainings import GRAPHS, assert_resumes, records, resumed

CORES = {
    "fwm": lambda backend: FastWeightMemory(17, 32, 16, write_scale=1 / 16, tanh_queries=False, backend=backend),
    "lstm": lambda backend: LSTM(17, 32, second_bias=True, backend=backend),
}


@pytest.fixture
def task():
    return tasks.build({"type": "graph-rl", "graphs": 20})


def agent(core="fwm", backend="plain", dtype=torch.float64):
    return ActorCritic(CORES[core](backend), num_actions=3).to(dtype)


def episode_of(dtype, masked, rows=5, steps=30):
    observations = torch.randn(rows, steps, 17, dtype=dtype)
    mask = torch.arange(steps) < torch.tensor([[30], [1], [7], [29], [16]]) if masked else None
    return a2c.Episode(observations, torch.randint(3, (rows, steps)), torch.randn(rows, steps, dtype=dtype), mask)


def step_by_step(model, episode, objective):
    """The loss as one would write it beside the acting: one call a step, row by row."""
    rows, steps = episode.rewards.shape
    lengths = [steps] * rows if episode.mask is None else episode.mask.sum(1).tolist()
    loss = 0.0
    for row, length in enumerate(lengths):
        state, logits, values = None, [], []
        for t in range(length):
            policy, value, state = model(episode.observations[row : row + 1, t : t + 1], state)
            logits.append(policy[0, 0])
            values.append(value[0, 0])
        future = 0.0
        for t in reversed(range(length)):
            future = episode.rewards[row, t] + objective.discount * future
            distribution = torch.distributions.Categorical(logits=logits[t])
            advantage = future - values[t]
            loss = loss - distribution.log_prob(episode.actions[row, t]) * advantage.detach()
            loss = loss + objective.value_weight * advantage**2 - objective.entropy_weight * distribution.entropy()
    return loss / sum(lengths)


def losses(model, episode, objective):
    """The loss and its parts, from one call on the episode."""
    logits, values, _ = model(episode.observations, mask=episode.mask)
    return objective.losses(logits, values, episode)


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "of unequal lengths"])
@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("backend", ["plain", "cpu"])
def test_one_call_has_the_gradients_of_single_steps(core, backend, masked):
    if backend == "cpu" and cpu.PROBLEM:
        pytest.skip(cpu.PROBLEM)
    dtype = torch.float64 if backend == "plain" else torch.float32
    model = agent(core, backend, dtype)
    episode = episode_of(dtype, masked)
    if masked:
        episode = episode._replace(rewards=episode.rewards * episode.mask)
    objective = A2C(discount=0.8, value_weight=0.2, entropy_weight=0.05)
    expected = step_by_step(model, episode, objective)
    wanted = torch.autograd.grad(expected, list(model.parameters()))
    found = losses(model, episode, objective)["loss"]
    assert_near(found, expected, "loss")
    for (name, _), own, other in zip(
        model.named_parameters(), torch.autograd.grad(found, list(model.parameters())), wanted, strict=True
    ):
        assert_near(own, other, name)


def test_one_call_sees_what_the_agent_saw(task):
    """The policy in one call, with the noise of the rollout, chooses what the agent chose."""
    model = agent(dtype=torch.float32)
    environments = task.environments("train", 20)
    episode = a2c.rollout(model, environments, 30, seed=1)
    noise = a2c.policy_noise(1, 30, 20, 3)
    logits, _, _ = model(episode.observations)
    assert torch.equal((logits + noise.transpose(0, 1)).argmax(-1), episode.actions)
    assert episode.observations.shape == (20, 30, 17) and episode.mask is None and episode.environment_steps == 600


def test_actions_are_drawn_from_the_policy():
    model = agent(dtype=torch.float32)
    nn.init.zeros_(model.policy.weight)
    wanted = torch.tensor([0.7, 0.2, 0.1])
    model.policy.bias.data = wanted.log()
    actions, _ = model.act(torch.zeros(20_000, 17), a2c.policy_noise(0, 20_000, 3))
    assert actions.bincount() / 20_000 == pytest.approx(wanted, abs=0.015)


def test_each_rollout_starts_from_the_initial_state(task):
    model = agent(dtype=torch.float32)
    environments = task.environments("train", 4)
    first = a2c.rollout(model, environments, 30, seed=1)
    again = a2c.rollout(model, environments, 30, seed=1)
    other = a2c.rollout(model, environments, 30, seed=2)
    assert all(torch.equal(x, y) for x, y in zip(first[:3], again[:3], strict=True))
    assert not torch.equal(first.observations, other.observations)


def test_returns_are_discounted_and_end_at_the_end():
    rewards = torch.tensor([[1.0, 0.0, 10.0], [0.0, 0.0, -0.05]])
    torch.testing.assert_close(a2c.returns(rewards, 0.9), torch.tensor([[9.1, 9.0, 10.0], [-0.0405, -0.045, -0.05]]))
    assert rewards[0, 0] == 1.0


def test_the_loss_by_hand():
    """A uniform policy and a value of 2 everywhere, one step, a reward of 10."""
    model = agent(dtype=torch.float64)
    for layer in (model.policy, model.value):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    model.value.bias.data.fill_(2.0)
    episode = a2c.Episode(torch.randn(1, 1, 17).double(), torch.tensor([[1]]), torch.tensor([[10.0]]).double(), None)
    found = {name: part.item() for name, part in losses(model, episode, A2C()).items()}
    expected = {"policy_loss": 8 * math.log(3), "value_loss": 64.0, "entropy": math.log(3)}
    expected["loss"] = expected["policy_loss"] + 0.1 * 64 - 0.03 * math.log(3)
    assert found == pytest.approx(expected)


@pytest.fixture
def begin(trainings):
    """Begins the training of a tiny agent."""
    return lambda *overrides, **options: trainings.begin("graph-rl/fwm", *GRAPHS, *overrides, **options)


def test_training_learns(begin):
    """On one graph there is nothing to explore: what it learns, it learns by heart."""
    trained = begin(
        "--task.graphs=1", "--task.steps=10", "--training.batch_size=64", "--training.learning_rate=0.02",
        "--training.steps=80", "--training.report_every=20", "--training.evaluate_every=80",
    )  # fmt: skip
    trained.train()
    found = [record["return"] for record in records(trained, "train")]
    moves = trained.task.environments("train", 1).transitions
    bounds = trained.task.bounds("train")
    assert moves.shape == (1, 3, 2) and bounds["random"] < bounds["optimal"]
    share = (found[-1] - bounds["random"]) / (bounds["optimal"] - bounds["random"])
    assert share > 0.6 and found[-1] > found[0]


def evaluate(trained, model, split, **options):
    return trained.objective.evaluate(model, trained.task, None, split, 8, **options)


def test_records_and_checkpoints(begin):
    trained = begin()
    metrics = trained.train()
    found = trained.run.records()
    assert [record["step"] for record in found] == [2, 2, 4, 4]
    assert set(found[0]["train"]) == {"return", "loss", "policy_loss", "value_loss", "entropy"}
    assert found[-1]["valid"] == metrics and set(metrics) == {"return", "test_return"}
    assert trained.run.timings()[0]["environment_steps"] == 2 * 8 * 6
    best = max((record["valid"]["return"], -record["step"]) for record in found if "valid" in record)
    model, state, metadata, _ = load_model(trained.run.path)
    assert metadata["step"] == -best[1] and metadata["valid"]["return"] == best[0]
    assert state is None and not model.core.initial_state(1).memory.any()  # an episode starts from the initial state
    assert evaluate(trained, model, "valid")["return"] == pytest.approx(best[0])


def test_the_best_agent_has_the_highest_return_on_the_first_split(begin):
    trained = begin("--training.steps=8")
    found = iter([(3.0, 9.0), (5.0, 1.0), (5.0, 9.0), (4.0, 9.0)])
    trained.objective.validate = lambda *arguments: dict(zip(("return", "test_return"), next(found), strict=True))
    trained.train()
    best = checkpoint.read_metadata(trained.run.best)
    assert (best["step"], best["valid"]["return"]) == (4, 5.0)


def test_training_stops_at_a_return(begin):
    trained = begin("--training.early_stopping.target=-1e9", "--training.steps=50")
    trained.train()
    assert trained.step == 2 and resumed(trained).finished


def test_accumulated_rollouts_are_those_of_one_step(begin):
    trained = begin("--training.accumulate=2")
    trained.train()
    assert trained.run.timings()[0]["environment_steps"] == 2 * 2 * 8 * 6
    assert trained.source.state_dict() == {"next": 8}


@pytest.mark.parametrize("options", [(), ("--training.accumulate=2",), ("--training.precision=bfloat16",)])
def test_resuming_is_bit_for_bit(trainings, options):
    assert_resumes(trainings, "graph-rl/fwm", *GRAPHS, *options)


def test_the_weights_of_the_loss_are_options_of_the_objective(begin):
    options = ("--objective.discount=0.5", "--objective.entropy_weight=0")
    trained = begin(*options)
    objective = trained.objective
    assert (objective.discount, objective.value_weight, objective.entropy_weight) == (0.5, 0.1, 0.0)
    trained.train()
    record = records(trained, "train")[-1]
    assert record["loss"] == pytest.approx(record["policy_loss"] + 0.1 * record["value_loss"], rel=1e-5)
    assert record != records(begin(), "train")


def test_evaluations_are_the_same_and_leave_the_training_alone(begin):
    first = begin()
    first.train()
    again = begin("--training.evaluate_every=1")
    again.train()
    wanted = first.model.state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in again.model.state_dict().items())
    for training in (True, False):
        first.model.train(training)
        found = [evaluate(first, first.model, "test", episodes=3) for _ in range(2)]
        assert first.model.training is training
        assert found[0] == found[1] and found[0]["episodes"] == 24 and found[0]["error"] > 0
    assert found[0]["bounds"] == first.task.bounds("test")
    assert evaluate(first, first.model, "test")["episodes"] == 8  # one of each environment


def test_progress_is_reported_in_environment_steps(begin):
    trained, counts = begin(), []
    evaluate(trained, trained.model, "valid", episodes=3, on_progress=counts.append)
    assert counts == [8 * 6] * 3


def test_a_state_to_start_from_is_refused(begin):
    trained = begin()
    with pytest.raises(UserError, match="starts each episode from the initial state"):
        evaluate(trained, trained.model, "valid", state=trained.model.core.initial_state(1))


def test_seeds_decide_the_episodes(begin):
    found = []
    for seed in (0, 0, 1):
        trained = begin(f"--training.seed={seed}")
        trained.train()
        found.append([record["return"] for record in records(trained, "train")])
    assert found[0] == found[1] != found[2]


def test_a_poisoned_weight_is_found(begin):
    trained = begin()
    trained.train()
    good = trained.run.last.read_bytes()
    trained.options.steps = 5
    trained.model.core.write.weight.data[3, 1] = math.nan
    with pytest.raises(
        UserError, match=r"not finite at step 5 \(an item of training; .*the weight core\.write\.weight \[13, 16\]"
    ):
        trained.train()
    assert trained.run.last.read_bytes() == good
    assert (trained.run.path / "non_finite_step_5.safetensors").exists()


def test_several_processes_are_refused(begin):
    with pytest.raises(UserError, match="A2C trains in one process; start it without torchrun"):
        begin(group=Group(0, 2))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("trained") / "run"
    assert cli.main(["train", "graph-rl/fwm", *GRAPHS, f"--out={out}"]) == 0
    return out


def test_evaluate_on_the_command_line(run, capsys):
    found = {}
    for arguments in (["--split=test"], ["--split=valid"], ["--split=test", "--task.variant=paper", "--task.steps=9"]):
        capsys.readouterr()
        assert cli.main(["evaluate", str(run), *arguments, "--episodes=2", "--json"]) == 0
        found[" ".join(arguments)] = json.loads(capsys.readouterr().out)
    test, valid, longer = found.values()
    assert set(test) == {"split", "step", "return", "error", "episodes", "bounds"}
    assert (test["split"], test["episodes"], set(test["bounds"])) == ("test", 16, {"random", "optimal"})
    assert test["bounds"]["random"] < test["bounds"]["optimal"] < longer["bounds"]["optimal"]
    assert valid["bounds"] != test["bounds"]
    assert cli.main(["evaluate", str(run), "--split=test"]) == 0
    printed = capsys.readouterr().out
    assert "the agent" in printed and "known map" in printed and "random policy" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--task.states=4"],
            "size 12 and 2 actions, and the task has observations of size 14 and 2 actions; set the task as in",
        ),
        (["--task.states=4", "--task.actions=1"], "there is no graph of 4 states and 1 actions"),
        (["--task.steps=0"], 'steps of the task "graph-rl" is 0; it must be greater than or equal to 1'),
        (["--episodes=0"], "--episodes is 0; give 1 to 10,000."),
        (["--generated"], "--generated is for token models, and "),
        (["--task.variant=papre"], "variant of the task \"graph-rl\" is 'papre'; it must be 'paper' or 'as-published'"),
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
        (["--task.steps=0"], 'steps of the task "graph-rl" is 0; it must be greater than or equal to 1'),
        (["--task.actions=1"], "there is no graph of 3 states and 1 actions"),
        (["--task.states=2", "--task.graphs=9"], "there are not enough graphs of 2 states and 2 actions"),
        (["--task.graphs=0"], 'graphs of the task "graph-rl" is 0; it must be greater than or equal to 1'),
        (["--objective.discount=1.5"], 'discount of the objective "a2c" is 1.5; it must be less than or equal to 1'),
        (["--data=."], "makes its own environments; leave --data out"),
        (["--model.embedding_size=8"], 'The model has no option "embedding_size". It has: core.'),
        (["--training.optimizer.eps=-1"], 'The optimizer "adam" cannot be built: Invalid epsilon value: -1.'),
    ],
)
def test_what_cannot_be_trained_is_refused_before_there_is_a_run(arguments, message, tmp_path, capsys):
    out = tmp_path / "run"
    assert cli.main(["train", "graph-rl/fwm", *GRAPHS, *arguments, f"--out={out}"]) == 2
    printed = capsys.readouterr().err
    assert message in printed and printed.count("\n") == 1
    assert not out.exists()


def test_without_gymnasium_the_extra_is_named(monkeypatch, task):
    monkeypatch.setitem(__import__("sys").modules, "fastweights.environments.graph_env", None)
    with pytest.raises(UserError, match=r"install it with: pip install 'fastweights\[rl\]'"):
        task.environments("train", 2)


def test_the_published_agent_acts_on_all_graphs():
    recipe = recipes.load("graph-rl/fwm")
    task = tasks.build(recipe.task)
    model = recipes.assemble(recipe).model
    found = A2C().evaluate(model, task, None, "test", 600)
    assert found["return"] == pytest.approx(task.bounds("test")["random"], abs=5 * found["error"])
    assert np.isfinite(found["error"])
