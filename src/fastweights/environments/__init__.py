"""Environments for agents with a memory; importing this registers them with Gymnasium, where it is installed.

>>> import gymnasium, fastweights.environments
>>> environments = gymnasium.make_vec("fastweights/Graphs-v0", num_envs=600, variant="as-published")
>>> observations, _ = environments.reset(seed=0)
>>> observations.shape
(600, 17)
"""

from importlib.util import find_spec

if find_spec("gymnasium"):
    import gymnasium

    gymnasium.register(
        "fastweights/Graphs-v0",
        entry_point="fastweights.environments.walks:GraphEnv",
        vector_entry_point="fastweights.environments.walks:GraphVectorEnv",
    )
