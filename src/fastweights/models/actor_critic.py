"""An agent: a policy head and a value head on any core."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastweights import cores
from fastweights.cores.contract import Core, CoreSpec, Losses, call_core
from fastweights.models.contract import Model


class ActorCritic(Model):
    """Map observations to a policy and a value with any core (the paper's section 4.2).

    >>> from fastweights.cores import FastWeightMemory
    >>> agent = ActorCritic(FastWeightMemory(17, hidden_size=32, memory_size=16), num_actions=3)
    >>> logits, values, state = agent(torch.randn(2, 30, 17))
    >>> logits.shape, values.shape
    (torch.Size([2, 30, 3]), torch.Size([2, 30]))

    Args:
        core: any core; its input_size is the size of an observation.
        num_actions: number of actions A.
    """

    def __init__(self, core: Core, num_actions: int):
        super().__init__()
        self.core = core
        self.policy = nn.Linear(core.output_size, num_actions)
        self.value = nn.Linear(core.output_size, 1)

    def forward(
        self, observations: Tensor, state: Any = None, *, mask: Tensor | None = None, losses: Losses | None = None
    ) -> tuple[Tensor, Tensor, Any]:
        """Return the policy's logits `[B, T, A]`, the values `[B, T]` and the new state.

        Args:
            observations: `[B, T, D]`.
            state: the core's state, or None at the start of an episode.
            mask: `[B, T]` bool, False behind the end of an episode.
            losses: where the core adds terms of its own.
        """
        y, state = call_core(self.core, observations, state, mask=mask, losses=losses)
        return self.policy(y), self.value(y).squeeze(-1), state

    @torch.inference_mode()
    def act(self, observations: Tensor, noise: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Sample an action for each row `[B]`, and return the new state; without gradients.

        Args:
            observations: `[B, D]`.
            noise: `[B, A]` from Gumbel's distribution: the argmax of its sum with the logits is a sample of the policy.
            state: as in `forward`.
        """
        y, state = self.core(observations.unsqueeze(1), state)
        return (self.policy(y[:, 0]) + noise).argmax(-1), state


def actor_critic(observation_size: int, num_actions: int, *, core: CoreSpec = "fwm") -> ActorCritic:
    """Build an agent from a recipe's spec.

    Args:
        observation_size: size of an observation.
        num_actions: number of actions.
        core: the core's type and options, for example --model.core.memory_size 16.
    """
    return ActorCritic(cores.as_core(core, observation_size), num_actions)
