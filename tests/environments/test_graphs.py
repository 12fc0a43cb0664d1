"""Random graphs: the rules of listing 1, and expected returns by exact computation against simulation."""

import numpy as np
import pytest

from fastweights.environments.graph_env import GraphVectorEnv
from fastweights.environments.graphs import (
    GOAL_REWARD,
    VARIANTS,
    Rules,
    distances,
    expected_return,
    sample_graphs,
)


def random(seed=0):
    return np.random.default_rng(seed)


def ways(graph):
    """From each state of one graph, the fewest steps to each other, by search."""
    found = []
    for start in range(len(graph)):
        steps, edge = {start: 0}, [start]
        while edge:
            state = edge.pop(0)
            for next_state in graph[state]:
                if next_state not in steps:
                    steps[next_state] = steps[state] + 1
                    edge.append(next_state)
        found.append([steps.get(next_state, len(graph)) for next_state in range(len(graph))])
    return found


@pytest.fixture(scope="module")
def graphs():
    return sample_graphs(10_000, 5, 3, random())


def test_every_graph_keeps_the_rules_of_the_listing(graphs):
    states = np.arange(5)
    valid = graphs != states[:, None]
    assert ((graphs >= 0) & (graphs < 5)).all()
    assert (valid.sum((1, 2)) == 10).all()  # one edge to leave each state, one to reach it
    assert valid.any(2).all()
    assert (graphs[..., None] == states)[valid].reshape(10_000, -1, 5).any(1).all()
    for graph in graphs.tolist():
        assert max(max(row) for row in ways(graph)) < 5


def test_graphs_are_different(graphs):
    assert len(np.unique(graphs.reshape(10_000, -1), axis=0)) == 10_000


def test_the_listing_is_followed_where_it_contradicts_the_text(graphs):
    """Two actions lead from some state to the same state in 77 % of the listing's graphs."""
    valid = graphs != np.arange(5)[:, None]
    same = sum(
        ((graphs[..., a] == graphs[..., b]) & valid[..., a] & valid[..., b]).any(1) for a, b in ((0, 1), (0, 2), (1, 2))
    )
    assert (same > 0).mean() == pytest.approx(0.77, abs=0.015)


def listing(n_actions, n_states, random_state):
    """Listing 1, but for a boolean test of reachability."""
    while True:
        A = np.zeros((n_actions, n_states, n_states))
        for from_state in range(n_states):
            to_state = random_state.choice([i for i in range(n_states) if i != from_state])
            A[random_state.integers(0, n_actions), from_state, to_state] = 1
        for to_state in range(n_states):
            action_list, from_list = np.where(A.sum(2) == 0)
            options = [x for x in zip(from_list, action_list, strict=True) if x[0] != to_state]
            from_state, action = options[random_state.choice(len(options))]
            A[action, from_state, to_state] = 1
        transitions = np.where(A.any(2).T, A.argmax(2).T, np.arange(n_states)[:, None])
        if (np.array(ways(transitions.tolist())) < n_states).all():
            return transitions


def test_graphs_are_distributed_as_the_listings(graphs):
    expected = np.stack([listing(3, 5, state) for state in [random(1)] for _ in range(1500)])

    def described(transitions):
        far = distances(transitions)
        uses = np.sort((transitions != np.arange(5)[:, None]).sum(2), 1).mean(0)
        return np.array([far.mean(), far.max((1, 2)).mean(), (far.max((1, 2)) == 4).mean(), *uses])

    assert described(graphs) == pytest.approx(described(expected), abs=0.06)


def test_distances_are_those_of_a_search(graphs):
    assert distances(graphs[:100]).tolist() == [ways(graph) for graph in graphs[:100].tolist()]
    nowhere = np.array([[[1, 0], [1, 1], [0, 2]]])
    assert distances(nowhere).tolist() == [[[0, 1, 3], [3, 0, 3], [1, 2, 0]]]


@pytest.mark.parametrize(("states", "actions"), [(2, 2), (7, 2), (12, 4), (30, 3)])
def test_other_sizes(states, actions):
    found = sample_graphs(1 if states == 2 else 20, states, actions, random())
    assert found.shape[1:] == (states, actions)
    assert (distances(found) < states).all()
    assert ((found != np.arange(states)[:, None]).sum((1, 2)) == 2 * states).all()


def test_a_seed_fixes_the_graphs():
    first, again, other = (sample_graphs(50, 5, 3, random(seed)) for seed in (3, 3, 4))
    assert (first == again).all() and (first != other).any()
    more = sample_graphs(50, 5, 3, random(3), exclude=first[:10])
    assert not {graph.tobytes() for graph in more} & {graph.tobytes() for graph in first[:10]}


@pytest.mark.parametrize(("states", "actions"), [(1, 3), (5, 1), (0, 0)])
def test_sizes_without_a_graph_are_refused(states, actions):
    message = f"there is no graph of {states} states and {actions} actions"
    with pytest.raises(ValueError, match=message):
        sample_graphs(1, states, actions, random())
    with pytest.raises(ValueError, match=message):
        Rules(states=states, actions=actions)


def test_more_graphs_than_there_are_are_refused():
    with pytest.raises(ValueError, match="not enough graphs of 2 states and 2 actions: 1 were found"):
        sample_graphs(2, 2, 2, random())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"patience": 0}, "patience is 0"),
        ({"variant": "p"}, '"p"'),
        ({"return_scale": 0.0}, "return_scale is 0.0"),
    ],
)
def test_rules_are_checked(wrong, message):
    with pytest.raises(ValueError, match=message):
        Rules(**wrong)


def test_the_papers_sizes(graphs):
    assert Rules().observation_size == 17
    assert 44 < expected_return(graphs[:2000], Rules(), "random").mean() < 45
    assert expected_return(graphs[:2000], Rules(), "optimal").mean() == pytest.approx(171, abs=1)


def test_a_reward_worked_out_by_hand():
    """Two states, both actions lead across: the agent, placed beside the goal, always reaches it."""
    graph = np.array([[[1, 1], [0, 0]]])
    for variant in VARIANTS:
        rules = Rules(states=2, actions=2, steps=7, variant=variant)
        for policy in ("optimal", "random"):
            assert expected_return(graph, rules, policy) == pytest.approx(7 * GOAL_REWARD)
    # three states in a ring, action 0 leads on, action 1 is never valid: half of the time the goal is one step away
    ring = np.array([[[1, 0], [2, 1], [0, 2]]])
    assert expected_return(ring, Rules(states=3, actions=2, steps=1), "optimal") == pytest.approx(5.0)
    assert expected_return(ring, Rules(states=3, actions=2, steps=1), "random") == pytest.approx(2.5 - 0.025)
    # with a patience of one step, both are reset after each
    assert expected_return(ring, Rules(states=3, actions=2, steps=4, patience=1), "optimal") == pytest.approx(20.0)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("policy", ["random", "optimal"])
@pytest.mark.parametrize("rules", [{}, {"states": 7, "actions": 2, "steps": 17, "patience": 4}], ids=["paper", "other"])
def test_the_exact_reward_agrees_with_simulation(variant, policy, rules):
    environments = GraphVectorEnv(600, graph_seed=1, graphs=200, variant=variant, **rules)
    transitions, actions = environments.transitions, environments.rules.actions
    far = distances(transitions)
    draw, rows, sums = random(), np.arange(600), []
    for episode in range(40):
        environments.reset(seed=episode)
        total = 0.0
        for _ in range(environments.rules.steps):
            chosen = draw.integers(actions, size=600)
            if policy == "optimal":
                next_state = transitions[environments.graph]
                left = far[
                    environments.graph[:, None], next_state[rows, environments.state], environments.goal[:, None]
                ]
                chosen = left.argmin(1)
            total += environments.step(chosen)[1]
        sums.append(total)
    sums = np.concatenate(sums)
    expected = expected_return(transitions, environments.rules, policy).mean()
    assert sums.mean() == pytest.approx(expected, abs=4 * sums.std() / np.sqrt(sums.size))


@pytest.mark.parametrize("variant", VARIANTS)
def test_patience_beyond_the_episode_is_no_patience_at_all(variant):
    graphs = sample_graphs(3, 4, 2, random())
    last, beyond = (Rules(4, 2, steps=5, patience=patience, variant=variant) for patience in (6, 10**18))
    assert np.array_equal(expected_return(graphs, last, "optimal"), expected_return(graphs, beyond, "optimal"))
