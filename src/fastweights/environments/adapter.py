"""Adapter for any Gymnasium environment with discrete actions, such as those of POPGym: flat observations."""

from __future__ import annotations

import gymnasium
from gymnasium.spaces.utils import flatdim
from gymnasium.vector import SyncVectorEnv
from gymnasium.wrappers import FlattenObservation


def make(name: str, num_envs: int, observation_size: int, actions: int) -> SyncVectorEnv:
    """Return a vector environment of `num_envs` copies; observations are flat `[B, D]`, discrete ones one-hot.

    Raises:
        ImportError: if the environment is one of POPGym's and POPGym is missing.
        ValueError: for an unknown environment, actions that are not discrete, or other sizes.
    """
    if name.startswith("popgym-"):
        import popgym  # noqa: F401 - registers its environments
    try:
        env = gymnasium.make(name)
    except gymnasium.error.Error as error:
        raise ValueError(f"there is no environment {name} ({error})") from error
    if not isinstance(env.action_space, gymnasium.spaces.Discrete):
        raise ValueError(f"{name} has actions {env.action_space}, but they must be Discrete")
    found = flatdim(env.observation_space), int(env.action_space.n)
    env.close()
    if found != (observation_size, actions):
        raise ValueError(
            f"{name} has observation_size {found[0]} and actions {found[1]}, not {observation_size} and {actions}"
        )
    return SyncVectorEnv([lambda: FlattenObservation(gymnasium.make(name, disable_env_checker=True))] * num_envs)
