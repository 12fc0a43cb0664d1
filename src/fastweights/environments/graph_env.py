"""Random graphs as Gymnasium environments, vectorised over episodes (Schlag et al. 2021, section 4.2)."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from fastweights.environments.graphs import GOAL_REWARD, PENALTY, Rules, sample_graphs

SPLITS = ("test", "train", "valid")  # in the order of sampling


@lru_cache(maxsize=8)
def split_graphs(split: str, count: int, states: int, actions: int, seed: int) -> NDArray[np.int64]:
    """Return the graphs of a split, transitions `[N, S, A]`; splits of equal count and seed are disjoint.

    Raises:
        ValueError: for an unknown split, or more graphs than exist.
    """
    if split not in SPLITS:
        raise ValueError(f'split is "{split}"; it must be one of {", ".join(SPLITS)}')
    transitions = sample_graphs(len(SPLITS) * count, states, actions, np.random.default_rng(seed))
    return transitions[SPLITS.index(split) * count :][:count]


class GraphVectorEnv(VectorEnv):
    """B agents, each on its own graph, with episodes of a fixed number of steps and one goal after another.

    An observation `[2·S + A + 4]` is the goal and the agent's state (one-hot), the previous action or "none" (one-hot),
    a constant 1, the progress, and the return so far. `reset` gives each agent a graph; if B is the number of graphs,
    each graph has one agent. The step after the last starts the next episode and ignores the actions (Gymnasium's
    `AutoresetMode.NEXT_STEP`).

    Args:
        num_envs: number of agents B.
        split: "train", "valid" or "test".
        graphs: number of graphs in the split.
        graph_seed: seed of the graphs; the seed of `reset` is the seed of the episodes.
        rules: fields of `fastweights.environments.graphs.Rules`: states, actions, steps, patience, variant,
            return_scale.

    Raises:
        ValueError: for an unknown split, impossible rules, or more graphs than exist.
    """

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP, "render_modes": []}  # noqa: RUF012 - as Gymnasium has it

    def __init__(
        self, num_envs: int = 600, split: str = "train", graphs: int = 600, graph_seed: int = 666, **rules: Any
    ):
        self.rules = Rules(**rules)
        self.num_envs = num_envs
        self.transitions = split_graphs(split, graphs, self.rules.states, self.rules.actions, graph_seed)
        low = np.zeros(self.rules.observation_size, np.float32)
        low[-1] = -PENALTY * self.rules.steps * self.rules.return_scale
        high = np.ones_like(low)
        high[-1] = GOAL_REWARD * self.rules.steps * self.rules.return_scale
        self.single_observation_space = spaces.Box(low, high)
        self.single_action_space = spaces.Discrete(self.rules.actions)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._indices = np.arange(num_envs)
        self._published = self.rules.variant == "as-published"
        self._done = True

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Start an episode for each agent; `options={"graphs": […]}` sets the agents' graphs by number."""
        super().reset(seed=seed)
        rng, (steps, states) = self.np_random, (self.rules.steps, self.rules.states)
        self.graph = np.resize(rng.permutation(len(self.transitions)), self.num_envs)
        if options and "graphs" in options:
            self.graph = np.resize(np.asarray(options["graphs"]), self.num_envs)
        # The goals of possible resets after each step, and the agents' offsets from them.
        self._goals = rng.integers(states, size=(steps + 1, self.num_envs))
        self._offsets = rng.integers(1, states, (steps + 1, self.num_envs))
        if self._published:  # offsets from the previous goal
            self._goals[1:] = rng.integers(1, states, (steps, self.num_envs))
        self.goal, self.state = self._goals[0], (self._goals[0] + self._offsets[0]) % states
        self._previous_action = np.full(self.num_envs, self.rules.actions)  # none
        self._timer = np.zeros(self.num_envs, np.int64)
        self._return = np.zeros(self.num_envs)
        self._time = 0
        self._done = False
        return self._observations(), {}

    def step(
        self, actions: NDArray
    ) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Take the actions `[B]`; the info "reset" `[B]` is true at a reset of agent and goal within the episode."""
        truncated = np.zeros(self.num_envs, bool)
        if self._done:
            return self.reset()[0], np.zeros(self.num_envs), truncated, truncated.copy(), {}
        next_state = self.transitions[self.graph, self.state, actions]
        arrived = next_state == self.goal
        rewards = GOAL_REWARD * arrived - PENALTY * (next_state == self.state)
        self._time += 1
        self._timer += ~arrived
        timeout = self._timer == self.rules.patience
        reset = arrived | timeout
        self._previous_action = np.array(actions)
        if self._published:
            self._timer[timeout] = 0
            self._previous_action[timeout] = self.rules.actions
        else:
            self._timer[reset] = 0
        states, goal = self.rules.states, self._goals[self._time]
        if self._published:
            goal = (self.goal + goal) % states
        self.state = np.where(reset, (goal + self._offsets[self._time]) % states, next_state)
        self.goal = np.where(reset, goal, self.goal)
        self._return += rewards
        self._done = self._time == self.rules.steps
        return self._observations(), rewards, np.full(self.num_envs, self._done), truncated, {"reset": reset}

    def _observations(self) -> NDArray[np.float32]:
        """Return the observations `[B, 2·S + A + 4]`."""
        states = self.rules.states
        observations = np.zeros((self.num_envs, self.rules.observation_size), np.float32)
        observations[self._indices, self.goal] = 1
        observations[self._indices, states + self.state] = 1
        observations[self._indices, 2 * states + self._published + self._previous_action] = 1
        observations[:, -3] = 1
        observations[:, -2] = self._time / self.rules.steps
        if not self._published:
            observations[:, -1] = self._return * self.rules.return_scale
        return observations


class GraphEnv(gymnasium.Env):
    """One agent, with another graph at every reset; arguments of `GraphVectorEnv` except num_envs.

    >>> observation, _ = GraphEnv(states=4, actions=2).reset(seed=0)
    >>> observation.shape
    (14,)
    """

    metadata = {"render_modes": []}  # noqa: RUF012 - as Gymnasium has it

    def __init__(self, **options: Any):
        self._envs = GraphVectorEnv(1, **options)
        self.observation_space = self._envs.single_observation_space
        self.action_space = self._envs.single_action_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Start an episode; see `GraphVectorEnv.reset`."""
        super().reset(seed=seed)
        observations, infos = self._envs.reset(seed=seed, options=options)
        return observations[0], infos

    def step(self, action: int) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Take an action."""
        observations, rewards, terminated, truncated, infos = self._envs.step(np.array([action]))
        infos = {key: bool(value[0]) for key, value in infos.items()}
        return observations[0], float(rewards[0]), bool(terminated[0]), bool(truncated[0]), infos
