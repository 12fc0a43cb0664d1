"""Random directed graphs with labelled edges, and expected returns on them (Schlag et al. 2021, appendix I).

N graphs with S states and A actions are one array `transitions` `[N, S, A]` of next states. An action that is not valid
in a state leads back to it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

GOAL_REWARD, PENALTY = 10.0, 0.05
VARIANTS = ("paper", "as-published")
MAX_FRUITLESS_DRAWS = 20  # of at least 1,000 graphs each


@dataclass(frozen=True)
class Rules:
    """The rules of an episode: agent and goal start in two random states, and are reset when the agent arrives.

    "paper" is sections 4.2 and I: agent and goal are also reset `patience` steps after their last reset, and the agent
    observes its return so far. "as-published" is the authors' code, with these differences:

    - the observed return is always 0;
    - the one-hot index of the previous action is one higher: the first input is never set, and "none" falls on the
      constant 1;
    - the timer counts only steps that do not reach the goal, and continues when the goal is reached;
    - at a timeout the previous action becomes "none";
    - a reset always changes the goal.

    Args:
        states: S.
        actions: A.
        steps: length of an episode.
        patience: steps without success before a reset of agent and goal.
        variant: "paper" or "as-published".
        return_scale: factor on the observed return; 1 in the paper.

    Raises:
        ValueError: for a size without graphs, or a number out of range.
    """

    states: int = 5
    actions: int = 3
    steps: int = 30
    patience: int = 6
    variant: str = "paper"
    return_scale: float = 1.0

    def __post_init__(self) -> None:
        check_size(self.states, self.actions)
        for name in ("steps", "patience"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; an episode needs at least 1")
        if self.variant not in VARIANTS:
            raise ValueError(f'variant is "{self.variant}"; it must be "paper" or "as-published"')
        if not 0 < self.return_scale < math.inf:
            raise ValueError(f"return_scale is {self.return_scale}; it must be positive and finite")

    @property
    def observation_size(self) -> int:
        """Size of goal, state, previous action or none, constant 1, progress and return: 17 in the paper."""
        return 2 * self.states + self.actions + 4

    @property
    def timer_values(self) -> int:
        """Number of values that the timer can have in an episode, which may end before the patience does."""
        return min(self.patience, self.steps + 1)


def check_size(states: int, actions: int) -> None:
    """Check that there are graphs of this size.

    Raises:
        ValueError: if a state would have no exit, or the 2·S edges of listing 1 have no room.
    """
    if states < 2 or actions < 2:
        raise ValueError(
            f"there is no graph of {states} states and {actions} actions: every state needs one action that leaves "
            "it and another that reaches it; give at least 2 states and 2 actions"
        )


def sample_graphs(
    count: int, states: int, actions: int, rng: np.random.Generator, exclude: NDArray | None = None
) -> NDArray[np.int64]:
    """Draw different graphs by listing 1: transitions `[N, S, A]`, none of them in `exclude`.

    The test of connectivity is boolean reachability. The listing's own test also rejects periodic strongly connected
    graphs, and overflows from 12 states on.

    >>> sample_graphs(600, 5, 3, np.random.default_rng(0)).shape
    (600, 5, 3)

    Raises:
        ValueError: for a size without graphs, or more graphs than exist.
    """
    check_size(states, actions)
    seen = set() if exclude is None else {graph.tobytes() for graph in exclude}
    found: list[NDArray] = []
    fruitless = 0
    while len(found) < count:
        before = len(found)
        for graph in _draw(max(1000, count), states, actions, rng):
            if len(found) < count and graph.tobytes() not in seen:
                seen.add(graph.tobytes())
                found.append(graph)
        fruitless = fruitless + 1 if len(found) == before else 0
        if fruitless == MAX_FRUITLESS_DRAWS:
            raise ValueError(
                f"there are not enough graphs of {states} states and {actions} actions: {len(seen)} were found; "
                "give fewer graphs, or more states or actions"
            )
    return np.stack(found) if found else np.empty((0, states, actions), np.int64)


def _draw(count: int, states: int, actions: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Run listing 1 for many graphs at once, and return the graphs that pass its tests."""
    graph, state = np.arange(count), np.arange(states)
    transitions = np.tile(state[:, None], (count, 1, actions))  # no valid action yet
    # One action leaves each state.
    next_state = (state + rng.integers(1, states, (count, states))) % states
    transitions[graph[:, None], state, rng.integers(actions, size=(count, states))] = next_state
    # One action reaches each state, a so far invalid one.
    accepted = np.ones(count, bool)
    for target in state:
        free = transitions == state[:, None]
        free[:, target] = False
        accepted &= free.any((1, 2))
        priority = np.where(free, rng.random(transitions.shape), -1.0)
        transitions.reshape(count, -1)[graph, priority.reshape(count, -1).argmax(1)] = target
    return transitions[accepted & (distances(transitions) < states).all((1, 2))]


def distances(transitions: NDArray) -> NDArray[np.int64]:
    """Return the lengths of the shortest paths between states `[N, S, S]`; S if there is no path."""
    states = transitions.shape[1]
    edges = (transitions[..., None] == np.arange(states)).any(2)
    reached = np.broadcast_to(np.eye(states, dtype=bool), edges.shape)
    steps = np.zeros(edges.shape, np.int64)
    for _ in range(states):
        steps += ~reached
        reached = reached | reached @ edges
    return steps


def expected_return(transitions: NDArray, rules: Rules, policy: str) -> NDArray[np.float64]:
    """Return the exact expected return of an episode on each graph `[N]`, by dynamic programming.

    >>> graphs = sample_graphs(600, 5, 3, np.random.default_rng(0))
    >>> [round(expected_return(graphs, Rules(), policy).mean()) for policy in ("random", "optimal")]
    [45, 172]

    Args:
        transitions: the graphs `[N, S, A]`.
        rules: rules of the episode.
        policy: "optimal", with the graph and the timer known, or "random", with all actions equally likely.
    """
    reduce: Any = {"optimal": np.max, "random": np.mean}[policy]
    published = rules.variant == "as-published"
    apart = ~np.eye(rules.states, dtype=bool)
    next_goals = apart / (rules.states - 1) if published else np.full(apart.shape, 1 / rules.states)
    graph, state = np.arange(len(transitions))[:, None, None], np.arange(rules.states)
    arrives = (transitions[..., None] == state)[..., None]  # [N, S, A, goal, 1]
    penalty = PENALTY * (transitions == state[:, None])[..., None, None]
    value = np.zeros((len(transitions), rules.states, rules.states, rules.timer_values))  # [N, state, goal, timer]
    for _ in range(rules.steps):
        by_goal = (value * apart[..., None]).sum(1) / (rules.states - 1)  # [N, goal, timer], over the agent's states
        after_reset = next_goals @ by_goal  # [N, previous goal, timer]
        after_step = np.roll(value, -1, -1)
        after_step[..., -1] = after_reset[:, None, :, 0]  # timeout
        after_goal = after_reset if published else after_reset[..., :1]
        action_value = np.where(arrives, GOAL_REWARD + after_goal[:, None, None], after_step[graph, transitions])
        value = reduce(action_value - penalty, axis=2)
    return value[:, apart, 0].mean(1)
