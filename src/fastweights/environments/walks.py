"""Walks on random graphs as Gymnasium environments, all of them stepped as arrays (Schlag et al. 2021, section 4.2)."""

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

SPLITS = ("test", "train", "valid")  # in this order they are drawn; none shares a graph with another


@lru_cache(maxsize=8)
def graphs_of(split: str, count: int, places: int, actions: int, seed: int) -> NDArray[np.int64]:
    """The graphs of a split, moves `[N, S, A]`; no graph is in two splits of the same count and seed.

    Raises:
        ValueError: where the split does not exist, or there are not so many graphs of this size.
    """
    if split not in SPLITS:
        raise ValueError(f'split is "{split}"; it must be one of {", ".join(SPLITS)}')
    moves = sample_graphs(len(SPLITS) * count, places, actions, np.random.default_rng(seed))
    return moves[SPLITS.index(split) * count :][:count]


class GraphVectorEnv(VectorEnv):
    """Many agents, each on a graph of its own, looking for goal after goal for a fixed number of steps.

    An observation is one row: the goal and the agent's place (one-hot), the previous action or "none" (one-hot), a bit
    that is always set, the progress, and the sum of the rewards so far. At every reset each agent gets a graph: with as
    many agents as graphs, each graph has one. After its last step, the next one begins another episode, whatever the
    actions (Gymnasium's `AutoresetMode.NEXT_STEP`).

    Args:
        num_envs: agents B.
        split: which graphs: "train", "valid" or "test".
        graphs: number of graphs in the split.
        graph_seed: decides the graphs; `reset(seed=…)` decides the episodes.
        rules: places, actions, steps, patience and variant, see `fastweights.environments.graphs.Rules`.

    Raises:
        ValueError: where no graph is of this size, or a number makes no sense.
    """

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP, "render_modes": []}  # noqa: RUF012 - as Gymnasium has it

    def __init__(
        self, num_envs: int = 600, split: str = "train", graphs: int = 600, graph_seed: int = 666, **rules: Any
    ):
        self.rules = Rules(**rules)
        self.num_envs = num_envs
        self.moves = graphs_of(split, graphs, self.rules.places, self.rules.actions, graph_seed)
        low = np.zeros(self.rules.observation_size, np.float32)
        low[-1] = -PENALTY * self.rules.steps
        high = np.ones_like(low)
        high[-1] = GOAL_REWARD * self.rules.steps
        self.single_observation_space = spaces.Box(low, high)
        self.single_action_space = spaces.Discrete(self.rules.actions)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._rows = np.arange(num_envs)
        self._published = self.rules.variant == "as-published"
        self._over = True

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Begin an episode with every agent; `options={"graphs": […]}` says on which graph each."""
        super().reset(seed=seed)
        random, (steps, places) = self.np_random, (self.rules.steps, self.rules.places)
        self.graph = np.resize(random.permutation(len(self.moves)), self.num_envs)
        if options and "graphs" in options:
            self.graph = np.resize(np.asarray(options["graphs"]), self.num_envs)
        # where the goal would be placed anew after each step, and the agent, how far from it
        self._goals = random.integers(places, size=(steps + 1, self.num_envs))
        self._offsets = random.integers(1, places, (steps + 1, self.num_envs))
        if self._published:  # how far from the goal before
            self._goals[1:] = random.integers(1, places, (steps, self.num_envs))
        self.goal, self.place = self._goals[0], (self._goals[0] + self._offsets[0]) % places
        self._previous = np.full(self.num_envs, self.rules.actions)  # none
        self._timer = np.zeros(self.num_envs, np.int64)
        self._sum = np.zeros(self.num_envs)
        self._time = 0
        self._over = False
        return self._observations(), {}

    def step(
        self, actions: NDArray
    ) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Move every agent by its action `[B]`; "anew" says where agent and goal were placed at random."""
        never = np.zeros(self.num_envs, bool)
        if self._over:
            return self.reset()[0], np.zeros(self.num_envs), never, never.copy(), {}
        to = self.moves[self.graph, self.place, actions]
        arrived = to == self.goal
        rewards = GOAL_REWARD * arrived - PENALTY * (to == self.place)
        self._time += 1
        self._timer += ~arrived
        late = self._timer == self.rules.patience
        anew = arrived | late
        self._previous = np.array(actions)
        if self._published:
            self._timer[late] = 0
            self._previous[late] = self.rules.actions
        else:
            self._timer[anew] = 0
        places, goal = self.rules.places, self._goals[self._time]
        if self._published:
            goal = (self.goal + goal) % places
        self.place = np.where(anew, (goal + self._offsets[self._time]) % places, to)
        self.goal = np.where(anew, goal, self.goal)
        self._sum += rewards
        self._over = self._time == self.rules.steps
        return self._observations(), rewards, np.full(self.num_envs, self._over), never, {"anew": anew}

    def _observations(self) -> NDArray[np.float32]:
        """What the agents see `[B, 2·S + A + 4]`."""
        places = self.rules.places
        seen = np.zeros((self.num_envs, self.rules.observation_size), np.float32)
        seen[self._rows, self.goal] = 1
        seen[self._rows, places + self.place] = 1
        seen[self._rows, 2 * places + self._published + self._previous] = 1
        seen[:, -3] = 1
        seen[:, -2] = self._time / self.rules.steps
        if not self._published:
            seen[:, -1] = self._sum
        return seen


class GraphEnv(gymnasium.Env):
    """One agent; at every reset it is on another graph. Arguments as of `GraphVectorEnv`, but for num_envs.

    >>> observation, _ = GraphEnv(places=4, actions=2).reset(seed=0)
    >>> observation.shape
    (14,)
    """

    metadata = {"render_modes": []}  # noqa: RUF012 - as Gymnasium has it

    def __init__(self, **options: Any):
        self._all = GraphVectorEnv(1, **options)
        self.observation_space, self.action_space = self._all.single_observation_space, self._all.single_action_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Begin an episode; see `GraphVectorEnv.reset`."""
        super().reset(seed=seed)
        observations, found = self._all.reset(seed=seed, options=options)
        return observations[0], found

    def step(self, action: int) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Move by an action."""
        observations, rewards, over, never, found = self._all.step(np.array([action]))
        found = {key: bool(value[0]) for key, value in found.items()}
        return observations[0], float(rewards[0]), bool(over[0]), bool(never[0]), found
