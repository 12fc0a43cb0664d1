"""Advantage actor-critic (A2C; Mnih et al. 2016) for any core: play an episode, then learn from it in one call.

The agent plays step by step without gradients. For the gradient the core reads the whole episode `[B, T, D]` at once,
as it reads a text, so that the fused ops run; the state law says that this is the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastweights.errors import UserError
from fastweights.models import ActorCritic
from fastweights.tasks import ControlTask
from fastweights.training.distributed import Group
from fastweights.training.loop import Progress, Training

if TYPE_CHECKING:
    from gymnasium.vector import VectorEnv

EVALUATION_SEED = 0x5EED  # of episodes that are the same in every evaluation


class Episode(NamedTuple):
    """What B agents saw `[B, T, D]`, did and got `[B, T]`; valid `[B, T]` is None where all played to the end."""

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    valid: Tensor | None

    @property
    def moves(self) -> int:
        """The number of actions."""
        return self.actions.numel() if self.valid is None else int(self.valid.sum())


def policy_noise(seed: int, *shape: int) -> Tensor:
    """Noise from Gumbel's distribution, to draw an episode's actions with; see `ActorCritic.act`."""
    apart = np.random.SeedSequence(seed, spawn_key=(1,))  # from what the environments draw with the same seed
    return torch.from_numpy(np.random.default_rng(apart).standard_exponential(shape, np.float32)).log_().neg_()


def play(model: ActorCritic, environments: VectorEnv, steps: int, seed: int) -> Episode:
    """Let a model act from a reset until all episodes have ended, with actions drawn from its policy.

    Args:
        model: the agent.
        environments: B of them.
        steps: the most steps T that an episode can have.
        seed: of the environments' randomness and of the actions.
    """
    rows, size = environments.num_envs, model.core.input_size
    device = model.policy.weight.device
    seen, rewards = torch.empty(steps, rows, size), torch.zeros(steps, rows)
    actions, playing = torch.zeros(steps, rows, dtype=torch.int64), torch.zeros(steps, rows, dtype=torch.bool)
    noise = policy_noise(seed, steps, rows, model.policy.out_features).to(device)
    now, _ = environments.reset(seed=seed)
    over = np.zeros(rows, bool)
    state, step = model.core.acting_state(rows, steps), 0
    while step < steps and not over.all():
        playing[step] = torch.from_numpy(~over)
        seen[step] = torch.from_numpy(now)
        chosen, state = model.act(seen[step].to(device), noise[step], state)
        actions[step] = chosen
        now, got, terminated, truncated, _ = environments.step(actions[step].numpy())
        rewards[step] = torch.from_numpy(np.where(over, 0.0, got))
        over |= terminated | truncated
        step += 1
    seen, actions, rewards, playing = (x[:step].to(device).transpose(0, 1) for x in (seen, actions, rewards, playing))
    return Episode(seen, actions, rewards, None if playing.all() else playing)


def returns(rewards: Tensor, discount: float) -> Tensor:
    """What each step's reward and all later, discounted ones sum up to `[B, T]`; nothing comes after the last.

    >>> returns(torch.tensor([[0.0, 1.0, 2.0]]), 0.5)
    tensor([[1., 2., 2.]])
    """
    sums = rewards.clone()
    for step in reversed(range(rewards.shape[1] - 1)):
        sums[:, step] += discount * sums[:, step + 1]
    return sums


def losses(model: ActorCritic, episode: Episode, task: ControlTask) -> dict[str, Tensor]:
    """The loss of an episode and its parts, from one call of the core on all that was seen; see `losses_of`."""
    logits, values, _ = model(episode.observations, valid=episode.valid)
    found = losses_of(logits, values, episode, task)
    return found | {"loss": found["loss"] + sum(model.core.losses.values())}


def losses_of(logits: Tensor, values: Tensor, episode: Episode, task: ControlTask) -> dict[str, Tensor]:
    """The loss of an episode and its parts, means over all steps that were played.

    Args:
        logits: of the policy `[B, T, A]`.
        values: what the agent foresaw `[B, T]`.
        episode: what it did and got.
        task: its discount and the weights of the parts.

    Returns:
        "loss", and in it "policy_loss" (minus the advantage times the logarithm of the chosen action's probability),
        "value_loss" (the advantage's square) and "entropy" (of the policy).
    """
    log_policy = logits.log_softmax(-1)
    advantage = returns(episode.rewards, task.discount) - values
    chosen = log_policy.gather(-1, episode.actions.unsqueeze(-1)).squeeze(-1)
    parts = {
        "policy_loss": -(chosen * advantage.detach()),
        "value_loss": advantage.square(),
        "entropy": -(log_policy.exp() * log_policy).sum(-1),
    }
    parts = {name: (x if episode.valid is None else x[episode.valid]).mean() for name, x in parts.items()}
    loss = parts["policy_loss"] + task.value_weight * parts["value_loss"] - task.entropy_weight * parts["entropy"]
    return {"loss": loss, **parts}


class Sums:
    """Sums over many episodes."""

    def __init__(self) -> None:
        self.updates = self.episodes = self.count = 0
        self.reward = 0.0
        self.parts: dict[str, float] = {}

    def add(self, episode: Episode, parts: dict[str, float]) -> None:
        """Add the episodes of one update, and the parts of its loss."""
        self.updates += 1
        self.episodes += episode.rewards.shape[0]
        self.count += episode.moves
        self.reward += episode.rewards.sum(dtype=torch.float64).item()
        for name, part in parts.items():
            self.parts[name] = self.parts.get(name, 0.0) + part

    def together(self, group: Group) -> Sums:
        """These: there is one process."""
        return self

    def record(self) -> dict[str, float]:
        """The mean reward of an episode, and the mean parts of the loss."""
        means = {name: part / max(self.updates, 1) for name, part in self.parts.items()}
        return {"reward": self.reward / max(self.episodes, 1), **means}

    def state_dict(self) -> dict[str, Any]:
        return vars(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


class Trainer(Training):
    """A training in environments; each update is an episode of `training.rows` agents, whose state begins afresh.

    Episodes are seeded by the run's seed and their number, so that there is no cursor to keep.

    Raises:
        UserError: where several processes train together.
    """

    sums = Sums
    unit = "moves"

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        if self.group.size > 1:
            raise UserError("An agent trains in one process; start it without torchrun.")
        self.environments = self.task.environments("train", self.options.rows)

    def describe(self) -> str:
        return self.task.describe()

    def update(self) -> Progress:
        """Play an episode and learn from it."""
        seed = int(np.random.SeedSequence([self.options.seed, self.step]).generate_state(1)[0])
        episode = play(self.model, self.environments, self.task.steps, seed)
        found = losses(self.parallel, episode, self.task)
        if not self.descend(found["loss"]):
            kept = {name: x for name, x in episode._asdict().items() if x is not None}
            raise self.explain_non_finite(
                kept, None, lambda: self.model(episode.observations, valid=episode.valid), "an episode"
            )
        self.meter.add(episode, {name: part.item() for name, part in found.items()})
        figures = {"reward": episode.rewards.sum(1).mean().item(), "entropy": found["entropy"].item()}
        return Progress(self.step + 1, self.options.steps, figures, episode.moves, self.unit)

    def measure(self) -> tuple[dict[str, Any], float]:
        """The mean reward on each of the task's splits; the best model is that with the highest on the first."""
        rewards = [
            evaluate(self.model, self.task, split, self.options.evaluation_rows)["reward"] for split in self.task.splits
        ]
        names = ("reward", *(f"{split}_reward" for split in self.task.splits[1:]))
        return dict(zip(names, rewards, strict=True)), -rewards[0]


def evaluate(model: ActorCritic, task: ControlTask, split: str, rows: int, episodes: int = 1) -> dict[str, Any]:
    """Let a model act on a split, the same episodes each time, and return what it earned.

    Args:
        model: the agent.
        task: what it acts in.
        split: such as "valid".
        rows: agents that act side by side.
        episodes: of each of them.

    Returns:
        The mean "reward" of an episode, its standard "error", and the number of "episodes".

    Raises:
        UserError: where the agent reads observations of another size, or has other actions.
    """
    refuse_misfits(model, task)
    environments = task.environments(split, rows)
    was_training = model.training
    model.eval()
    played = [play(model, environments, task.steps, EVALUATION_SEED + i).rewards for i in range(episodes)]
    model.train(was_training)
    environments.close()
    sums = torch.cat(played).sum(1, dtype=torch.float64)
    error = sums.std(correction=0).item() / sums.numel() ** 0.5
    return {"reward": sums.mean().item(), "error": error, "episodes": sums.numel()}


def refuse_misfits(model: ActorCritic, task: ControlTask) -> None:
    """Refuse an agent that does not fit a task.

    Raises:
        UserError: naming what differs.
    """
    sizes = {
        "observations of size": (model.core.input_size, task.observation_size),
        "actions:": (model.policy.out_features, task.actions),
    }
    for what, (own, wanted) in sizes.items():
        if own != wanted:
            raise UserError(f"The agent was made for {what} {own}, and here it is {wanted}; choose another checkpoint.")
