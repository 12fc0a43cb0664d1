"""Meta-reinforcement learning on random graphs (Schlag et al. 2021, section 4.2 and appendix I)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastweights.environments.graphs import Rules, expected_reward
from fastweights.errors import UserError
from fastweights.tasks.contract import ControlTask

if TYPE_CHECKING:
    from fastweights.environments.walks import GraphVectorEnv


class GraphRL(ControlTask):
    """Find goal after goal on a map that the agent has never seen; it learns on some graphs and is asked on others.

    Args:
        variant: "paper", or "as-published" for what the authors' code does; see `fastweights.environments.graphs`.
        places: places of a graph.
        actions: actions, of which each place has some that lead nowhere.
        steps: length of an episode.
        patience: steps without success after which agent and goal are placed anew.
        graphs: number of graphs in each of training, validation and test; none is in two of them.
        graph_seed: decides the graphs.
        discount: γ, what a reward is worth a step earlier.
        value_weight: weight of the value's squared error in the loss.
        entropy_weight: weight of the policy's entropy, which the loss rewards.
    """

    splits = ("valid", "test")

    def __init__(
        self,
        *,
        variant: str = "paper",
        places: int = 5,
        actions: int = 3,
        steps: int = 30,
        patience: int = 6,
        graphs: int = 600,
        graph_seed: int = 666,
        discount: float = 0.9,
        value_weight: float = 0.1,
        entropy_weight: float = 0.03,
    ):
        super().__init__(discount, value_weight, entropy_weight)
        self.rules = Rules(places, actions, steps, patience, variant)
        if graphs < 1:
            raise ValueError(f"graphs is {graphs}; there must be at least 1")
        self.actions, self.steps, self.observation_size = actions, steps, self.rules.observation_size
        self.graphs, self.graph_seed = graphs, graph_seed

    def describe(self) -> str:
        rules = self.rules
        return (
            f"{self.graphs} random graphs of {rules.places} places and {rules.actions} actions, "
            f"{rules.steps} steps an episode, variant {rules.variant}"
        )

    def environments(self, split: str, rows: int) -> GraphVectorEnv:
        try:
            from fastweights.environments.walks import GraphVectorEnv
        except ImportError as error:
            raise UserError(
                f"Environments need Gymnasium ({error}); install it with: pip install 'fastweights[rl]'"
            ) from error
        try:
            return GraphVectorEnv(rows, split, self.graphs, self.graph_seed, **vars(self.rules))
        except ValueError as error:
            raise UserError(f"The graphs cannot be made: {error}.") from error

    def bounds(self, split: str) -> dict[str, float]:
        """The expected reward on a split's graphs of an agent that knows the map, and of one that acts at random."""
        moves = self.environments(split, 1).moves
        return {agent: float(expected_reward(moves, self.rules, agent).mean()) for agent in ("random", "best")}
