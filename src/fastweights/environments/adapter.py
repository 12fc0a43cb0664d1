"""Any Gymnasium environment with discrete actions, POPGym's among them, as vectors of numbers for an agent."""

from __future__ import annotations

import gymnasium
from gymnasium.vector import SyncVectorEnv
from gymnasium.wrappers import FlattenObservation


def make(name: str, count: int) -> SyncVectorEnv:
    """So many environments of a registered name; observations are flattened, discrete ones become one-hot.

    Raises:
        ImportError: where a POPGym environment is named and POPGym is missing.
        ValueError: where there is no such environment, or its actions are not discrete.
    """
    if name.startswith("popgym-"):
        import popgym  # noqa: F401 - registers its environments
    try:
        one = gymnasium.make(name)
    except gymnasium.error.Error as error:
        raise ValueError(f"there is no environment {name} ({error})") from error
    if not isinstance(one.action_space, gymnasium.spaces.Discrete):
        raise ValueError(f"{name} has actions {one.action_space}, and an agent needs discrete ones")
    one.close()
    return SyncVectorEnv([lambda: FlattenObservation(gymnasium.make(name, disable_env_checker=True))] * count)
