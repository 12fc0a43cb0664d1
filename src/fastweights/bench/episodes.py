"""A training episode of the paper's agent on graphs, and the same as one writes it without this library."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import torch
from torch import Tensor

from fastweights.bench.measurements import TorchLSTM, Work
from fastweights.cores import LSTM, FastWeightMemory
from fastweights.environments.reference import Walk
from fastweights.models import ActorCritic
from fastweights.tasks import GraphRL
from fastweights.training import a2c

HIDDEN, MEMORY = 32, 16  # the paper's agent


def agent(task: GraphRL, backend: str) -> ActorCritic:
    """The published agent; the reference has torch's LSTM."""
    size = task.observation_size
    if backend == "reference":
        slow = TorchLSTM(size, HIDDEN)
    else:
        slow = LSTM(size, HIDDEN, forget_bias=0.0, second_bias=True, backend=backend)
    core = FastWeightMemory(
        size, memory_size=MEMORY, slow=slow, write_scale=1 / MEMORY, tanh_first_query=False, tanh_queries=False,
        backend=backend,
    )  # fmt: skip
    return ActorCritic(core, task.actions)


def training_episode(work: Work, backend: str) -> Callable[[], None]:
    """An episode of B agents and the update it is for; the reference steps each environment and each gradient alone."""
    task = GraphRL(variant="as-published", steps=work.length)
    model = agent(task, backend)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, eps=1e-4, fused=True)
    environments = task.environments("train", work.rows)
    walks = walks_of(environments)

    def run() -> None:
        if backend == "reference":
            loss = loss_one_by_one(model, walks, task)
        else:
            loss = a2c.losses(model, a2c.play(model, environments, task.steps, seed=0), task)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return run


def walks_of(environments: Any) -> list[Walk]:
    """The same environments as one object each."""
    environments.reset(seed=0)
    choose = Random(0).choice
    return [Walk(environments.moves[graph].tolist(), environments.rules, choose) for graph in environments.graph]


def loss_one_by_one(model: ActorCritic, walks: list[Walk], task: GraphRL) -> Tensor:
    """Play and keep all that the gradient needs, step by step."""
    seen = torch.tensor([walk.reset() for walk in walks])
    state, history = None, []
    for _ in range(task.steps):
        logits, values, state = model(seen.unsqueeze(1), state)
        actions = torch.distributions.Categorical(logits=logits[:, 0]).sample()
        found = [walk.step(action) for walk, action in zip(walks, actions.tolist(), strict=True)]
        seen = torch.tensor([observation for observation, _, _ in found])
        rewards = torch.tensor([reward for _, reward, _ in found])
        history.append((logits[:, 0], values[:, 0], actions, rewards))
    logits, values, actions, rewards = (torch.stack(parts, 1) for parts in zip(*history, strict=True))
    return a2c.losses_of(logits, values, a2c.Episode(seen, actions, rewards, None), task)["loss"]
