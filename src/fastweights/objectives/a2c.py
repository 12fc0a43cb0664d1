"""Advantage actor-critic (A2C; Mnih et al. 2016) for any core: a rollout, then the loss in one call on the episode.

The rollout goes step by step without gradients. The loss calls the core once on the whole episode `[B, T, D]`, so that
the fused ops run; a core for which the two differ is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastweights import specs
from fastweights.cores import Core, Losses
from fastweights.distributed import Group
from fastweights.errors import UserError
from fastweights.models import ActorCritic, actor_critic
from fastweights.objectives.contract import Metric, Objective, Step, Sums, bar
from fastweights.objectives.tokens import added_metrics, added_sums
from fastweights.specs import Fraction, NonNegative
from fastweights.tasks import EnvironmentTask, Spaces

if TYPE_CHECKING:
    from gymnasium.vector import VectorEnv

EVALUATION_SEED = 0x5EED  # the same episodes in every evaluation


class Episode(NamedTuple):
    """Observations `[B, T, D]`, actions and rewards `[B, T]`; mask `[B, T]`, False behind an episode's end, or None."""

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    mask: Tensor | None

    @property
    def environment_steps(self) -> int:
        """The number of steps of all environments."""
        return self.actions.numel() if self.mask is None else int(self.mask.sum())


def policy_noise(seed: int, *shape: int) -> Tensor:
    """Gumbel noise of a shape, to sample the actions of an episode with; see `ActorCritic.act`."""
    apart = np.random.SeedSequence(seed, spawn_key=(1,))  # independent of the environments' draws from the same seed
    return torch.from_numpy(np.random.default_rng(apart).standard_exponential(shape, np.float32)).log_().neg_()


def rollout(model: ActorCritic, environments: VectorEnv, steps: int, seed: int) -> Episode:
    """Sample an episode of each environment, with actions from the policy.

    Args:
        model: the agent.
        environments: B of them.
        steps: the most steps T of an episode.
        seed: of the environments' randomness and of the actions.
    """
    batch_size, size = environments.num_envs, model.core.input_size
    device = model.policy.weight.device
    observations, rewards = torch.empty(steps, batch_size, size), torch.zeros(steps, batch_size)
    actions = torch.zeros(steps, batch_size, dtype=torch.int64)
    running = torch.zeros(steps, batch_size, dtype=torch.bool)
    noise = policy_noise(seed, steps, batch_size, model.policy.out_features).to(device)
    now, _ = environments.reset(seed=seed)
    over = np.zeros(batch_size, bool)
    state, step = model.core.rollout_state(batch_size, steps), 0
    while step < steps and not over.all():
        running[step] = torch.from_numpy(~over)
        observations[step] = torch.from_numpy(now)
        chosen, state = model.act(observations[step].to(device), noise[step], state)
        actions[step] = chosen
        now, reward, terminated, truncated, _ = environments.step(actions[step].numpy())
        rewards[step] = torch.from_numpy(np.where(over, 0.0, reward))
        over |= terminated | truncated
        step += 1
    parts = (x[:step].to(device).transpose(0, 1) for x in (observations, actions, rewards, running))
    observations, actions, rewards, running = parts
    return Episode(observations, actions, rewards, None if running.all() else running)


def returns(rewards: Tensor, discount: float) -> Tensor:
    """The discounted return at each step `[B, T]`, without a bootstrap after the last.

    >>> returns(torch.tensor([[0.0, 1.0, 2.0]]), 0.5)
    tensor([[1., 2., 2.]])
    """
    sums = rewards.clone()
    for step in reversed(range(rewards.shape[1] - 1)):
        sums[:, step] += discount * sums[:, step + 1]
    return sums


class EpisodeSeeds:
    """The seed of each training episode, from the run's seed and the episode's number."""

    def __init__(self, seed: int):
        self._seed, self._next = seed, 0

    def __iter__(self) -> EpisodeSeeds:
        return self

    def __next__(self) -> int:
        seed = int(np.random.SeedSequence([self._seed, self._next]).generate_state(1)[0])
        self._next += 1
        return seed

    def state_dict(self) -> dict[str, Any]:
        return {"next": self._next}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._next = state["next"]


class A2C(Objective[EnvironmentTask, Spaces, ActorCritic]):
    """Policy gradient with a learned value as the baseline, on whole episodes from the initial state.

    Args:
        discount: γ, the discount of rewards per step.
        value_weight: weight of the value's squared error in the loss.
        entropy_weight: weight of the policy's entropy, subtracted from the loss.
    """

    task_type = EnvironmentTask
    headline = Metric("return", "return", "{:.2f}", higher_is_better=True)
    progress = (headline, Metric("entropy", "entropy", "{:.2f}"))
    summary = (headline,)
    unit = "environment_steps"
    data_parallel = False
    episodic = True
    model_builder: ClassVar[Callable[..., ActorCritic]] = staticmethod(actor_critic)

    def __init__(
        self, *, discount: Fraction = 0.9, value_weight: NonNegative = 0.1, entropy_weight: NonNegative = 0.03
    ):
        self.discount, self.value_weight, self.entropy_weight = discount, value_weight, entropy_weight
        self._environments: VectorEnv | None = None

    def check_core(self, task: EnvironmentTask, core: Core) -> None:
        super().check_core(task, core)
        if not core.is_exact(task.steps):
            raise UserError(
                f"{type(core).__name__} does not give the same in one call on an episode of {task.steps} steps as step "
                "by step, so A2C cannot train it; choose a core with exact state consistency, or a longer memory."
            )

    def build_model(self, options: Mapping[str, Any], interface: Spaces) -> ActorCritic:
        return specs.call("model", self.model_builder, options, interface.observation_size, interface.num_actions)

    def example(self, interface: Spaces) -> Tensor:
        return torch.zeros((1, 1, interface.observation_size))

    def source(
        self, task: EnvironmentTask, data: str | None, batch_size: int, seed: int, shard: slice = slice(None)
    ) -> EpisodeSeeds:
        self._environments = task.environments("train", batch_size)
        return EpisodeSeeds(seed)

    def check_data(self, task: EnvironmentTask, data: str | None) -> None:
        for split in ("train", *task.splits):
            task.environments(split, 1).close()

    def step(self, model: ActorCritic, task: EnvironmentTask, item: int, state: Any, group: Group) -> Step:
        """A rollout of all training environments, and its loss."""
        assert self._environments is not None, "call source first"
        episode = rollout(model, self._environments, task.steps, seed=item)
        added = Losses()
        logits, values, _ = model(episode.observations, mask=episode.mask, losses=added)
        parts = self.losses(logits, values, episode)
        loss = parts["loss"] + added.total()
        sums = {name: part.detach() for name, part in parts.items()} | {"loss": loss.detach()} | added_sums(added)
        sums |= {
            "return": episode.rewards.sum(dtype=torch.float64),
            "episodes": torch.tensor(episode.rewards.shape[0]),
            "updates": torch.tensor(1),
        }
        inputs = {name: x for name, x in episode._asdict().items() if x is not None}
        return Step(loss, None, sums, episode.environment_steps, inputs)

    def losses(self, logits: Tensor, values: Tensor, episode: Episode) -> dict[str, Tensor]:
        """The loss of an episode and its parts, means over all steps.

        Args:
            logits: of the policy `[B, T, A]`.
            values: of the value head `[B, T]`.
            episode: the rollout.

        Returns:
            "loss", and in it "policy_loss" (minus the advantage times the log-probability of the action), "value_loss"
            (the squared advantage) and "entropy" (of the policy).
        """
        log_policy = logits.log_softmax(-1)
        advantage = returns(episode.rewards, self.discount) - values
        chosen = log_policy.gather(-1, episode.actions.unsqueeze(-1)).squeeze(-1)
        parts = {
            "policy_loss": -(chosen * advantage.detach()),
            "value_loss": advantage.square(),
            "entropy": -(log_policy.exp() * log_policy).sum(-1),
        }
        parts = {name: (x if episode.mask is None else x[episode.mask]).mean() for name, x in parts.items()}
        loss = parts["policy_loss"] + self.value_weight * parts["value_loss"] - self.entropy_weight * parts["entropy"]
        return {"loss": loss, **parts}

    def metrics(self, sums: Sums) -> dict[str, Any]:
        """The mean return of an episode, and the mean parts of the loss."""
        total, updates = sums.values, sums.values["updates"]
        parts = {name: (total[name] / updates).item() for name in ("loss", "policy_loss", "value_loss", "entropy")}
        return {"return": (total["return"] / total["episodes"]).item(), **parts, **added_metrics(sums)}

    def evaluate(
        self,
        model: ActorCritic,
        task: EnvironmentTask,
        data: str | None,
        split: str,
        batch_size: int,
        state: Any = None,
        *,
        episodes: int | None = None,
        on_progress: Callable[[int], None] = lambda count: None,
    ) -> dict[str, Any]:
        """The mean "return" of an episode, its standard "error", the number of "episodes" and the task's "bounds".

        Raises:
            UserError: where a state is given.
        """
        if state is not None:
            raise UserError("An agent starts each episode from the initial state; give no other state.")
        found = self._evaluate(model, task, split, batch_size, 1 if episodes is None else episodes, on_progress)
        return found | {"bounds": task.bounds(split)}

    def _evaluate(
        self, model: ActorCritic, task: EnvironmentTask, split: str, batch_size: int, episodes: int,
        on_progress: Callable[[int], None] = lambda count: None,
    ) -> dict[str, Any]:  # fmt: skip
        environments = task.environments(split, batch_size)
        was_training = model.training
        model.eval()
        rewards = []
        for number in range(episodes):
            episode = rollout(model, environments, task.steps, EVALUATION_SEED + number)
            rewards.append(episode.rewards)
            on_progress(episode.environment_steps)
        model.train(was_training)
        environments.close()
        sums = torch.cat(rewards).sum(1, dtype=torch.float64)
        error = sums.std(correction=0).item() / sums.numel() ** 0.5
        return {"return": sums.mean().item(), "error": error, "episodes": sums.numel()}

    def validate(
        self, model: ActorCritic, task: EnvironmentTask, data: str | None, batch_size: int, state: Any
    ) -> dict[str, Any]:
        """The mean return on each of the task's splits; that on the first is the headline."""
        found = [self._evaluate(model, task, split, batch_size, 1)["return"] for split in task.splits]
        names = ("return", *(f"{split}_return" for split in task.splits[1:]))
        return dict(zip(names, found, strict=True))

    def summarize(self, metrics: Mapping[str, Any]) -> str:
        others = [f"{key.removesuffix('_return')} {metrics[key]:.2f}" for key in metrics if key.endswith("_return")]
        return "  ".join([super().summarize(metrics), *others])

    def table(self, metrics: Mapping[str, Any], task: EnvironmentTask) -> list[list[str]]:
        """The mean return of the agent beside the bounds of its task."""
        bounds = metrics.get("bounds") or task.bounds(metrics.get("split", "valid"))
        rows = {"the agent": metrics["return"]}
        rows |= {
            f"the agent, {key.removesuffix('_return')}": metrics[key] for key in metrics if key.endswith("_return")
        }
        rows |= {"random policy": bounds["random"], "known map": bounds["optimal"]} if bounds else {}
        best = max(bounds.values(), default=metrics["return"])
        lines = [[name, f"{value:.2f}", bar(value / best) if best > 0 else ""] for name, value in rows.items()]
        return [["", "return of an episode", ""], *lines]
