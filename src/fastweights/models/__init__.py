"""Models: ends put on a core."""

from __future__ import annotations

from typing import Any

from fastweights import cores
from fastweights.models.actor_critic import ActorCritic
from fastweights.models.tokens import TokenModel

__all__ = ["ActorCritic", "TokenModel", "build", "build_actor_critic"]


def build(options: dict[str, Any], vocabulary_size: int) -> TokenModel:
    """Build a token model from a recipe's `model` part."""
    options = dict(options)
    core = cores.build(options.pop("core"), options.pop("embedding_size"))
    return TokenModel(vocabulary_size, core, **options)


def build_actor_critic(options: dict[str, Any], observation_size: int, actions: int) -> ActorCritic:
    """Build an agent from a recipe's `model` part; what concerns tokens has no meaning for it."""
    return ActorCritic(cores.build(options["core"], observation_size), actions)
