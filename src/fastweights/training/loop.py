"""What all trainings share: the run folder, the optimizer, records, validations, checkpoints and exact resume.

Everything that decides the next step is in the checkpoint (weights, optimizer, random state, running sums, and what a
kind of training adds), so a resumed run goes on bit for bit.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fastweights import recipes, tasks
from fastweights.cores.contract import map_state, state_from_dict, state_to_dict
from fastweights.errors import UserError
from fastweights.ops import cpu
from fastweights.recipes import Recipe, TrainingOptions
from fastweights.training import checkpoint
from fastweights.training.distributed import Group
from fastweights.training.memory import keep_freed_memory
from fastweights.training.runs import RunFolder


class Interrupted(Exception):
    """The user asked to stop; everything is saved."""


@dataclass
class Progress:
    """What a step can tell a progress bar: figures by name (NaN where there is none), and how much was worked off."""

    step: int
    steps: int
    figures: dict[str, float]
    count: int
    unit: str


class Observer:
    """What watches a training; this one says nothing."""

    def step(self, progress: Progress) -> None:
        """A step has been made."""

    def validation(self, step: int, metrics: dict[str, Any], best: bool) -> None:
        """A validation has been made."""

    def note(self, text: str) -> None:
        """Something worth a line."""


class Sums(Protocol):
    """Sums over many steps, which a checkpoint keeps."""

    count: int

    def together(self, group: Group) -> Self:
        """The sums over all processes of a group."""

    def record(self) -> dict[str, float]:
        """What is recorded of them."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def learning_rate(options: TrainingOptions, step: int) -> float:
    """The learning rate of an update, counted from 0.

    >>> learning_rate(TrainingOptions(steps=100, learning_rate=1.0, schedule="cosine"), 50)
    0.5
    """
    rate = options.learning_rate * min(1.0, (step + 1) / max(1, options.warmup_steps))
    if options.schedule == "cosine":
        rate *= (1 + math.cos(math.pi * step / options.steps)) / 2
    return rate


class Training:
    """One training run, in a run folder; a kind of training says what an update is and what is measured.

    Args:
        recipe: what to train.
        run: the locked run folder.
        data: the directory of the task's files, or None for generated data.
        observer: what is told of each step.
        group: the processes that train together, each with its share of the rows; only the first writes to `run`.
    """

    sums: ClassVar[type[Sums]]
    unit: ClassVar[str]

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
        self.model = recipes.build_model(recipe, self.task).to(self.group.device)
        self.parallel = self.model if self.group.size == 1 else DistributedDataParallel(self.model)
        torch.manual_seed(self.options.seed + self.group.rank)  # alike weights, different dropout
        self.optimizer = torch.optim.Adam(
            self.model.parameters(), lr=self.options.learning_rate, eps=self.options.adam_epsilon, fused=True
        )
        self.step = 0
        self.best_loss = math.inf
        self.is_good_enough = False
        self.meter = self.sums()

    def update(self) -> Progress:
        """Make one update."""
        raise TypeError(f"{type(self).__name__} does not define update")

    def measure(self) -> tuple[dict[str, Any], float]:
        """Measure the model on the validation split: the metrics, and what is to be small among them."""
        raise TypeError(f"{type(self).__name__} does not define measure")

    def describe(self) -> str:
        """What is learned from, in a few words."""
        raise TypeError(f"{type(self).__name__} does not define describe")

    def carried(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What the next update depends on besides: tensors (from all processes) and metadata."""
        return {}, {}

    def take_up(self, tensors: dict[str, Any], metadata: dict[str, Any]) -> None:
        """Go on from what `carried` gave."""

    def kept_with_the_best(self) -> dict[str, Any]:
        """Tensors that belong to the best model beside its weights."""
        return {}

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
                progress = self.update()
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
        self.meter = self.sums()
        if self.group.is_first:
            seconds = now - since
            timing = {"seconds": seconds, self.unit: meter.count, f"{self.unit}_per_s": meter.count / seconds}
            self.run.record({"step": self.step, "train": meter.record()}, timing)
        return now

    def descend(self, loss: Tensor) -> bool:
        """Follow a loss's gradient, clipped, at the step's learning rate; False, and no step, where it is infinite."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.options, self.step)
        self.optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.options.clip_norm or math.inf, foreach=True)
        if not (math.isfinite(loss.item()) and math.isfinite(norm.item())):
            return False
        self.optimizer.step()
        return True

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
        metrics, loss = self.measure()
        if not math.isfinite(loss):
            raise UserError(
                f"The validation loss is not finite after step {self.step}. The last good checkpoint is untouched: "
                "lower training.learning_rate or set training.clip_norm, and train again."
            )
        best = loss < self.best_loss
        if best:
            self.best_loss = loss
            tensors = {"model": self.model.state_dict(), **self.kept_with_the_best()}
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
        tensors, metadata = self.carried()
        random = self.group.all_rows(torch.get_rng_state().to(self.group.device).unsqueeze(0))
        meter = self.meter.together(self.group)
        if not self.group.is_first:
            self.meter = self.sums()  # its sums are the first's now
            return
        self.meter = meter
        moments: dict[str, Any] = {}
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        for parameter, values in self.optimizer.state.items():
            moments[names[parameter]] = dict(values)
        tensors |= {"model": self.model.state_dict(), "optimizer": moments, "random": {"torch": random}}
        metadata |= self._metadata() | {
            "is_good_enough": self.is_good_enough,
            "best_loss": self.best_loss if math.isfinite(self.best_loss) else None,
            "meter": self.meter.state_dict(),
        }
        checkpoint.save(self.run.last, checkpoint.flatten(tensors), metadata)

    def resume(self) -> None:
        """Go on from the run's last checkpoint, or from the start where there is none yet."""
        if not self.run.last.exists():
            if self.group.is_first:
                self.run.truncate_records(-1)
            return
        flat, metadata = checkpoint.load(self.run.last)
        if "meter" not in metadata:
            raise UserError(f"{self.run.last} is a checkpoint that a run cannot go on from; train anew with --out.")
        saved = recipes.load(None, metadata["recipe"])
        if recipes.prolonged(saved, self.options.steps) != self.recipe:
            raise UserError(
                f"{self.run.last} was saved by another recipe than {self.run.config}; train anew with --out."
            )
        tensors = checkpoint.unflatten(flat)
        self.model.load_state_dict(tensors["model"])
        for name, parameter in self.model.named_parameters():
            if name in tensors["optimizer"]:
                self.optimizer.state[parameter] = tensors["optimizer"][name]
        random = tensors["random"]["torch"]
        if self.group.rank < len(random):
            torch.set_rng_state(random[self.group.rank].clone())  # torch misreads a part of a tensor
        self.take_up(tensors, metadata)
        self.step = metadata["step"]
        self.is_good_enough = metadata.get("is_good_enough", False)
        self.best_loss = math.inf if metadata["best_loss"] is None else metadata["best_loss"]
        if not self.group.is_first:
            return
        self.meter.load_state_dict(metadata["meter"])
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

    def explain_non_finite(
        self, kept: dict[str, Tensor], state: Any, forward: Callable[[], Any], where: str
    ) -> UserError:
        """Find the first tensor that is not finite when the model runs again, keep what it read, and say all of it.

        Args:
            kept: what the model read, to be kept in the run folder.
            state: the state that it began with, or None.
            forward: runs the model on it.
            where: from which part of the data it came.
        """
        culprit = "the gradient (all tensors of the forward pass are finite)"
        for name, tensor in first_non_finite(self.model, state, forward):
            culprit = f"{name} {list(tensor.shape)}"
            break
        path = self.run.path / f"non_finite_step_{self.step + 1}.safetensors"
        if state is not None:
            kept = {**kept, **checkpoint.flatten({"state": state_to_dict(state)})}
        checkpoint.save(path, kept, self._metadata())
        return UserError(
            f"The loss or its gradient is not finite at step {self.step + 1} ({where}; batch kept in {path}); "
            f"it appeared first in {culprit}. The last good checkpoint is untouched: lower training.learning_rate or "
            "set training.clip_norm, and train again."
        )


def first_non_finite(model: nn.Module, state: Any, forward: Callable[[], Any]) -> Iterator[tuple[str, Tensor]]:
    """Run a model again and give what is not finite, in the order of computation: weights, state, modules' outputs."""

    def bad(tensor: Any) -> bool:
        return isinstance(tensor, Tensor) and tensor.is_floating_point() and not tensor.isfinite().all()

    yield from ((f"the weight {name}", p) for name, p in model.named_parameters() if bad(p))
    parts = {} if state is None else checkpoint.flatten(state_to_dict(state))
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
            forward()
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
        model = recipes.build_model(recipe, task)
        model.load_state_dict(tensors["model"])
        state = model.core.initial_state(1)
        if "state" in tensors:  # an agent starts each episode afresh
            state = state_from_dict(state, tensors["state"])
    except (KeyError, RuntimeError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{path} holds another model than its recipe says ({reason}); choose another checkpoint."
        ) from error
    return model.eval(), map_state(lambda tensor: tensor[:1], state), metadata
