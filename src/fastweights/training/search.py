"""A search over settings in rounds: all train for a while, and the best go on from their checkpoints.

A trial is a setting in a round. Optuna keeps the trials: which there are, which are under way, and their results, in a
journal in the search's folder or in a database. Points, run folders and training are those of a sweep. The lock of a
run folder says whether a process is at work in it: a trial that is under way in a folder that nobody locks was killed,
and whoever finds it goes on from its last checkpoint. All rounds of a setting are one run with the steps of the last
round, which pauses in between, so that its learning-rate schedule and its records are those of `fastweights train`.
"""

from __future__ import annotations

import itertools
import json
import math
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from filelock import FileLock

from fastweights import recipes, specs
from fastweights.errors import UserError, reason
from fastweights.training import space, sweep
from fastweights.training.checkpoint import unwritable, write_atomically
from fastweights.training.loop import Diverged, Observer, files_digest
from fastweights.training.runs import InUse, RunFolder
from fastweights.training.sweep import Point

if TYPE_CHECKING:
    import optuna

POLL = 1.0  # seconds between two looks at what other processes have done
STEPS = "training.steps"
STATES = ("WAITING", "RUNNING", "COMPLETE", "FAIL")


class Plan:
    """What is searched: a recipe's settings, in rounds.

    >>> plan = Plan("catbabi-qa/fwm", ["training.learning_rate=1e-3,2e-3"], rounds=[3000, 10_000], keep=[1])
    >>> [point.settings for point in plan.points]
    [{'training.learning_rate': '1e-3'}, {'training.learning_rate': '2e-3'}]

    Args:
        recipe: a recipe's name, or the path of a YAML file.
        over: settings with their values, "training.batch_size=64,128", or with a range, "model.dropout=0..0.5" or
            "training.learning_rate=1e-4..1e-2 log".
        overrides: other settings of the recipe, as on the command line.
        rounds: the step at which each round ends; none for one round with the recipe's steps.
        keep: how many settings go on to each later round.
        sampler: "grid" for every combination; "random"; or "tpe", the tree-structured Parzen estimator (Bergstra et
            al. 2011).
        trials: the number of sampled settings.

    Raises:
        UserError: where these make no search.
    """

    def __init__(
        self,
        recipe: str,
        over: Sequence[str],
        overrides: Sequence[str] = (),
        *,
        rounds: Sequence[int] = (),
        keep: Sequence[int] = (),
        sampler: str = "grid",
        trials: int | None = None,
    ):
        texts = sweep.read_axes(over, overrides)
        if not texts:
            raise UserError("Nothing is searched; give settings, such as --over training.learning_rate=0.0001,0.001.")
        given = (*texts, *(word.removeprefix("--").partition("=")[0] for word in overrides))
        if STEPS in texts or (rounds and any(f"{STEPS}.".startswith(f"{key}.") for key in given)):
            raise UserError(f"--rounds gives the steps of a search; leave {STEPS} out.")
        base = recipes.load(recipe, [*overrides, *(f"--{STEPS}={steps}" for steps in rounds[-1:])])
        self.recipe, self.base, self.texts, self.sampler, self.trials = recipe, base.to_dict(), texts, sampler, trials
        self.rounds, self.keep = list(rounds or [base.training.steps]), list(keep)
        self.axes = {key: space.axis(key, values) for key, values in texts.items()}
        self._check_counts()
        self.points = [self.point(params) for params in (self.grid() if sampler == "grid" else [self._first()])]
        sweep.refuse_duplicates(self.points)

    def _check_counts(self) -> None:
        is_endless = any(isinstance(axis, space.Range) for axis in self.axes.values())
        if self.sampler == "grid" and is_endless:
            raise UserError("A range has no grid; give --sampler random or tpe, with --trials.")
        if (self.sampler == "grid") != (self.trials is None):
            raise UserError("--trials belongs to --sampler random or tpe: it is the number of sampled settings.")
        size = math.prod(len(axis.ends) for axis in self.axes.values())
        count = size if self.trials is None else self.trials
        if count < 1 or (count > size and not is_endless):
            raise UserError(f"--trials is {count}; give at least 1, and at most the {size} settings that there are.")
        if any(one >= other for one, other in itertools.pairwise([0, *self.rounds])):
            raise UserError(f"--rounds is {_joined(self.rounds)}; each round must end at a later step than the last.")
        if len(self.keep) != len(self.rounds) - 1:
            raise UserError(
                f"--keep has {len(self.keep)} numbers, and needs {len(self.rounds) - 1}: how many settings go on to "
                f"each round after the first of --rounds {_joined(self.rounds)}."
            )
        for before, after in itertools.pairwise([count, *self.keep]):
            if not 1 <= after <= before:
                raise UserError(f"--keep is {_joined(self.keep)}; of {before} settings, 1 to {before} can go on.")

    def grid(self) -> list[dict[str, Any]]:
        """The parameters of every combination of values."""
        values = itertools.product(*(axis.ends for axis in self.axes.values()))
        return [dict(zip(self.axes, combination, strict=True)) for combination in values]

    def _first(self) -> dict[str, Any]:
        """The first parameters of all, which must make a run; what others cannot is seen when they are drawn."""
        return {key: axis.ends[0] for key, axis in self.axes.items()}

    def point(self, params: Mapping[str, Any]) -> Point:
        """The run with some parameters.

        Raises:
            UserError: where a key does not exist or a value is of the wrong kind.
        """
        return sweep.point(self.recipe, self.base, {key: str(params[key]) for key in self.axes})


class Trial(NamedTuple):
    """A setting in a round: its number, the round, the parameters, Optuna's state, the result, and why it failed."""

    number: int
    round: int
    params: dict[str, Any]
    state: str
    value: float | None = None
    failure: str | None = None

    @property
    def is_over(self) -> bool:
        """Whether it has a result, or has failed."""
        return self.state in STATES[2:]


class Result(NamedTuple):
    """What came of a setting: its run, the result at the end of each round that it made, and why it failed."""

    point: Point
    values: list[float]
    failure: str | None


class Search:
    """A search in a folder, which any number of processes join.

    Args:
        plan: what is searched.
        folder: of the run folders, the journal and the results.
        data: the directory of the task's files, or None for generated data.
        storage: the URL of a database that keeps the trials; None for the journal.

    Raises:
        UserError: where a setting cannot be built, the folder holds another search, or the storage cannot be read.
    """

    def __init__(self, plan: Plan, folder: str | Path, data: str | None = None, storage: str | None = None):
        self.plan, self.folder, self.data = plan, Path(folder), data
        self.optuna = _import_optuna()
        for point in plan.points:
            assembly = sweep.build(point, data)
        self.metric = assembly.objective.headline
        self.last = len(plan.rounds) - 1
        self._journal = self.folder / "journal.jsonl"
        self._place = "the database of --storage" if storage else str(self._journal)
        self._lock = FileLock(self.folder / "lock")
        self._distributions = {key: axis.distribution() for key, axis in plan.axes.items()}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(self.folder, error) from error
        with self.locked():
            self._storage = self._open(storage)
            self._study = self._join(files_digest(assembly.task, data))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes out; what is wrong in the storage becomes one sentence.

        Raises:
            UserError: where the folder cannot be locked, or the storage cannot be read or written.
        """
        try:
            with self._lock:
                yield
        except UserError:
            raise
        except Exception as error:  # Optuna and the drivers of databases raise errors of all kinds
            raise UserError(
                f"The trials in {self._place} cannot be read or written ({type(error).__name__}: "
                f"{reason(error)[:200]}); mend it, or search into another --out."
            ) from error

    def _open(self, url: str | None) -> optuna.storages.BaseStorage:
        if url is not None:
            return self.optuna.storages.RDBStorage(url)
        journals = self.optuna.storages.journal
        if self._journal.exists():
            self._drop_a_torn_line()
        # The folder's lock in place of the journal's own, which a kill would leave behind for half a minute.
        return self.optuna.storages.JournalStorage(journals.JournalFileBackend(str(self._journal), lock_obj=self._lock))

    def _drop_a_torn_line(self) -> None:
        """Drop what follows the last line feed of the journal, where a write was cut; all writes hold the lock."""
        content = self._journal.read_bytes()
        if not content.endswith(b"\n") and content:
            write_atomically(self._journal, content[: content.rfind(b"\n") + 1])

    def _join(self, digest: str | None) -> optuna.Study:
        """Begin the search, or join it where the folder holds it."""
        record, plan = self.folder / "search.json", self.plan
        mine = {
            "recipe": plan.base,
            "--over": plan.texts,
            "--rounds": plan.rounds,
            "--keep": plan.keep,
            "--sampler": plan.sampler,
            "--trials": plan.trials,
            "--data": digest,
        }
        if not record.exists():
            name = f"{self.folder.resolve().name} {secrets.token_hex(4)}"
            direction = "maximize" if self.metric.higher_is_better else "minimize"
            study = self.optuna.create_study(storage=self._storage, study_name=name, direction=direction)
            write_atomically(record, json.dumps({"study": name, **mine}, indent=1).encode())
            return study
        try:
            saved = json.loads(record.read_text(encoding="utf-8"))
            theirs = {key: saved[key] for key in mine} | {"recipe": recipes.load(saved["recipe"]).to_dict()}
            name = specs.check("study", saved["study"], str)
        except (OSError, LookupError, RecursionError, TypeError, ValueError, UserError) as error:
            raise UserError(
                f"{record} cannot be read ({reason(error)[:200]}); mend it, or choose another --out."
            ) from error
        different = [key for key in mine if theirs[key] != mine[key]]
        if different:
            raise UserError(
                f"{self.folder} holds a search with another {different[0]}; give the same, or choose another --out."
            )
        if name not in self.optuna.get_all_study_names(self._storage):
            raise UserError(
                f"{self._place} does not hold the search of {self.folder}; give its own --storage, or choose another "
                "--out."
            )
        return self.optuna.load_study(study_name=name, storage=self._storage)

    def trials(self) -> list[Trial]:
        """All trials, in the order of their numbers; call it locked.

        Raises:
            ValueError: where the storage holds something else.
        """
        found = self._study.get_trials(deepcopy=False)
        # One that lacks settings was cut before it had them.
        return [self._trial(trial) for trial in found if len(trial.params) == len(self.plan.axes)]

    def _trial(self, found: optuna.trial.FrozenTrial) -> Trial:
        """A trial out of the storage, of which nothing is believed: a value outside the space could name code."""
        params, value, state = dict(found.params), found.value, found.state.name
        number, failure = found.user_attrs.get("round", 0), found.user_attrs.get("failure")
        if not all(key in self.plan.axes and value in self.plan.axes[key] for key, value in params.items()):
            raise ValueError(f"trial {found.number} has a setting that is not searched")
        if type(number) is not int or not 0 <= number <= self.last:
            raise ValueError(f"trial {found.number} is of a round that does not exist")
        if state not in STATES or (state == "COMPLETE") != isinstance(value, float):
            raise ValueError(f"trial {found.number} has no result, or an odd state")
        if not isinstance(failure, str | None):
            raise ValueError(f"trial {found.number} has failed for something that is no text")
        return Trial(found.number, number, params, state, value, failure)

    def _pending(self, trials: Sequence[Trial]) -> tuple[int, list[dict[str, Any] | None]] | None:
        """The round under way, and the parameters of each trial that it lacks (None to sample); None at the end."""
        plan = self.plan
        chosen = plan.grid() if plan.trials is None else []
        for number in range(len(plan.rounds)):
            here = [trial for trial in trials if trial.round == number]
            known = [trial.params for trial in here]
            lacking: list[dict[str, Any] | None] = [params for params in chosen if params not in known]
            if number == 0 and plan.trials is not None:
                lacking = [None] * (plan.trials - len(here))
            if lacking or not all(trial.is_over for trial in here):
                return number, lacking
            chosen = self._best(here)[: plan.keep[number] if number < self.last else 0]
        return None

    def _best(self, trials: Sequence[Trial]) -> list[dict[str, Any]]:
        """The parameters of the trials that have results, the best first, each once."""
        found: list[dict[str, Any]] = []
        for trial in sorted((trial for trial in trials if trial.value is not None), key=lambda x: self._loss(x.value)):
            if trial.params not in found:
                found.append(trial.params)
        return found

    def _loss(self, value: float | None) -> float:
        """The value, or its negative: the smaller the better."""
        if value is None:
            return math.inf
        return -value if self.metric.higher_is_better else value

    def _claim(self, trials: Sequence[Trial], number: int, lacking: Sequence[dict[str, Any] | None]) -> Claim | None:
        """A trial that nobody is at work on, with its run folder, locked; None where there is none now."""
        for trial in trials:
            if trial.state == "RUNNING" and (run := self._lock_run(trial.params)) is not None:
                return trial, run
        new = [params for params in lacking if params is not None]
        for params in new:
            trial = self.optuna.trial.create_trial(
                state=self.optuna.trial.TrialState.WAITING,
                params=params,
                distributions=self._distributions,
                user_attrs={"round": number},
            )
            self._study.add_trial(trial)
        if not lacking and all(trial.state != "WAITING" for trial in trials):
            return None
        self._study.sampler = self._sampler(seed=len(trials))
        asked = self._study.ask(self._distributions)  # the first that waits, or else a sampled one
        run = self._lock_run(asked.params)
        return None if run is None else (Trial(asked.number, number, asked.params, "RUNNING"), run)

    def _lock_run(self, params: Mapping[str, Any]) -> RunFolder | None:
        try:
            return RunFolder.claim(self.plan.point(params).path(self.folder))
        except InUse:
            return None

    def _sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        """A sampler for one trial: with one for all, two processes would draw the same settings."""
        if self.plan.sampler == "tpe":
            return self.optuna.samplers.TPESampler(seed=seed, constant_liar=True)
        return self.optuna.samplers.RandomSampler(seed=seed)

    def run(self, observe: Callable[[str], AbstractContextManager[Observer]]) -> Iterator[tuple[Point, Trial]]:
        """Train until the search is finished, and yield each trial that this process has trained.

        Where others are at work on all that is left of a round, wait for them.

        Args:
            observe: gives a listener for a text that names a trial.

        Raises:
            Interrupted: after SIGINT or SIGTERM, with everything saved.
            UserError: where the storage or a run folder cannot be read or written.
        """
        while True:
            with self.locked():
                trials = self.trials()
                pending = self._pending(trials)
                claimed = None if pending is None else self._claim(trials, *pending)
            if pending is None:
                return
            if claimed is None:
                time.sleep(POLL)
                continue
            trial, run = claimed
            with run:
                point = self.plan.point(trial.params)
                yield point, self._record(trial, *self._train(trial, point, run, observe))

    def _train(
        self, trial: Trial, point: Point, run: RunFolder, observe: Callable[[str], AbstractContextManager[Observer]]
    ) -> tuple[float | None, str | None]:
        """Train to the end of the trial's round, and return the result, or None and why there is none."""
        until = self.plan.rounds[trial.round]
        try:
            assembly = sweep.build(point, self.data)
        except UserError as error:
            return None, str(error)
        try:
            sweep.train(point, assembly, run, self.data, False, observe, until)
        except Diverged as error:
            return None, str(error)
        return self._value(run, until), None

    def _value(self, run: RunFolder, until: int) -> float:
        """The best validation of a run up to a step.

        Raises:
            UserError: where it has none.
        """
        name = self.metric.name
        found = [r["valid"] for r in run.records() if "valid" in r and r["step"] <= until]
        values = [specs.check(f"{name} in {run.metrics}", valid[name], float) for valid in found]
        if not values:
            raise UserError(f"{run.metrics} has lost its validations; remove {run.path}, and it is trained again.")
        return min(values, key=self._loss)

    def _record(self, trial: Trial, value: float | None, failure: str | None) -> Trial:
        states = self.optuna.trial.TrialState
        with self.locked():
            if failure is not None:
                study = self._storage.get_study_id_from_name(self._study.study_name)
                number = self._storage.get_trial_id_from_study_id_trial_number(study, trial.number)
                self._storage.set_trial_user_attr(number, "failure", failure)
            state = states.COMPLETE if failure is None else states.FAIL
            self._study.tell(trial.number, value, state)
        return trial._replace(value=value, failure=failure, state=state.name)

    def test(self, observe: Callable[[str], AbstractContextManager[Observer]]) -> None:
        """Evaluate the best models of the last round on the test split, each once, as `sweep --test` does.

        Raises:
            UserError: where a run folder cannot be read or written.
        """
        for result in self.results():
            if result.failure is None and len(result.values) == len(self.plan.rounds):
                with suppress(InUse), RunFolder.claim(result.point.path(self.folder)) as run:
                    assembly = sweep.build(result.point, self.data)
                    sweep.train(result.point, assembly, run, self.data, True, observe)

    def results(self) -> list[Result]:
        """What came of each setting, the best first, those that failed last."""
        with self.locked():
            trials = sorted(self.trials(), key=lambda trial: trial.round)
        found: dict[str, Result] = {}
        for trial in trials:
            result = found.setdefault(str(trial.params), Result(self.plan.point(trial.params), [], None))
            if trial.value is not None and len(result.values) == trial.round:
                result.values.append(trial.value)
            if trial.failure is not None:
                found[str(trial.params)] = result._replace(failure=trial.failure)
        return sorted(
            found.values(),
            key=lambda x: (x.failure is not None, -len(x.values), self._loss(x.values[-1] if x.values else None)),
        )


Claim = tuple[Trial, RunFolder]


def _import_optuna() -> Any:
    """Optuna, which says nothing of its own.

    Raises:
        UserError: where it is missing.
    """
    try:
        import optuna
    except ImportError as error:
        raise UserError("A search needs Optuna; install it with: pip install 'fastweights[search]'") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def _joined(numbers: Sequence[int]) -> str:
    return ",".join(map(str, numbers))
