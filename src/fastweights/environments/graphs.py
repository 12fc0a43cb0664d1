"""Random directed graphs with labelled edges, and what can be earned on them (Schlag et al. 2021, appendix I).

N graphs with S places and A actions are one array `moves` `[N, S, A]`: where an action leads from a place, which is the
place itself where the action is not valid there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

GOAL_REWARD, PENALTY = 10.0, 0.05
VARIANTS = ("paper", "as-published")
FRUITLESS_DRAWS = 20  # of at least 1,000 graphs each, before the search for more graphs is given up


@dataclass(frozen=True)
class Rules:
    """The rules of an episode; agent and goal are placed at random, apart, again whenever the agent gets there.

    "paper" is what sections 4.2 and I say: both are placed anew, too, `patience` steps after they were placed, and the
    agent sees the sum of its rewards so far. "as-published" is what the authors' code does, which differs in this:

    - the input for the reward is always 0;
    - the previous action stands one index higher than its place, so that none of them ever sets the first of its
      inputs, and "none" falls on the bit that is always set;
    - the timer counts only steps that do not reach the goal, and goes on when the goal is reached;
    - where the timer runs out, the previous action becomes "none";
    - the goal is never placed anew where it was.

    Args:
        places: S.
        actions: A.
        steps: length of an episode.
        patience: steps without success after which agent and goal are placed anew.
        variant: "paper" or "as-published".

    Raises:
        ValueError: where no graph is of this size, or a number makes no sense.
    """

    places: int = 5
    actions: int = 3
    steps: int = 30
    patience: int = 6
    variant: str = "paper"

    def __post_init__(self):
        check_size(self.places, self.actions)
        for name in ("steps", "patience"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; an episode needs at least 1")
        if self.variant not in VARIANTS:
            raise ValueError(f'variant is "{self.variant}"; it must be "paper" or "as-published"')

    @property
    def observation_size(self) -> int:
        """Goal, place, previous action or none, a bit that is always set, progress, reward: 17 in the paper."""
        return 2 * self.places + self.actions + 4


def check_size(places: int, actions: int) -> None:
    """Refuse sizes of which there is no graph.

    Raises:
        ValueError: where a place could not be left, or the 2·S edges of listing 1 have no room.
    """
    if places < 2 or actions < 2:
        raise ValueError(
            f"there is no graph of {places} places and {actions} actions: every place is left by one action and "
            "reached by another; give at least 2 places and 2 actions"
        )


def sample_graphs(
    count: int, places: int, actions: int, random: np.random.Generator, unlike: NDArray | None = None
) -> NDArray[np.int64]:
    """Draw different graphs by the rules of listing 1: moves `[N, S, A]`, none of them in `unlike`.

    Connectivity is tested by boolean reachability; the listing's own test also rejects strongly connected graphs that
    are periodic, and overflows from 12 places on.

    >>> sample_graphs(600, 5, 3, np.random.default_rng(0)).shape
    (600, 5, 3)

    Raises:
        ValueError: where there is no graph of this size, or not enough different ones.
    """
    check_size(places, actions)
    seen = set() if unlike is None else {graph.tobytes() for graph in unlike}
    found: list[NDArray] = []
    fruitless = 0
    while len(found) < count:
        before = len(found)
        for graph in _draw(max(1000, count), places, actions, random):
            if len(found) < count and graph.tobytes() not in seen:
                seen.add(graph.tobytes())
                found.append(graph)
        fruitless = fruitless + 1 if len(found) == before else 0
        if fruitless == FRUITLESS_DRAWS:
            raise ValueError(
                f"there are not enough graphs of {places} places and {actions} actions: {len(seen)} were found; "
                "ask for fewer graphs, or more places or actions"
            )
    return np.stack(found) if found else np.empty((0, places, actions), np.int64)


def _draw(count: int, places: int, actions: int, random: np.random.Generator) -> NDArray[np.int64]:
    """Follow listing 1 for many graphs at once, and keep those that it does not reject."""
    graph, place = np.arange(count), np.arange(places)
    moves = np.tile(place[:, None], (count, 1, actions))  # no action is valid yet
    # every place can be left by at least one action
    to = (place + random.integers(1, places, (count, places))) % places
    moves[graph[:, None], place, random.integers(actions, size=(count, places))] = to
    # every place can be reached by at least one action that had no use yet
    kept = np.ones(count, bool)
    for to in place:
        free = moves == place[:, None]
        free[:, to] = False
        kept &= free.any((1, 2))
        lots = np.where(free, random.random(moves.shape), -1.0)
        moves.reshape(count, -1)[graph, lots.reshape(count, -1).argmax(1)] = to
    return moves[kept & (distances(moves) < places).all((1, 2))]


def distances(moves: NDArray) -> NDArray[np.int64]:
    """The fewest steps from each place to each other `[N, S, S]`; S where there is no way."""
    places = moves.shape[1]
    edges = (moves[..., None] == np.arange(places)).any(2)
    reached = np.broadcast_to(np.eye(places, dtype=bool), edges.shape)
    steps = np.zeros(edges.shape, np.int64)
    for _ in range(places):
        steps += ~reached
        reached = reached | reached @ edges
    return steps


def expected_reward(moves: NDArray, rules: Rules, agent: str) -> NDArray[np.float64]:
    """The exact expected reward of an episode on each graph `[N]`, by dynamic programming.

    >>> graphs = sample_graphs(600, 5, 3, np.random.default_rng(0))
    >>> [round(expected_reward(graphs, Rules(), agent).mean()) for agent in ("random", "best")]
    [45, 172]

    Args:
        moves: the graphs `[N, S, A]`.
        rules: of the episode.
        agent: "best" knows the map and all else, "random" does anything.
    """
    choose = {"best": np.max, "random": np.mean}[agent]
    published = rules.variant == "as-published"
    apart = ~np.eye(rules.places, dtype=bool)
    goals_after = apart / (rules.places - 1) if published else np.full(apart.shape, 1 / rules.places)
    graph, place = np.arange(len(moves))[:, None, None], np.arange(rules.places)
    arrives = (moves[..., None] == place)[..., None]  # [N, S, A, goal, 1]
    penalty = PENALTY * (moves == place[:, None])[..., None, None]
    value = np.zeros((len(moves), rules.places, rules.places, rules.patience))  # [N, place, goal, timer]
    for _ in range(rules.steps):
        by_goal = (value * apart[..., None]).sum(1) / (rules.places - 1)  # [N, goal, timer], the agent elsewhere
        anew = goals_after @ by_goal  # [N, goal before, timer], for agent and goal placed at random
        going_on = np.roll(value, -1, -1)
        going_on[..., -1] = anew[:, None, :, 0]  # the timer has run out
        after_goal = anew if published else anew[..., :1]
        reward = np.where(arrives, GOAL_REWARD + after_goal[:, None, None], going_on[graph, moves]) - penalty
        value = choose(reward, axis=2)
    return value[:, apart, 0].mean(1)
