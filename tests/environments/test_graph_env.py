"""Graph environments against the reference implementation; seeds and splits."""

import itertools

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from fastweights.environments.graph_env import SPLITS, GraphEnv, GraphVectorEnv, split_graphs
from fastweights.environments.graphs import VARIANTS, Rules
from fastweights.environments.reference import Episode


def play(environments, seed, episodes=1):
    """Observations, rewards and ends of random actions."""
    draw = np.random.default_rng(seed)
    found = [environments.reset(seed=seed)[0]]
    for _ in range(environments.rules.steps * episodes):
        actions = draw.integers(environments.rules.actions, size=environments.num_envs)
        found += environments.step(actions)[:4]
    return np.concatenate([np.ravel(x) for x in found])


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    "rules", [{}, {"states": 4, "actions": 2, "steps": 9, "patience": 2, "return_scale": 0.1}], ids=["paper", "other"]
)
def test_the_arrays_do_what_the_definition_does(variant, rules):
    environments = GraphVectorEnv(40, graphs=10, variant=variant, **rules)
    draw = np.random.default_rng(0)
    for seed in (0, 1):
        seen, _ = environments.reset(seed=seed)
        episodes = []
        for row, graph in enumerate(environments.graph):
            turns = itertools.cycle((environments._goals[:, row], environments._offsets[:, row]))

            def choose(options, row=row, turns=turns, episodes=episodes):
                number = next(turns)[episodes[row].time]  # of all states, or how far from the one that is left out
                return options[number if len(options) == environments.rules.states else number - 1]

            episodes.append(Episode(environments.transitions[graph].tolist(), environments.rules, choose))
        assert seen == pytest.approx(np.array([episode.reset() for episode in episodes]))
        for _ in range(environments.rules.steps):
            actions = draw.integers(environments.rules.actions, size=40)
            seen, rewards, over, cut, _ = environments.step(actions)
            expected, expected_rewards, ends = zip(
                *(episode.step(action) for episode, action in zip(episodes, actions, strict=True)), strict=True
            )
            assert seen == pytest.approx(np.array(expected))
            assert rewards == pytest.approx(np.array(expected_rewards))
            assert over.tolist() == list(ends) and not cut.any()
        assert over.all()


def on_a_ring(variant, *actions, **others):
    """Observations on a ring of three states where action 0 leads on and action 1 leads nowhere."""
    rules = Rules(states=3, actions=2, steps=10, patience=3, variant=variant, **others)
    preferred = itertools.cycle(((2, 1), (0, 1)))  # goals, the agent's states
    episode = Episode([[1, 0], [2, 1], [0, 2]], rules, lambda options: next(x for x in next(preferred) if x in options))
    return [episode.reset(), *(episode.step(action)[0] for action in actions)]


def test_what_the_agent_sees_under_the_papers_rules():
    first, second, third, *_ = on_a_ring("paper", 1, 0)
    assert first == [0, 0, 1, 1, 0, 0, 0, 0, 1, 1, 0.0, 0.0]
    assert second == [0, 0, 1, 1, 0, 0, 0, 1, 0, 1, 0.1, -0.05]
    assert third == [0, 0, 1, 0, 1, 0, 1, 0, 0, 1, 0.2, -0.05]
    *_, scaled = on_a_ring("paper", 1, 0, return_scale=0.1)
    assert scaled == pytest.approx([*third[:-1], -0.005])


def test_the_quirks_of_the_published_code():
    first, second, *_ = on_a_ring("as-published", 0)
    assert first == [0, 0, 1, 1, 0, 0, 0, 0, 0, 1, 0.0, 0.0]  # "none" falls on the fixed bit
    assert second == [0, 0, 1, 0, 1, 0, 0, 1, 0, 1, 0.1, 0.0]  # action 0 stands one higher; no reward is seen
    for variant in VARIANTS:
        none = [seen[6:9] for seen in on_a_ring(variant, 1, 1, 1)][-1]
        assert none == ([0, 0, 0] if variant == "as-published" else [0, 1, 0])  # after the timer ran out
        arrived = on_a_ring(variant, 0, 0)[-1]
        assert arrived[3:6] == [1, 0, 0]
        assert arrived[6:9] == ([0, 1, 0] if variant == "as-published" else [1, 0, 0])  # the last action stays
    # two steps wasted, then the goal reached: the published timer has one left, the paper's three
    walked = {variant: on_a_ring(variant, 1, 0, 0, 1)[-1] for variant in VARIANTS}
    assert walked["as-published"][6:9] == [0, 0, 0]
    assert walked["paper"][6:9] == [0, 1, 0]


@pytest.mark.parametrize("variant", VARIANTS)
def test_gymnasiums_own_checks(variant):
    check_env(
        gymnasium.make("fastweights/Graphs-v0", variant=variant, states=4, actions=2, return_scale=0.01).unwrapped
    )


def test_gymnasium_makes_them():
    made = gymnasium.make_vec("fastweights/Graphs-v0", num_envs=7, split="test", variant="as-published")
    seen, _ = made.reset(seed=0)
    assert isinstance(made.unwrapped, GraphVectorEnv)
    assert seen.shape == (7, 17) and seen.dtype == np.float32
    for _ in range(40):
        seen, *_ = made.step(made.action_space.sample())
        assert made.observation_space.contains(seen)
    one = gymnasium.make("fastweights/Graphs-v0", split="test", states=6)
    assert one.reset(seed=0)[0].shape == (19,)


def test_one_environment_is_a_row_of_many():
    one, many = GraphEnv(graphs=20), GraphVectorEnv(1, graphs=20)
    seen, _ = one.reset(seed=5)
    assert (seen == many.reset(seed=5)[0][0]).all()
    for action in (0, 1, 2, 2, 1, 0) * 5:
        found, expected = one.step(action), many.step(np.array([action]))
        assert (found[0] == expected[0][0]).all()
        assert found[1:4] == (expected[1][0], expected[2][0], expected[3][0])
    assert found[2]


def test_seeds_fix_graphs_and_episodes():
    first, again = (play(GraphVectorEnv(30, graphs=30), seed=3) for _ in range(2))
    assert (first == again).all()
    assert (first != play(GraphVectorEnv(30, graphs=30), seed=4)).any()
    assert (first != play(GraphVectorEnv(30, graphs=30, graph_seed=1), seed=3)).any()


def test_the_step_after_the_last_starts_an_episode():
    environments = GraphVectorEnv(5, graphs=5, steps=3)
    before = play(environments, seed=0)[-10:]
    assert before.tolist() == [1.0] * 5 + [0.0] * 5
    seen, rewards, over, _, _ = environments.step(np.zeros(5, np.int64))
    assert (seen[:, -2:] == 0).all() and not rewards.any() and not over.any()


def test_every_graph_has_one_agent_where_there_are_as_many():
    environments = GraphVectorEnv(20, graphs=20)
    for seed in range(3):
        environments.reset(seed=seed)
        assert sorted(environments.graph) == list(range(20))
    few, many = GraphVectorEnv(3, graphs=20), GraphVectorEnv(50, graphs=20)
    few.reset(seed=0)
    many.reset(seed=0)
    assert len(set(few.graph)) == 3
    assert sorted(np.bincount(many.graph)) == [2] * 10 + [3] * 10
    few.reset(seed=0, options={"graphs": [4, 4, 7]})
    assert few.graph.tolist() == [4, 4, 7]


def test_no_graph_is_in_two_splits():
    parts = [{graph.tobytes() for graph in split_graphs(split, 600, 5, 3, 666)} for split in SPLITS]
    assert [len(part) for part in parts] == [600] * 3
    assert len(set.union(*parts)) == 1800


def test_agent_and_goal_start_apart():
    environments = GraphVectorEnv(600)
    for seed in range(3):
        environments.reset(seed=seed)
        assert (environments.goal != environments.state).all()
        for _ in range(30):
            environments.step(environments.action_space.sample())
            assert (environments.goal != environments.state).all()


def test_the_goal_after_a_reset():
    """Uniform over all five states by the paper, over the four others by the published code."""
    for variant in VARIANTS:
        environments = GraphVectorEnv(600, variant=variant)
        counts = np.zeros((5, 5))  # goal before, goal after
        for seed in range(10):
            environments.reset(seed=seed)
            for _ in range(30):
                before = environments.goal
                *_, found = environments.step(environments.action_space.sample())
                np.add.at(counts, (before[found["reset"]], environments.goal[found["reset"]]), 1)
        expected = np.full((5, 5), 1 / 5) if variant == "paper" else (1 - np.eye(5)) / 4
        assert counts.sum() > 10_000
        assert counts / counts.sum(1, keepdims=True) == pytest.approx(expected, abs=0.03)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match='split is "exam"'):
        GraphVectorEnv(2, split="exam")
    with pytest.raises(ValueError, match="no graph of 5 states and 1 actions"):
        GraphVectorEnv(2, actions=1)
