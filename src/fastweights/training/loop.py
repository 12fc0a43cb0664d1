"""The training loop: records, validations, early stopping, checkpoints and exact resume, for every objective.

A checkpoint holds all that the next step depends on (weights, optimizer, carried state, cursor of the data, random
state, running sums), so a resumed run continues bit for bit.
"""

from __future__ import annotations

import hashlib
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from annotated_types import Ge, Le
from torch import Tensor, nn

from fastweights import recipes, specs
from fastweights.cores.contract import map_state, state_from_dict, state_to_dict, tensors_of
from fastweights.distributed import Group
from fastweights.errors import UserError, reason
from fastweights.objectives import Objective, Step, Sums
from fastweights.ops import cpu
from fastweights.recipes import Assembly
from fastweights.specs import Count
from fastweights.tasks import Task
from fastweights.training import checkpoint
from fastweights.training.allocator import keep_freed_blocks
from fastweights.training.optimization import Optimization
from fastweights.training.runs import RunFolder


class Interrupted(Exception):
    """A signal, by its number, stopped the training; everything is saved."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


class Diverged(UserError):
    """The loss, its gradient or the validation's metrics are not finite."""


@dataclass
class Progress:
    """A step, for a progress bar: its number, additive statistics, and count in the objective's units."""

    step: int
    steps: int
    sums: Mapping[str, Tensor]
    count: int


class Observer:
    """A listener of a training; this one is silent."""

    def begin(self, objective: Objective) -> None:
        """The training begins."""

    def step(self, progress: Progress) -> None:
        """A step is done."""

    def validation(self, step: int, metrics: Mapping[str, Any], best: bool) -> None:
        """A validation is done."""

    def note(self, text: str) -> None:
        """Something worth a line."""


def run_config(assembly: Assembly, data: str | None) -> dict[str, Any]:
    """The configuration of a run folder: all that a run is made of, and the metric by which it is compared."""
    return {
        "recipe": assembly.recipe.to_dict(),
        "data": data,
        "files_sha256": files_digest(assembly.task, data),
        "interface": assembly.interface.to_dict(),
        "headline": assembly.objective.headline._asdict(),
    }


def files_digest(task: Task, data: str | None) -> str | None:
    """The SHA-256 of the files that a task reads, or None where it reads none.

    Raises:
        UserError: where one cannot be read.
    """
    files = task.files(data)
    try:
        digests = [hashlib.sha256(file.read_bytes()).digest() for file in files]
    except OSError as error:
        raise UserError(f"cannot read {error.filename} ({error.strerror}); check --data.") from error
    return hashlib.sha256(b"".join(digests)).hexdigest() if files else None


class Trainer:
    """One training run, in a run folder.

    >>> with RunFolder.create("runs/mine", config) as run:  # doctest: +SKIP
    ...     Trainer(recipes.assemble(recipe), run).train()

    Args:
        assembly: the recipe and its parts.
        run: the locked run folder.
        data: the directory of the task's files, or None for generated data.
        observer: the listener.
        group: the processes that train together; only the first writes to `run`.

    Raises:
        UserError: where the objective trains in one process only, or the batch cannot be divided.
    """

    def __init__(
        self,
        assembly: Assembly,
        run: RunFolder,
        data: str | None = None,
        observer: Observer | None = None,
        group: Group | None = None,
    ):
        self.recipe, self.task, self.objective, self.interface, model = assembly
        self.run, self.data, self.options = run, data, self.recipe.training
        self.observer, self.group = observer or Observer(), group or Group()
        if self.group.size > 1 and not self.objective.data_parallel:
            raise UserError(f"{type(self.objective).__name__} trains in one process; start it without torchrun.")
        keep_freed_blocks()
        self.model = model.to(self.group.device)
        torch.manual_seed(self.options.seed + self.group.rank)  # equal weights, different dropout
        self.optimization = Optimization(self.model, self.options)
        self.shard = self.group.shard(self.options.batch_size)
        self.source = self.objective.source(self.task, data, self.options.batch_size, self.options.seed, self.shard)
        self.state: Any = None
        self.step = 0
        self.best: float | None = None
        self.stopped_early = False
        self.sums, self.count = Sums(), 0
        self.recorded = False

    @property
    def finished(self) -> bool:
        """Whether the last step is done or training stopped early."""
        return self.stopped_early or self.step >= self.options.steps

    def train(self, until: int | None = None) -> dict[str, Any]:
        """Train to the last step or to early stopping, and return the metrics of the last validation.

        Args:
            until: a step at which training pauses, validated and saved; None for the last step.

        Raises:
            Interrupted: after SIGINT or SIGTERM, with everything saved.
            Diverged: where the loss, its gradient or the validation's metrics are not finite.
            UserError: where the disk is full.
        """
        metrics: dict[str, Any] = {}
        options = self.options
        end = options.steps if until is None else min(until, options.steps)
        self.model.train()
        self.observer.begin(self.objective)
        with _deferred_signals() as stop:
            since = time.perf_counter()
            while not self.finished and self.step < end:
                self.optimizer_step()
                self.step += 1
                last = self.step == end
                if self.step % options.report_every == 0:
                    since = self._report(since)
                if validates := self.step % options.evaluate_every == 0 or last:
                    metrics = self._validate()
                interrupted = int(self.group.all_reduce_max(stop.requested))  # all stop after the same step
                if last or interrupted or self.stopped_early or self._saves(validates):
                    self.save()
                if interrupted:
                    raise Interrupted(interrupted)
                if validates:
                    since = time.perf_counter()
        return metrics

    def _saves(self, validates: bool) -> bool:
        every = self.options.save_every
        return validates if every is None else self.step % every == 0

    def optimizer_step(self) -> None:
        """One step of the optimizer, on one batch or several.

        Raises:
            Diverged: where the loss or its gradient is not finite.
        """
        accumulated = self.options.accumulate
        sums, count, failure = Sums(), 0, None
        for _ in range(accumulated):
            item, carried = next(self.source), self.state
            result = self._forward(item)
            (result.loss if accumulated == 1 else result.loss / accumulated).backward()
            if failure is None and not math.isfinite(result.loss.item()):
                failure = item, result, carried
            sums.add(result.sums)
            count += result.count
            self.state = result.state
        self.group.average_gradients(self.optimization.parameters)
        if failure is None and not math.isfinite(self.optimization.step(self.step, result.lr_scale).item()):
            failure = item, result, carried
        if failure is not None:
            item, result, self.state = failure
            raise self._explain_non_finite(item, result)
        self.sums.add(sums.values)
        self.count += count
        self.observer.step(Progress(self.step + 1, self.options.steps, sums.values, count))

    def _forward(self, item: Any) -> Step:
        half = self.options.precision == "bfloat16"
        with torch.autocast(self.group.device.type, torch.bfloat16, enabled=half):
            return self.objective.step(self.model, self.task, item, self.state, self.group)

    def _report(self, since: float) -> float:
        """Record the metrics since the last report, and return the time of this one."""
        sums, now = self.sums.all_reduce(self.group), time.perf_counter()
        count = int(self.group.all_reduce_sum(self.count)[0])
        self.sums, self.count = Sums(), 0
        if self.group.is_first:
            seconds, unit = now - since, self.objective.unit
            timing = {"seconds": seconds, unit: count, f"{unit}_per_s": count / seconds}
            self._record({"step": self.step, "train": self.objective.metrics(sums)}, timing)
        return now

    def _validate(self) -> dict[str, Any]:
        """Evaluate in the first process, while the others wait; save the best model; decide on early stopping."""
        metrics: dict[str, Any] = {}
        is_best = False
        with self.optimization.evaluation_weights():
            if self.group.is_first:
                metrics, is_best = self._validate_here()
            self.group.barrier()
        self.optimization.after_validation(bool(self.group.all_reduce_max(is_best)))
        self.stopped_early = bool(self.group.all_reduce_max(self._stops_early(metrics)))
        return metrics

    def _stops_early(self, metrics: Mapping[str, Any]) -> bool:
        if not metrics:
            return False
        target, patience = self.options.early_stopping.target, self.options.early_stopping.patience
        headline = self.objective.headline
        reached = target is not None and headline.reaches(metrics[headline.name], target)
        return reached or (patience is not None and self.optimization.validations_since_best >= patience)

    def _validate_here(self) -> tuple[dict[str, Any], bool]:
        metrics = self.objective.validate(self.model, self.task, self.data, self.options.eval_batch_size, self.state)
        if not all(math.isfinite(value) for value in metrics.values() if isinstance(value, float)):
            raise Diverged(f"The validation's metrics are not finite after step {self.step}. {self._advice()}")
        value = metrics[self.objective.headline.name]
        is_best = self.objective.headline.is_better(value, self.best)
        if is_best:
            self.best = value
            tensors: dict[str, Any] = {"model": self.model.state_dict()}
            if self.state is not None:  # the state of the first row, from which evaluations start
                tensors["state"] = state_to_dict(map_state(lambda tensor: tensor[:1], self.state))
            checkpoint.save(self.run.best, checkpoint.flatten(tensors), self._metadata() | {"valid": metrics})
        self._record({"step": self.step, "valid": metrics})
        self.observer.validation(self.step, metrics, is_best)
        return metrics, is_best

    def _record(self, metrics: dict[str, Any], timing: dict[str, Any] | None = None) -> None:
        """Record metrics; a note says where earlier records were removed."""
        if self.recorded and not self.run.metrics.exists():
            self.observer.note(f"{self.run.metrics} was removed: its records begin again at step {self.step}")
        self.run.record(metrics, timing)
        self.recorded = True

    def _metadata(self) -> dict[str, Any]:
        return {
            "recipe": self.recipe.to_dict(),
            "interface": self.interface.to_dict(),
            "generated": self.data is None,
            "step": self.step,
            **self._environment(),
        }

    def save(self) -> None:
        """Save the last checkpoint: all that the next step depends on, of all processes."""
        state = None if self.state is None else map_state(self.group.all_gather, self.state)
        random = {"torch": torch.get_rng_state()}
        if self.group.device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(self.group.device)
        random = {name: self.group.all_gather(x.to(self.group.device).unsqueeze(0)) for name, x in random.items()}
        sums, (count,) = self.sums.all_reduce(self.group), self.group.all_reduce_sum(self.count)
        if not self.group.is_first:
            self.sums, self.count = Sums(), 0  # the first process has them now
            return
        self.sums, self.count = sums, int(count)
        tensors, plain = self.optimization.state_dict()
        tensors |= {"model": self.model.state_dict(), "random": random}
        tensors |= {} if state is None else {"state": state_to_dict(state)}
        metadata = self._metadata() | {
            "stopped_early": self.stopped_early,
            "best": self.best,
            "sums": self.sums.state_dict(),
            "count": self.count,
            "optimization": plain,
            "cursor": self.source.state_dict(),
        }
        checkpoint.save(self.run.last, checkpoint.flatten(tensors), metadata)
        if self.run.restore_config():
            self.observer.note(f"{self.run.config} was removed, and is written again")

    def resume(self) -> None:
        """Continue from the run's last checkpoint, or from the start where there is none yet.

        Raises:
            UserError: where the checkpoint is of another recipe, no run can continue from it, or the files changed.
        """
        self._check_files()
        if not self.run.last.exists():
            first_save = self.options.save_every or self.options.evaluate_every
            if any(record["step"] > first_save for record in self.run.records()):
                raise UserError(
                    f"{self.run.path} has lost {self.run.last.name}, which it resumes from; put it back, or train with "
                    "another --out."
                )
            if self.group.is_first:
                self.run.truncate_records(-1)
            return
        flat, metadata = checkpoint.load(self.run.last)
        if "cursor" not in metadata:
            raise UserError(f"{self.run.last} is a checkpoint that a run cannot resume from; train with another --out.")
        saved = recipes.load(metadata["recipe"])
        if recipes.with_more_steps(saved, self.options.steps) != self.recipe:
            raise UserError(
                f"{self.run.last} was saved by another recipe than {self.run.config}; train with another --out."
            )
        try:
            self._restore(checkpoint.unflatten(flat), metadata)
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError, UserError) as error:
            raise UserError(
                f"{self.run.last} holds no state of this run ({reason(error)[:200]}); train with another --out."
            ) from error
        if not self.group.is_first:
            return
        self.run.truncate_records(self.step)
        self.recorded = self.step >= min(self.options.report_every, self.options.evaluate_every)
        for key, value in self._environment().items():
            if metadata.get(key) != value:
                self.observer.note(
                    f"saved with {key} {metadata.get(key)}, resumed with {value}: results may differ in the last digits"
                )

    def _restore(self, tensors: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
        self.step = specs.check("step", metadata["step"], Annotated[int, Ge(0), Le(self.options.steps)])
        self.best = specs.check("best", metadata["best"], float | None)
        self.stopped_early = specs.check("stopped_early", metadata["stopped_early"], bool)
        self.model.load_state_dict(tensors["model"])
        self.optimization.load_state_dict(tensors, metadata["optimization"])
        self._restore_random(tensors["random"])
        if "state" in tensors:
            rows = self.options.batch_size // self.group.size
            state = state_from_dict(self.model.core.initial_state(rows), tensors["state"])
            if any(len(tensor) != self.options.batch_size for tensor in tensors_of(state)):
                raise ValueError("the carried state is of another batch size")
            self.state = map_state(lambda tensor: tensor[self.shard].to(self.group.device), state)
        cursor = specs.check("cursor", metadata["cursor"], dict[str, Count | list[Count] | list[list[Count]] | None])
        if [(key, type(cursor[key])) for key in cursor] != [(k, type(v)) for k, v in self.source.state_dict().items()]:
            raise ValueError("the cursor is of other data")
        self.source.load_state_dict(cursor)
        next(self.source)  # a cursor is wrong, too, where nothing can be read from it
        self.source.load_state_dict(cursor)
        if self.group.is_first:
            self.sums.load_state_dict(specs.check("sums", metadata["sums"], dict[str, float | list[float]]))
            if self.sums.values:
                self.objective.metrics(self.sums)
            self.count = specs.check("count", metadata["count"], Count)

    def _check_files(self) -> None:
        digest, config = files_digest(self.task, self.data), self.run.read_config()
        if digest is not None and "files_sha256" not in config:
            self.observer.note(f"{self.run.config} has no digest of the files in {self.data}: they may have changed")
        elif digest != config.get("files_sha256"):
            found = "generated data" if self.data is None else f"the files in {self.data} as they are now"
            raise UserError(
                f"{self.run.path} was trained on other data than {found}; give its own with --data, or train with "
                "another --out."
            )

    def _restore_random(self, random: Mapping[str, Tensor]) -> None:
        """Restore the generators of this process; a process that was not there keeps its own."""
        if self.group.rank >= len(random["torch"]):
            return
        torch.set_rng_state(random["torch"][self.group.rank].clone())  # torch misreads a view
        if "cuda" in random and self.group.device.type == "cuda":
            torch.cuda.set_rng_state(random["cuda"][self.group.rank].clone(), self.group.device)

    def _environment(self) -> dict[str, Any]:
        """What the last digits of a result depend on, besides recipe, data and seed."""
        return {
            "threads": torch.get_num_threads(),
            "processes": self.group.size,
            "device": self.group.device.type,
            "kernels": cpu.instruction_set(),
            "torch": torch.__version__,
        }

    def _advice(self) -> str:
        saved = f"The checkpoint of an earlier step is in {self.run.path}: lower" if self.run.last.exists() else "Lower"
        return (
            f"{saved} training.learning_rate, or what else in the recipe is very large, or set training.clip_norm, and "
            "train again."
        )

    def _explain_non_finite(self, item: Any, result: Step) -> Diverged:
        """Find the first tensor that is not finite when the step runs again, and save its inputs."""
        culprit = "the gradient (all tensors of the forward pass are finite)"
        for name, tensor in first_non_finite(self.model, self.state, lambda: self._forward(item)):
            culprit = f"{name} {list(tensor.shape)}"
            break
        path = self.run.path / f"non_finite_step_{self.step + 1}.safetensors"
        inputs = dict(result.inputs)
        if self.state is not None:
            inputs |= checkpoint.flatten({"state": state_to_dict(self.state)})
        checkpoint.save(path, inputs, self._metadata())
        return Diverged(
            f"The loss or its gradient is not finite at step {self.step + 1} ({self.objective.locate(result.inputs)}; "
            f"batch saved in {path}); it appeared first in {culprit}. {self._advice()}"
        )


def first_non_finite(model: nn.Module, state: Any, forward: Callable[[], Any]) -> Iterator[tuple[str, Tensor]]:
    """Run a model again and yield what is not finite, in the order of computation: weights, state, modules' outputs."""

    def bad(tensor: Any) -> bool:
        return isinstance(tensor, Tensor) and tensor.is_floating_point() and not tensor.isfinite().all()

    yield from ((f"the weight {name}", p) for name, p in model.named_parameters() if bad(p))
    parts = {} if state is None else state_to_dict(state)
    yield from ((f"the carried state {name}", part) for name, part in parts.items() if bad(part))
    found: list[tuple[str, Tensor]] = []

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
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
    requested = 0
    """The number of the signal that requests it."""


@contextmanager
def _deferred_signals() -> Iterator[_Stop]:
    """On SIGINT or SIGTERM request a stop after the step; a second one stops at once."""
    stop = _Stop()

    def request(number: int, frame: Any) -> None:
        if stop.requested:
            raise KeyboardInterrupt
        stop.requested = number

    previous: dict[signal.Signals, Any] = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, request)
    except ValueError:  # not in the main thread: signals are somebody else's
        pass
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
