"""An agent: a policy and a value put on any core."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastweights.cores.contract import Core


class ActorCritic(nn.Module):
    """Choose actions and foresee rewards with any core that reads observations (the paper's section 4.2).

    >>> from fastweights.cores import FastWeightMemory
    >>> agent = ActorCritic(FastWeightMemory(17, hidden_size=32, memory_size=16), actions=3)
    >>> logits, values, state = agent(torch.randn(2, 30, 17))
    >>> logits.shape, values.shape
    (torch.Size([2, 30, 3]), torch.Size([2, 30]))

    Args:
        core: any core; its input_size is the size of an observation.
        actions: number of actions A.
    """

    def __init__(self, core: Core, actions: int):
        super().__init__()
        self.core = core
        self.policy = nn.Linear(core.output_size, actions)
        self.value = nn.Linear(core.output_size, 1)

    def forward(
        self, observations: Tensor, state: Any = None, *, valid: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Any]:
        """Return the policy's logits `[B, T, A]`, the values `[B, T]` and the new state.

        Args:
            observations: `[B, T, D]`.
            state: the core's state, or None at the start of an episode.
            valid: `[B, T]` bool, where the episode is still going on.
        """
        y, state = self.core(observations, state, valid=valid)
        return self.policy(y), self.value(y).squeeze(-1), state

    @torch.inference_mode()
    def act(self, observations: Tensor, noise: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Draw an action for each row `[B]`, and return the new state; there are no gradients of either.

        Args:
            observations: `[B, D]`.
            noise: `[B, A]` from Gumbel's distribution: the largest sum with the logits is a draw from the policy.
            state: as of `forward`.
        """
        y, state = self.core(observations.unsqueeze(1), state)
        return (self.policy(y[:, 0]) + noise).argmax(-1), state
