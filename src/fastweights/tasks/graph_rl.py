"""Meta-reinforcement learning on random graphs (Schlag et al. 2021, section 4.2 and appendix I)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Le

from fastweights.environments.graphs import Rules, expected_return
from fastweights.errors import UserError
from fastweights.specs import Positive, Seed, Size
from fastweights.tasks.contract import EnvironmentTask, Spaces, refuse_data

if TYPE_CHECKING:
    from fastweights.environments.graph_env import GraphVectorEnv

SAMPLING = "all graphs are sampled before the first step"


class GraphRL(EnvironmentTask):
    """Find goal after goal on an unknown map; the graphs of training, validation and test differ.

    Args:
        variant: "paper", or "as-published" for what the authors' code does; see `fastweights.environments.graphs`.
        states: states (nodes) of a graph.
        actions: actions in each state, some of which are invalid there.
        steps: length of an episode.
        patience: steps without success after which agent and goal are reset.
        return_scale: factor on the return that the agent observes under the paper's rules.
        graphs: number of graphs in each of training, validation and test, all different.
        graph_seed: decides the graphs.
    """

    splits = ("valid", "test")

    def __init__(
        self,
        *,
        variant: Literal["paper", "as-published"] = "paper",
        states: Annotated[Size, Le(32), SAMPLING] = 5,
        actions: Annotated[Size, Le(32), SAMPLING] = 3,
        steps: Size = 30,
        patience: Size = 6,
        return_scale: Positive = 1.0,
        graphs: Annotated[Size, Le(10_000), SAMPLING] = 600,
        graph_seed: Seed = 666,
    ):
        self.rules = Rules(states, actions, steps, patience, variant, return_scale)
        self.steps, self.graphs, self.graph_seed = steps, graphs, graph_seed

    def prepare(self, data: str | None) -> Spaces:
        """The sizes of observations and actions by the rules."""
        refuse_data(data)
        return Spaces(self.rules.observation_size, self.rules.actions)

    def describe(self, data: str | None = None) -> str:
        rules = self.rules
        return (
            f"{self.graphs} random graphs of {rules.states} states and {rules.actions} actions, "
            f"{rules.steps} steps an episode, variant {rules.variant}"
        )

    def environments(self, split: str, count: int) -> GraphVectorEnv:
        try:
            from fastweights.environments.graph_env import GraphVectorEnv
        except ImportError as error:
            raise UserError(
                f"Environments need Gymnasium ({error}); install it with: pip install 'fastweights[rl]'"
            ) from error
        try:
            return GraphVectorEnv(count, split, self.graphs, self.graph_seed, **vars(self.rules))
        except ValueError as error:
            raise UserError(f"The graphs cannot be made: {error}.") from error

    def memory(self) -> int:
        return 8 * self.graphs * self.rules.states**2 * self.rules.timer_values  # the values of `expected_return`

    def bounds(self, split: str) -> dict[str, float]:
        """The expected returns on a split's graphs: of a random policy, and of an agent that knows the map."""
        transitions = self.environments(split, 1).transitions
        return {
            policy: float(expected_return(transitions, self.rules, policy).mean()) for policy in ("random", "optimal")
        }
