"""Models: an embedding and an output head around a core, and the state that training carries."""

from fastweights.models.actor_critic import ActorCritic, actor_critic
from fastweights.models.contract import Model
from fastweights.models.tokens import TokenModel, token_model

__all__ = ["ActorCritic", "Model", "TokenModel", "actor_critic", "token_model"]
