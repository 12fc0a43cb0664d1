"""Adapter for any Gymnasium environment with discrete actions, such as those of POPGym: flat observations."""

from __future__ import annotations

import gymnasium
from gymnasium.vector import SyncVectorEnv
from gymnasium.wrappers import FlattenObservation


def make(name: str, num_envs: int) -> SyncVectorEnv:
    """Return a vector environment of `num_envs` copies; observations are flat `[B, D]`, discrete ones one-hot.

    Raises:
        ImportError: if the environment is one of POPGym's and POPGym is missing.
        ValueError: for an unknown environment, or actions that are not discrete.
    """
    if name.startswith("popgym-"):
        import popgym  # noqa: F401 - registers its environments
    try:
        env = gymnasium.make(name)
    except gymnasium.error.Error as error:
        raise ValueError(f"there is no environment {name} ({error})") from error
    if not isinstance(env.action_space, gymnasium.spaces.Discrete):
        raise ValueError(f"{name} has actions {env.action_space}, but they must be Discrete")
    env.close()
    return SyncVectorEnv([lambda: FlattenObservation(gymnasium.make(name, disable_env_checker=True))] * num_envs)
