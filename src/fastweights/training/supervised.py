"""The supervised loop: truncated backpropagation through time over streams whose state is carried on.

Everything that decides the next step is in the checkpoint (weights, optimizer, carried state, cursor, random state,
running sums), so a resumed run goes on bit for bit.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from fastweights import models, recipes, tasks
from fastweights.cores.contract import map_state, state_from_dict, state_to_dict
from fastweights.errors import UserError
from fastweights.ops import cpu
from fastweights.recipes import Recipe, TrainingOptions
from fastweights.tasks.contract import Batch
from fastweights.training import checkpoint
from fastweights.training.distributed import Group
from fastweights.training.evaluate import Meter, evaluate
from fastweights.training.memory import keep_freed_memory
from fastweights.training.runs import RunFolder


class Interrupted(Exception):
    """The user asked to stop; everything is saved."""


@dataclass
class Progress:
    """What a step can tell a progress bar."""

    step: int
    steps: int
    loss: float
    accuracy: float
    tokens: int


class Observer:
    """What watches a training; this one says nothing."""

    def step(self, progress: Progress) -> None:
        """A step has been made."""

    def validation(self, step: int, metrics: dict[str, Any], best: bool) -> None:
        """A validation has been made."""

    def note(self, text: str) -> None:
        """Something worth a line."""


def learning_rate(options: TrainingOptions, step: int) -> float:
    """The learning rate of an update, counted from 0.

    >>> learning_rate(TrainingOptions(steps=100, learning_rate=1.0, schedule="cosine"), 50)
    0.5
    """
    rate = options.learning_rate * min(1.0, (step + 1) / max(1, options.warmup_steps))
    if options.schedule == "cosine":
        rate *= (1 + math.cos(math.pi * step / options.steps)) / 2
    return rate


class Trainer:
    """One training run, in a run folder.

    >>> with RunFolder.create("runs/mine", config) as run:  # doctest: +SKIP
    ...     Trainer(recipe, run).train()

    Args:
        recipe: what to train.
        run: the locked run folder.
        data: the directory of the task's files, or None for generated data.
        observer: what is told of each step.
        group: the processes that train together, each with its share of the rows; only the first writes to `run`.
    """

    def __init__(
        self,
        recipe: Recipe,
        run: RunFolder,
        data: str | None = None,
        observer: Observer | None = None,
        group: Group | None = None,
    ):
        self.recipe, self.run, self.data = recipe, run, data
        self.options = recipe.training
        self.observer = observer or Observer()
        self.group = group or Group()
        self.task = tasks.build(recipe.task)
        keep_freed_memory()
        torch.manual_seed(self.options.seed)
        self.model = models.build(recipe.to_dict()["model"], self.task.vocabulary_size).to(self.group.device)
        self.parallel = self.model if self.group.size == 1 else DistributedDataParallel(self.model)
        torch.manual_seed(self.options.seed + self.group.rank)  # alike weights, different dropout
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=self.options.learning_rate, fused=True)
        rows = self.options.rows
        self.share = self.group.share_of(rows)
        self.batches = self.task.training_batches(data, rows, self.options.seed, self.share)
        self.state: Any = self.model.core.initial_state(rows // self.group.size)
        self.step = 0
        self.best_loss = math.inf
        self.is_good_enough = False
        self.meter = Meter()

    def train(self) -> dict[str, Any]:
        """Train to the recipe's last step, or until it is good enough, and return the last validation's metrics.

        Raises:
            Interrupted: on Ctrl-C or a polite kill, after saving.
            UserError: where the loss is no longer finite, or the disk is full.
        """
        metrics: dict[str, Any] = {}
        self.model.train()
        with _stop_politely() as stop:
            since = time.perf_counter()
            while self.step < self.options.steps and not self.is_good_enough:
                progress = self._update(next(self.batches))
                self.step += 1
                self.observer.step(progress)
                if self.step % self.options.report_every == 0:
                    since = self._report(since)
                if self.step % self.options.evaluate_every == 0 or self.step == self.options.steps:
                    metrics = self._validate()
                    self.is_good_enough = self._is_good_enough(metrics)
                    self.save()
                    since = time.perf_counter()
                if self.group.largest(stop.asked):  # all stop after the same step
                    self.save()
                    raise Interrupted
        return metrics

    def _report(self, since: float) -> float:
        """Record what was measured since the last report, and return the time of this one."""
        meter, now = self.meter.together(self.group), time.perf_counter()
        self.meter = Meter()
        if self.group.is_first:
            found, seconds = meter.result(), now - since
            train = {key: found[key] for key in ("loss", "answer_accuracy", "answer_perplexity")}
            timing = {"seconds": seconds, "tokens": meter.tokens, "tokens_per_s": meter.tokens / seconds}
            self.run.record({"step": self.step, "train": train}, timing)
        return now

    def _update(self, batch: Batch) -> Progress:
        batch = Batch(*(x.to(self.group.device) for x in batch))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.options, self.step)
        logits, state = self.parallel(batch.inputs, self.state, reads=batch.reads, valid=batch.valid)
        targets = batch.targets[batch.reads]
        losses = cross_entropy(logits, targets, reduction="none")
        (positions,) = self.group.total(losses.numel())
        # the processes' gradients will be averaged: hence times their number
        loss = losses.sum() * self.group.size / max(1, positions) + sum(self.model.core.losses.values())
        self.optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.options.clip_norm or math.inf, foreach=True)
        if not (math.isfinite(loss.item()) and math.isfinite(norm.item())):
            raise UserError(self._explain_non_finite(batch))
        self.optimizer.step()
        if self.task.carries_state:
            self.state = map_state(lambda tensor: tensor.detach(), state)
        answers = batch.answers[batch.reads]
        right = logits.detach().argmax(-1) == targets
        self.meter.add(losses.detach().double(), right, answers, batch)
        questions = int(answers.sum())
        return Progress(
            self.step + 1,
            self.options.steps,
            loss.item(),
            int(right[answers].sum()) / questions if questions else math.nan,
            int(batch.valid.sum()),
        )

    def _validate(self) -> dict[str, Any]:
        """Measure the validation split in the first process, while the others wait, and keep the best model."""
        metrics = self._validate_here() if self.group.is_first else {}
        self.group.wait()
        return metrics

    def _is_good_enough(self, metrics: dict[str, Any]) -> bool:
        """Whether the validation, known to the first process, reached the accuracy at which training ends."""
        goal = self.options.stop_at_accuracy
        return goal is not None and bool(self.group.largest(metrics.get("answer_accuracy", 0.0) >= goal))

    def _validate_here(self) -> dict[str, Any]:
        rows = self.options.evaluation_rows
        batches = self.task.evaluation_batches(self.data, "valid", rows)
        metrics = evaluate(self.model, batches, rows, self.state, carries_state=self.task.carries_state)
        if not math.isfinite(metrics["loss"]):
            raise UserError(
                f"The validation loss is not finite after step {self.step}. The last good checkpoint is untouched: "
                "lower training.learning_rate or set training.clip_norm, and train again."
            )
        best = metrics["loss"] < self.best_loss
        if best:
            self.best_loss = metrics["loss"]
            first_row = map_state(lambda tensor: tensor[:1], self.state)
            tensors = {"model": self.model.state_dict(), "state": state_to_dict(first_row)}
            checkpoint.save(self.run.best, checkpoint.flatten(tensors), self._metadata() | {"valid": metrics})
        self.run.record({"step": self.step, "valid": metrics})
        self.observer.validation(self.step, metrics, best)
        return metrics

    def _metadata(self) -> dict[str, Any]:
        return {
            "recipe": self.recipe.to_dict(),
            "generated": self.data is None,
            "step": self.step,
            **self._surroundings(),
        }

    def save(self) -> None:
        """Save all that the next step depends on, in all processes, to the run's last checkpoint, at once."""
        state = map_state(self.group.all_rows, self.state)
        random = self.group.all_rows(torch.get_rng_state().to(self.group.device).unsqueeze(0))
        meter = self.meter.together(self.group)
        if not self.group.is_first:
            self.meter = Meter()  # its sums are the first's now
            return
        self.meter = meter
        moments: dict[str, Any] = {}
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        for parameter, values in self.optimizer.state.items():
            moments[names[parameter]] = dict(values)
        tensors = {
            "model": self.model.state_dict(),
            "optimizer": moments,
            "state": state_to_dict(state),
            "random": {"torch": random},
        }
        metadata = self._metadata() | {
            "cursor": self.batches.state_dict(),
            "is_good_enough": self.is_good_enough,
            "best_loss": self.best_loss if math.isfinite(self.best_loss) else None,
            "meter": vars(self.meter),
        }
        checkpoint.save(self.run.last, checkpoint.flatten(tensors), metadata)

    def resume(self) -> None:
        """Go on from the run's last checkpoint, or from the start where there is none yet."""
        if not self.run.last.exists():
            if self.group.is_first:
                self.run.truncate_records(-1)
            return
        flat, metadata = checkpoint.load(self.run.last)
        if "cursor" not in metadata:
            raise UserError(f"{self.run.last} is a checkpoint that a run cannot go on from; train anew with --out.")
        if (
            recipes.load(None, metadata["recipe"]) != self.recipe
        ):  # read anew: a recipe may have learnt new values since
            raise UserError(
                f"{self.run.last} was saved by another recipe than {self.run.config}; train anew with --out."
            )
        tensors = checkpoint.unflatten(flat)
        self.model.load_state_dict(tensors["model"])
        for name, parameter in self.model.named_parameters():
            if name in tensors["optimizer"]:
                self.optimizer.state[parameter] = tensors["optimizer"][name]
        state = state_from_dict(self.state, tensors["state"])
        self.state = map_state(lambda tensor: tensor[self.share].to(self.group.device), state)
        random = tensors["random"]["torch"]
        if self.group.rank < len(random):
            torch.set_rng_state(random[self.group.rank].clone())  # torch misreads a part of a tensor
        self.batches.load_state_dict(metadata["cursor"])
        self.step = metadata["step"]
        self.is_good_enough = metadata.get("is_good_enough", False)
        self.best_loss = math.inf if metadata["best_loss"] is None else metadata["best_loss"]
        if not self.group.is_first:
            return
        groups = {int(group): counts for group, counts in metadata["meter"].pop("groups").items()}
        vars(self.meter).update(metadata["meter"], groups=groups)
        self.run.truncate_records(self.step)
        for key, value in self._surroundings().items():
            if metadata.get(key) != value:
                self.observer.note(
                    f"saved with {key} {metadata.get(key)}, resumed with {value}: results may differ in the last digits"
                )

    def _surroundings(self) -> dict[str, Any]:
        """What decides the last digits of a result beside recipe, data and seed."""
        return {
            "threads": torch.get_num_threads(),
            "processes": self.group.size,
            "device": self.group.device.type,
            "kernels": cpu.instruction_set(),
            "torch": torch.__version__,
        }

    def _explain_non_finite(self, batch: Batch) -> str:
        """Find the first tensor that is not finite, keep the batch, and say both."""
        where = "the gradient (all tensors of the forward pass are finite)"
        for name, tensor in first_non_finite(self.model, batch, self.state):
            where = f"{name} {list(tensor.shape)}"
            break
        path = self.run.path / f"non_finite_step_{self.step + 1}.safetensors"
        state = checkpoint.flatten({"state": state_to_dict(self.state)})
        checkpoint.save(path, {**batch._asdict(), **state}, self._metadata())
        groups = sorted(set(batch.groups[batch.valid].tolist()))
        return (
            f"The loss or its gradient is not finite at step {self.step + 1} (groups {groups}; batch kept in {path}); "
            f"it appeared first in {where}. The last good checkpoint is untouched: lower training.learning_rate or set "
            "training.clip_norm, and train again."
        )


def first_non_finite(model: nn.Module, batch: Batch, state: Any) -> Iterator[tuple[str, Tensor]]:
    """Run a batch again and give what is not finite, in the order of computation: weights, state, modules' outputs."""

    def bad(tensor: Any) -> bool:
        return isinstance(tensor, Tensor) and tensor.is_floating_point() and not tensor.isfinite().all()

    yield from ((f"the weight {name}", p) for name, p in model.named_parameters() if bad(p))
    parts = checkpoint.flatten(state_to_dict(state))
    yield from ((f"the carried state {name}", part) for name, part in parts.items() if bad(part))
    found: list[tuple[str, Tensor]] = []

    def watch(name: str):
        def hook(module, inputs, output):
            first = output[0] if isinstance(output, tuple) else output
            if bad(first):
                found.append((f"the output of {name or 'the model'}", first))

        return hook

    handles = [module.register_forward_hook(watch(name)) for name, module in model.named_modules()]
    try:
        with torch.no_grad():
            model(batch.inputs, state, reads=batch.reads, valid=batch.valid)
    finally:
        for handle in handles:
            handle.remove()
    yield from found


class _Stop:
    asked = False


@contextmanager
def _stop_politely() -> Iterator[_Stop]:
    """Turn Ctrl-C and a polite kill into a request that is met after the step; a second Ctrl-C stops at once."""
    stop = _Stop()

    def ask(number, frame):
        if stop.asked:
            raise KeyboardInterrupt
        stop.asked = True

    previous: dict[int, Any] = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, ask)
    except ValueError:  # not in the main thread: signals are somebody else's
        pass
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def load_model(path: str | Path) -> tuple[nn.Module, Any, dict[str, Any]]:
    """Load a trained model, the state it carried (row 0), and the checkpoint's metadata, in one line.

    >>> model, state, metadata = load_model("runs/mine")  # doctest: +SKIP

    Args:
        path: a checkpoint, or a run folder (its best checkpoint).

    Raises:
        UserError: where there is no such checkpoint, or it is truncated, or of another model.
    """
    path = Path(path)
    if path.is_dir():
        run = RunFolder.open(path)
        path = run.best if run.best.exists() else run.last
    flat, metadata = checkpoint.load(path)
    tensors = checkpoint.unflatten(flat)
    try:
        recipe = recipes.load(None, metadata["recipe"])
        task = tasks.build(recipe.task)
        model = models.build(recipe.to_dict()["model"], task.vocabulary_size)
        model.load_state_dict(tensors["model"])
        state = state_from_dict(model.core.initial_state(1), tensors["state"])
    except (KeyError, RuntimeError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{path} holds another model than its recipe says ({reason}); choose another checkpoint."
        ) from error
    return model.eval(), map_state(lambda tensor: tensor[:1], state), metadata
