"""A training episode of the paper's agent on graphs, and the same as one writes it without this library."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastweights.bench.measurements import Work, assemble, update
from fastweights.environments.reference import Episode as ReferenceEpisode
from fastweights.models import ActorCritic
from fastweights.objectives.a2c import A2C, Episode, rollout
from fastweights.tasks import GraphRL

if TYPE_CHECKING:
    from fastweights.environments.graph_env import GraphVectorEnv


def agent(backend: str, steps: int = 30) -> tuple[ActorCritic, GraphRL, A2C]:
    """The published agent, its task and its objective; the reference has torch's LSTM."""
    parts = assemble("graph-rl/fwm", backend, steps=steps)
    assert isinstance(parts.model, ActorCritic)
    assert isinstance(parts.task, GraphRL)
    assert isinstance(parts.objective, A2C)
    return parts.model, parts.task, parts.objective


def training_episode(work: Work, backend: str) -> Callable[[], object]:
    """An episode of B agents and the update from it; the reference steps each environment and each gradient alone."""
    model, task, objective = agent(backend, work.length)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, eps=1e-4, fused=True)
    environments = task.environments("train", work.batch_size)
    references = reference_episodes(environments)

    def run() -> None:
        if backend == "reference":
            loss = loss_one_by_one(model, references, task.steps, objective)
        else:
            loss = loss_of_rollout(model, environments, task.steps, objective)
        update(optimizer, loss)

    return run


def loss_of_rollout(model: ActorCritic, environments: GraphVectorEnv, steps: int, objective: A2C) -> Tensor:
    """The loss as training computes it: a rollout without gradients, then one call on the episode."""
    episode = rollout(model, environments, steps, seed=0)
    logits, values, _ = model(episode.observations, mask=episode.mask)
    return objective.losses(logits, values, episode)["loss"]


def reference_episodes(environments: GraphVectorEnv) -> list[ReferenceEpisode]:
    """The same environments as one object each."""
    environments.reset(seed=0)
    choose = Random(0).choice
    return [
        ReferenceEpisode(environments.transitions[graph].tolist(), environments.rules, choose)
        for graph in environments.graph
    ]


def loss_one_by_one(model: ActorCritic, references: list[ReferenceEpisode], steps: int, objective: A2C) -> Tensor:
    """The loss of a rollout that holds every step for the gradient."""
    observations = torch.tensor([reference.reset() for reference in references])
    state, history = None, []
    for _ in range(steps):
        logits, values, state = model(observations.unsqueeze(1), state)
        actions = torch.distributions.Categorical(logits=logits[:, 0]).sample()
        found = [reference.step(action) for reference, action in zip(references, actions.tolist(), strict=True)]
        observations = torch.tensor([observation for observation, _, _ in found])
        rewards = torch.tensor([reward for _, reward, _ in found])
        history.append((logits[:, 0], values[:, 0], actions, rewards))
    logits, values, actions, rewards = (torch.stack(parts, 1) for parts in zip(*history, strict=True))
    return objective.losses(logits, values, Episode(observations, actions, rewards, None))["loss"]
