"""Gymnasium's environments as tasks, for example the memory tasks of POPGym (Morad et al. 2023)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastweights.errors import UserError
from fastweights.specs import Size
from fastweights.tasks.contract import EnvironmentTask, Spaces, refuse_data

if TYPE_CHECKING:
    from gymnasium.vector import VectorEnv


class GymnasiumTask(EnvironmentTask):
    """Act in any registered environment with discrete actions; episodes that end early are padded.

    Args:
        environment: a registered name; those of POPGym begin with "popgym-".
        steps: the most steps of an episode.
    """

    required_arguments = ("mask",)

    def __init__(self, *, environment: str = "popgym-RepeatPreviousEasy-v0", steps: Size = 51):
        self.name, self.steps = environment, steps

    def prepare(self, data: str | None) -> Spaces:
        """The sizes of the environment's observations and actions."""
        refuse_data(data)
        environments = self.environments("train", 1)
        observations, actions = environments.single_observation_space, environments.single_action_space
        environments.close()
        from gymnasium import spaces

        assert observations.shape is not None and isinstance(actions, spaces.Discrete)  # as `make` gives them
        return Spaces(observations.shape[0], int(actions.n))

    def describe(self, data: str | None = None) -> str:
        return f"{self.name}, at most {self.steps} steps an episode"

    def environments(self, split: str, count: int) -> VectorEnv:
        """Vectorised environments; splits differ by their seeds alone.

        Raises:
            UserError: where a package is missing, or the environment does not exist or has no discrete actions.
        """
        try:
            from fastweights.environments.adapter import make

            return make(self.name, count)
        except ImportError as error:
            raise UserError(
                f"Environments need Gymnasium ({error}); install it with: pip install 'fastweights[rl]'"
            ) from error
        except ValueError as error:
            raise UserError(f"The task's environment does not fit: {error}.") from error
