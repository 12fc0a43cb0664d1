"""Environments for agents with a memory; the import registers them with Gymnasium, if it is installed.

>>> import gymnasium, fastweights.environments
>>> envs = gymnasium.make_vec("fastweights/Graphs-v0", num_envs=600, variant="as-published")
>>> observations, _ = envs.reset(seed=0)
>>> observations.shape
(600, 17)
"""

from importlib.util import find_spec

if find_spec("gymnasium"):
    import gymnasium

    gymnasium.register(
        "fastweights/Graphs-v0",
        entry_point="fastweights.environments.graph_env:GraphEnv",
        vector_entry_point="fastweights.environments.graph_env:GraphVectorEnv",
    )
