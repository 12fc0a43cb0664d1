"""Gymnasium's environments as tasks, for example the memory tasks of POPGym (Morad et al. 2023)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastweights.errors import UserError
from fastweights.tasks.contract import ControlTask

if TYPE_CHECKING:
    from gymnasium.vector import VectorEnv


class GymnasiumTask(ControlTask):
    """Act in any registered environment with discrete actions; episodes that end early wait for the others.

    Args:
        environment: a registered name; those of POPGym begin with "popgym-".
        observation_size: numbers in an observation, when it is flattened.
        actions: number of actions.
        steps: the most steps that an episode is played.
        discount: γ, what a reward is worth a step earlier.
        value_weight: weight of the value's squared error in the loss.
        entropy_weight: weight of the policy's entropy, which the loss rewards.
    """

    def __init__(
        self,
        *,
        environment: str = "popgym-RepeatPreviousEasy-v0",
        observation_size: int = 4,
        actions: int = 4,
        steps: int = 51,
        discount: float = 0.9,
        value_weight: float = 0.1,
        entropy_weight: float = 0.03,
    ):
        super().__init__(discount, value_weight, entropy_weight)
        for name, value in {"observation_size": observation_size, "actions": actions, "steps": steps}.items():
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        self.name, self.observation_size, self.actions, self.steps = environment, observation_size, actions, steps

    def describe(self) -> str:
        return f"{self.name}, at most {self.steps} steps an episode"

    def environments(self, split: str, rows: int) -> VectorEnv:
        """As many environments; splits differ by their seeds alone."""
        try:
            from fastweights.environments.adapter import make

            return make(self.name, rows, self.observation_size, self.actions)
        except ImportError as error:
            raise UserError(
                f"Environments need Gymnasium ({error}); install it with: pip install 'fastweights[rl]'"
            ) from error
        except ValueError as error:
            raise UserError(f"The task's environment does not fit: {error}.") from error
