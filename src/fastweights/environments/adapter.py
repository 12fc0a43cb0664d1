"""Any Gymnasium environment with discrete actions, POPGym's among them, as vectors of numbers for an agent."""

from __future__ import annotations

import gymnasium
from gymnasium.spaces.utils import flatdim
from gymnasium.vector import SyncVectorEnv
from gymnasium.wrappers import FlattenObservation


def make(name: str, rows: int, observation_size: int, actions: int) -> SyncVectorEnv:
    """As many environments of a registered name; observations are flattened, numbers out of a few become one-hot.

    Raises:
        ImportError: where POPGym is asked for and missing.
        ValueError: where there is no such environment, or its sizes are others.
    """
    if name.startswith("popgym-"):
        import popgym  # noqa: F401 - registers its environments
    try:
        one = gymnasium.make(name)
    except gymnasium.error.Error as error:
        raise ValueError(f"there is no environment {name} ({error})") from error
    if not isinstance(one.action_space, gymnasium.spaces.Discrete):
        raise ValueError(f"{name} has actions {one.action_space}, and an agent chooses one of a few")
    found = flatdim(one.observation_space), int(one.action_space.n)
    one.close()
    if found != (observation_size, actions):
        raise ValueError(
            f"{name} has observation_size {found[0]} and actions {found[1]}, not {observation_size} and {actions}"
        )
    return SyncVectorEnv([lambda: FlattenObservation(gymnasium.make(name, disable_env_checker=True))] * rows)
