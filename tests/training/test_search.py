"""A search trains each setting once, in rounds, whoever is killed and however many search; and shows what it found."""

import contextlib
import json
import multiprocessing.process
import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path

import optuna
import pytest
import yaml

from fastweights import cli, recipes
from fastweights.analysis import search as results
from fastweights.errors import UserError
from fastweights.training import checkpoint, space
from fastweights.training import search as searches
from fastweights.training.loop import Trainer
from fastweights.training.runs import RunFolder
from fastweights.training.search import Plan, Search
from kills import FORKS

SMALL = [
    "--training.batch_size=2",
    "--training.evaluate_every=4",
    "--training.report_every=2",
    "--task.pairs=2",
    "--task.examples=40",
    "--task.validation_examples=16",
    "--task.test_examples=4",
    "--model.embedding_size=8",
    "--model.head_size=8",
    "--model.core.hidden_size=8",
]
RATES = "training.learning_rate=0.003,0.01,0.03"
GRID = ["art/lstm", f"--over={RATES}", "--over=training.seed=0,1", "--rounds=8,24", "--keep=2", *SMALL]
ONE = ["art/lstm", f"--over={RATES}", "--rounds=4", *SMALL]


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(searches, "POLL", 0.01)


def search(out: Path, *arguments: str, code: int = 0) -> None:
    assert cli.main(["search", *arguments, f"--out={out}"]) == code


def found(out: Path, capsys, *arguments: str) -> dict:
    capsys.readouterr()
    search(out, *arguments, "--json")
    return json.loads(capsys.readouterr().out)


def runs(out: Path) -> dict[str, RunFolder]:
    return {path.parent.name: RunFolder.open(path.parent) for path in sorted(out.rglob("config.yaml"))}


def files(out: Path) -> dict[str, bytes]:
    """What seeds and settings determine in the run folders."""
    names = ("metrics.jsonl", "last.safetensors", "best.safetensors", "config.yaml")
    return {f"{name}/{file}": (run.path / file).read_bytes() for name, run in runs(out).items() for file in names}


def trials(out: Path) -> list[optuna.trial.FrozenTrial]:
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(out / "journal.jsonl")))
    (name,) = optuna.get_all_study_names(storage)
    return optuna.load_study(study_name=name, storage=storage).get_trials()


def begin(out: Path, log: Path) -> multiprocessing.process.BaseProcess:
    """A search of the grid in a process of its own, which prints into a file."""
    process = FORKS.Process(target=_search, args=([*GRID, "--threads=1", f"--out={out}"], log))
    process.start()
    return process


def _search(arguments: list[str], log: Path) -> None:
    with log.open("w", buffering=1) as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        raise SystemExit(cli.main(["search", *arguments]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A whole search by one process."""
    folder = tmp_path_factory.mktemp("searches")
    process = begin(folder / "grid", folder / "log.txt")
    process.join()
    assert process.exitcode == 0, (folder / "log.txt").read_text()
    return folder / "grid"


def test_the_best_go_on_from_their_checkpoints(folder):
    """Each setting has one run folder; two have been trained to the end of the second round, the best by the first."""
    steps = {
        name: [record["step"] for record in run.records() if "valid" in record] for name, run in runs(folder).items()
    }
    assert len(steps) == 6 and sorted(map(max, steps.values())) == [8] * 4 + [24] * 2
    values = {
        name: max(r["valid"]["answer_accuracy"] for r in run.records() if "valid" in r and r["step"] <= 8)
        for name, run in runs(folder).items()
    }
    chosen = [values[name] for name in steps if max(steps[name]) == 24]
    assert min(chosen) >= sorted(values.values())[-2]
    states = [(trial.state.name, trial.user_attrs["round"]) for trial in trials(folder)]
    assert states == [("COMPLETE", 0)] * 6 + [("COMPLETE", 1)] * 2
    assert sorted(trial.value for trial in trials(folder)[:6]) == sorted(values.values())


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_the_winner_is_the_run_that_its_recipe_trains(schedule, tmp_path):
    """Bit for bit, under any schedule: a search only pauses it."""
    search(tmp_path / "out", *GRID, f"--training.schedule={schedule}")
    assert cli.main(["train", str(tmp_path / "out/best.yaml"), f"--out={tmp_path / 'run'}"]) == 0
    same = [run for run in runs(tmp_path / "out").values() if run.metrics.read_bytes() == whole(tmp_path / "run")]
    assert len(same) == 1
    best = recipes.load(str(tmp_path / "out/best.yaml"))
    assert best == recipes.load(same[0].read_config()["recipe"]) and best.training.steps == 24


def whole(run: Path) -> bytes:
    return (run / "metrics.jsonl").read_bytes()


def test_a_killed_search_goes_on_where_it_was(folder, tmp_path):
    """Killed in the middle of its third trial, and again in the second round, it ends as if it had not been."""
    out = tmp_path / "killed"
    for count, steps in ((3, 4), (1, 12)):
        process = begin(out, tmp_path / "log.txt")
        while process.is_alive() and sum(last >= steps for last in last_steps(out)) < count:
            time.sleep(0.001)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert sum(trial.state.name == "COMPLETE" for trial in trials(out)) < 8
    before = {name: run.metrics.stat().st_mtime_ns for name, run in runs(out).items() if run.records()[-1]["step"] == 8}
    process = begin(out, tmp_path / "log.txt")
    process.join()
    assert process.exitcode == 0, (tmp_path / "log.txt").read_text()
    assert files(out) == files(folder)
    assert [trial.state.name for trial in trials(out)] == ["COMPLETE"] * 8
    after = {name: run.metrics.stat().st_mtime_ns for name, run in runs(out).items() if name in before}
    assert sum(after[name] == before[name] for name in before) >= 4  # what was finished was not trained again


def last_steps(out: Path) -> list[int]:
    steps = []
    for path in out.rglob("metrics.jsonl"):
        lines = path.read_bytes().split(b"\n")[:-1]
        steps.append(json.loads(lines[-1])["step"] if lines else 0)
    return steps


def test_two_processes_share_a_search(folder, tmp_path):
    out, logs = tmp_path / "shared", [tmp_path / "one.txt", tmp_path / "other.txt"]
    processes = [begin(out, log) for log in logs]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0], [log.read_text() for log in logs]
    assert files(out) == files(folder)
    done = [re.findall(r"(?m)^\S+ to step \d+", log.read_text()) for log in logs]
    assert len(done[0] + done[1]) == len({*done[0], *done[1]}) == 8
    assert [trial.state.name for trial in trials(out)] == ["COMPLETE"] * 8


def test_of_two_processes_one_is_killed_and_the_other_ends_the_search(folder, tmp_path):
    out, logs = tmp_path / "shared", [tmp_path / "one.txt", tmp_path / "other.txt"]
    one, other = (begin(out, log) for log in logs)
    while one.is_alive() and "step      4" not in (logs[0].read_text() if logs[0].exists() else ""):
        time.sleep(0.001)
    os.kill(one.pid, signal.SIGKILL)
    one.join()
    other.join()
    assert one.exitcode == -signal.SIGKILL and other.exitcode == 0, logs[1].read_text()
    assert files(out) == files(folder)
    assert [trial.state.name for trial in trials(out)] == ["COMPLETE"] * 8


def test_a_trial_of_another_process_is_waited_for(folder, tmp_path, monkeypatch):
    """It is under way in a run folder that is locked; when its process has ended, it is taken over."""
    out = tmp_path / "waits"
    first = Search(Plan("art/lstm", [RATES], SMALL, rounds=[4]), out)
    with first.locked():
        trial, run = first._claim(first.trials(), *first._pending(first.trials()))
    waits = []

    def sleep(seconds):
        waits.append([done.state.name for done in trials(out)])
        if len(waits) == 3:
            run.unlock()

    monkeypatch.setattr(searches.time, "sleep", sleep)
    search(out, *ONE)
    assert waits == [["RUNNING", "COMPLETE", "COMPLETE"]] * 3 and trial.number == 0
    assert [done.state.name for done in trials(out)] == ["COMPLETE"] * 3


def test_a_finished_search_trains_nothing_and_shows_the_same(folder, tmp_path, monkeypatch, capsys):
    out = tmp_path / "again"
    shutil.copytree(folder, out)
    before = {
        path: path.stat().st_mtime_ns for path in out.rglob("*") if path.suffix in (".safetensors", ".jsonl", ".log")
    }
    monkeypatch.setattr(Trainer, "optimizer_step", None)
    first = found(out, capsys, *GRID)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert first == json.loads(json.dumps(first).replace(str(folder), str(out)))
    assert first["best"] == first["settings"][0] and len(first["settings"]) == 6
    assert [len(row["values"]) for row in first["settings"]] == [2, 2, 1, 1, 1, 1]
    assert (out / "search.md").read_bytes() == (folder / "search.md").read_bytes()


def test_without_its_journal_a_search_trains_nothing_that_is_trained(folder, tmp_path, monkeypatch):
    """Journal and record are lost: the run folders have the results, also those of the first round."""
    out = tmp_path / "lost"
    shutil.copytree(folder, out)
    values = [trial.value for trial in trials(out)]
    for name in ("journal.jsonl", "search.json"):
        (out / name).unlink()
    monkeypatch.setattr(Trainer, "optimizer_step", None)
    search(out, *GRID)
    assert [trial.value for trial in trials(out)] == values


def test_table_figures_and_best_recipe(folder, capsys):
    lines = (folder / "search.md").read_text().splitlines()
    assert lines[0] == (
        "| learning_rate | seed | validation answers by step 8 | validation answers by step 24 | minutes |"
    )
    assert len(lines) == 2 + 6
    for name in ("curves.png", "parameters.png"):
        assert (folder / name).read_bytes()[:4] == b"\x89PNG"
    text = (folder / "best.yaml").read_text()
    assert re.match(r"# the best of a search: validation answers \d+\.\d\d% by step 24\n", text)
    settings = recipes.load(str(folder / "best.yaml")).training
    assert lines[2].startswith(f"| {settings.learning_rate} | {settings.seed} |")
    assert cli.main(["report", str(folder)]) == 0
    assert "validation answers" in capsys.readouterr().out


def drawn(out: Path, monkeypatch) -> list:
    """The figures of a search, as matplotlib has them."""
    figures = []
    monkeypatch.setattr(results, "write_figure", lambda figure, path: figures.append(figure))
    results.write(Search(Plan("art/lstm", [RATES, "training.seed=0,1"], SMALL, rounds=[8, 24], keep=[2]), out))
    return figures


def test_figures_show_the_records(folder, monkeypatch):
    curves, parameters = drawn(folder, monkeypatch)
    labels = [" ".join(text.get_text().split()) for text in curves.legends[0].get_texts()]
    lines = dict(zip(labels, curves.axes[0].lines[:-1], strict=True))  # the last is the end of the first round
    for name, run in runs(folder).items():
        rate, seed = (part.partition("=")[2] for part in name.split(","))
        expected = [(r["step"], r["valid"]["answer_accuracy"]) for r in run.records() if "valid" in r]
        shown = lines[f"learning_rate {rate}, seed {seed}"]
        assert list(zip(shown.get_xdata(), shown.get_ydata(), strict=True)) == expected
    rates, seeds = parameters.axes
    assert rates.get_xlabel() == "learning_rate" and seeds.get_xlabel() == "seed"
    by_seed = {line.get_label(): list(line.get_ydata()) for line in rates.lines}
    by_rate = {line.get_label(): list(line.get_ydata()) for line in seeds.lines}
    first = {tuple(trial.params.values()): trial.value for trial in trials(folder)[:6]}
    texts = RATES.partition("=")[2].split(",")
    assert all(by_seed[f"seed {seed}"] == [first[rate, seed] for rate in texts] for seed in "01")
    assert all(by_rate[f"learning_rate {rate}"] == [first[rate, seed] for seed in "01"] for rate in texts)
    assert sorted(by_seed["by step 24"]) == sorted(trial.value for trial in trials(folder)[6:])


def test_the_best_are_tested_once(tmp_path, monkeypatch, capsys):
    search(tmp_path / "out", *GRID)
    rows = found(tmp_path / "out", capsys, *GRID, "--test")["settings"]
    tested = [json.loads(path.read_text())["answer_accuracy"] for path in (tmp_path / "out").rglob("test.json")]
    assert [row["test"] is not None for row in rows] == [True] * 2 + [False] * 4
    assert sorted(row["test"] for row in rows[:2]) == sorted(tested)
    monkeypatch.setattr("fastweights.training.sweep.evaluate_test_split", None)
    assert found(tmp_path / "out", capsys, *GRID, "--test")["settings"] == rows
    assert "| test |" in (tmp_path / "out/search.md").read_text()


def test_a_trial_that_diverges_is_recorded_and_the_search_goes_on(tmp_path, capsys, monkeypatch):
    over = ["--over=training.learning_rate=1e30,0.01", "--rounds=4,8", "--keep=2"]
    rows = found(tmp_path / "out", capsys, "art/lstm", *over, *SMALL)
    assert rows["best"]["settings"] == {"training.learning_rate": "0.01"} and len(rows["best"]["values"]) == 2
    assert "not finite at step" in rows["settings"][1]["failure"] and rows["settings"][1]["values"] == []
    bad, good, again = trials(tmp_path / "out")
    assert bad.state.name == "FAIL" and bad.user_attrs["failure"] == rows["settings"][1]["failure"]
    assert good.state.name == again.state.name == "COMPLETE" and good.params == again.params
    assert "| The loss or its gradient is not finite at step" in (tmp_path / "out/search.md").read_text()
    monkeypatch.setattr(Trainer, "optimizer_step", None)  # nor is it trained again
    assert found(tmp_path / "out", capsys, "art/lstm", *over, *SMALL) == rows


def test_a_winner_that_diverges_later_is_not_the_best(tmp_path, capsys, monkeypatch):
    step = Trainer.optimizer_step

    def diverge(self):
        step(self)
        if self.step >= 5 and self.options.learning_rate == best:
            raise searches.Diverged("The loss is not finite at step 6 (here). Lower it.")

    best = None
    first = found(tmp_path / "first", capsys, "art/lstm", f"--over={RATES}", "--rounds=4,8", "--keep=2", *SMALL)
    best = float(first["best"]["settings"]["training.learning_rate"])
    monkeypatch.setattr(Trainer, "optimizer_step", diverge)
    rows = found(tmp_path / "out", capsys, "art/lstm", f"--over={RATES}", "--rounds=4,8", "--keep=2", *SMALL)
    assert float(rows["best"]["settings"]["training.learning_rate"]) != best and len(rows["best"]["values"]) == 2
    assert float(rows["settings"][2]["settings"]["training.learning_rate"]) == best
    assert len(rows["settings"][2]["values"]) == 1 and "step 6" in rows["settings"][2]["failure"]


def test_a_search_without_a_result_says_so(tmp_path, capsys):
    search(tmp_path / "out", "art/lstm", "--over=training.learning_rate=1e30,2e30", "--rounds=4", *SMALL, code=2)
    error = capsys.readouterr().err
    assert "Every setting" in error and "not finite" in error and error.count("\n") == 1
    assert (tmp_path / "out/search.md").exists() and not (tmp_path / "out/best.yaml").exists()


SAMPLED = [
    "art/lstm", "--over=training.learning_rate=1e-3..1e-1 log", "--over=model.core.hidden_size=4..9",
    "--over=training.optimizer=adam,{type: sgd, momentum: 0.5}", "--trials=5", "--rounds=2,4", "--keep=2",
    *SMALL[:-1],
]  # fmt: skip


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_sampled_settings_differ_lie_in_their_ranges_and_are_the_same_again(sampler, tmp_path, capsys):
    first = found(tmp_path / "one", capsys, *SAMPLED, f"--sampler={sampler}")["settings"]
    assert len(first) == 5
    rates = {float(row["settings"]["training.learning_rate"]) for row in first}
    assert len(rates) == 5 and all(1e-3 <= rate <= 1e-1 for rate in rates)
    sizes = {int(row["settings"]["model.core.hidden_size"]) for row in first}
    assert len(sizes) > 1 and sizes <= {*range(4, 10)}
    again = found(tmp_path / "other", capsys, *SAMPLED, f"--sampler={sampler}")["settings"]
    assert [(row["settings"], row["values"]) for row in again] == [(row["settings"], row["values"]) for row in first]
    assert (tmp_path / "one/parameters.png").exists()


def test_a_sampled_setting_that_makes_no_run_is_recorded(tmp_path, capsys):
    over = ["--over=task.pairs=2..6", "--over=task.keys=3,4", "--sampler=random", "--trials=6", "--rounds=2"]
    rows = found(tmp_path / "out", capsys, "art/lstm", *over, *(word for word in SMALL if "pairs" not in word))
    failed = [row for row in rows["settings"] if row["failure"]]
    assert 0 < len(failed) < len(rows["settings"])
    for row in rows["settings"]:
        pairs, keys = (int(row["settings"][key]) for key in ("task.pairs", "task.keys"))
        assert (pairs > keys) == bool(row["failure"])


def test_a_trial_that_was_cut_before_it_had_settings_is_passed_over(tmp_path, capsys):
    out = tmp_path / "out"
    plan = Plan("art/lstm", ["training.learning_rate=0.001..0.1"], SMALL, rounds=[2], sampler="random", trials=2)
    Search(plan, out)._study.ask()
    over = ["--over=training.learning_rate=0.001..0.1", "--sampler=random", "--trials=2", "--rounds=2"]
    assert len(found(out, capsys, "art/lstm", *over, *SMALL)["settings"]) == 2


def test_a_database_keeps_the_trials_of_many_searches(tmp_path, capsys):
    url = f"--storage=sqlite:///{tmp_path}/trials.db"
    first = found(tmp_path / "a", capsys, *ONE, url)
    second = found(tmp_path / "b", capsys, *ONE, url)
    assert [row["values"] for row in first["settings"]] == [row["values"] for row in second["settings"]]
    assert not (tmp_path / "a/journal.jsonl").exists()
    studies = optuna.get_all_study_summaries(f"sqlite:///{tmp_path}/trials.db")
    assert [study.n_trials for study in studies] == [3, 3]
    search(tmp_path / "a", *ONE, code=2)
    assert "does not hold the search" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["art/lstn", "--over=task.pairs=2,3"], 'There is no recipe "art/lstn"'),
        (["art/lstm"], "Nothing is searched"),
        (["art/lstm", "--over=task.pears=2,3"], 'no option "pears"'),
        (["art/lstm", "--over=training.learning_rat=1,2"], 'no key "training.learning_rat"'),
        (["art/lstm", "--over=task.pairs=2,30"], "30 pairs need 30 different keys"),
        (["art/lstm", "--over=task.pairs=2,2"], "would be the same or share a folder"),
        (["art/lstm", "--over=task.pairs=2,3", "--task.pairs=4"], "--over task.pairs replaces --task.pairs"),
        (["art/lstm", "--over=training.steps=2,3"], "leave training.steps out"),
        (["art/lstm", "--over=task.pairs=2,3", "--rounds=2", "--training.steps=3"], "leave training.steps out"),
        (["art/lstm", "--over=task.pairs=2,3", "--rounds=4,2", "--keep=1"], "must end at a later step"),
        (["art/lstm", "--over=task.pairs=2,3", "--rounds=4,4", "--keep=1"], "must end at a later step"),
        (["art/lstm", "--over=task.pairs=2,3", "--rounds=0,4", "--keep=1"], "must end at a later step"),
        (["art/lstm", "--over=task.pairs=2,3", "--rounds=4,x"], '--rounds is "4,x"'),
        (["art/lstm", "--over=task.pairs=2,3", "--rounds=2,4", "--keep=3"], "of 2 settings, 1 to 2 can go on"),
        (["art/lstm", "--over=task.pairs=2,3", "--rounds=2,4", "--keep=0"], "of 2 settings, 1 to 2 can go on"),
        (["art/lstm", "--over=task.pairs=2,3", "--rounds=2,4,6", "--keep=1,2"], "of 1 settings, 1 to 1 can go on"),
        (["art/lstm", "--over=task.pairs=2,3", "--rounds=2,4"], "--keep has 0 numbers, and needs 1"),
        (["art/lstm", "--over=task.pairs=2,3", "--keep=1"], "--keep has 1 numbers, and needs 0"),
        (["art/lstm", "--over=task.pairs=2..4"], "A range has no grid"),
        (["art/lstm", "--over=task.pairs=4..2", "--sampler=tpe", "--trials=2"], "is no range of numbers"),
        (["art/lstm", "--over=task.pairs=0..2 log", "--sampler=tpe", "--trials=2"], "no range of numbers above 0"),
        (["art/lstm", "--over=task.pairs=1..1e400", "--sampler=tpe", "--trials=2"], "is no range of numbers"),
        (["art/lstm", "--over=task.pairs=1.5..2.5", "--sampler=tpe", "--trials=2"], "valid integer"),
        (["art/lstm", "--over=task.pairs=2,3", "--trials=2"], "--trials belongs to --sampler random or tpe"),
        (["art/lstm", "--over=task.pairs=2,3", "--sampler=tpe"], "--trials belongs to --sampler random or tpe"),
        (["art/lstm", "--over=task.pairs=2,3", "--sampler=tpe", "--trials=3"], "--trials is 3; give at least 1"),
        (["art/lstm", "--over=task.pairs=2..9", "--sampler=tpe", "--trials=0"], "--trials is 0; give at least 1"),
        (["art/lstm", "--over=task.pairs=2,3", "--data=stories"], "leave --data out"),
        (["art/lstm", "--over=task.pairs=2,3", "--threads=0"], "--threads is 0"),
    ],
)
def test_a_search_that_makes_no_sense_is_refused_before_it_begins(arguments, sentence, tmp_path, capsys):
    search(tmp_path / "out", *arguments, code=2)
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([*ONE, "--training.clip_norm=1"], "another recipe"),
        (["art/fw-lstm", *ONE[1:]], "another recipe"),
        (["art/lstm", "--over=training.learning_rate=0.003,0.01", *ONE[2:]], "another --over"),
        ([*ONE[:2], "--rounds=3", *SMALL], "another recipe"),
        ([*ONE[:2], "--rounds=2,4", "--keep=1", *SMALL], "another --rounds"),
        ([*ONE, "--sampler=tpe", "--trials=3"], "another --sampler"),
        ([*ONE, "--storage=sqlite://"], "does not hold the search"),
        ([*ONE, "--storage=x:y"], "cannot be read or written (ArgumentError"),
        ([*ONE, "--storage=nosuch://user:secret@host/name"], "cannot be read or written (NoSuchModuleError"),
    ],
)
def test_another_search_is_refused(arguments, sentence, tmp_path, capsys, monkeypatch):
    Search(Plan("art/lstm", [RATES], SMALL, rounds=[4]), tmp_path / "out")
    monkeypatch.setattr(Trainer, "optimizer_step", None)
    search(tmp_path / "out", *arguments, code=2)
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1 and "secret" not in error


PARAM = b'"params":{"training.learning_rate":0}'
DAMAGES = {
    "bytes that are no text": lambda text: b"\xff" * 20 + b"\n" + text,
    "a line that is cut in the middle of the journal": lambda text: text.replace(b'"op_code"', b"", 1),
    "an unknown operation": lambda text: text.replace(b'"op_code":4', b'"op_code":77', 1),
    "lists for operations": lambda text: b"[1]\n" + text,
    "a value of another kind": lambda text: text.replace(PARAM, PARAM.replace(b"0", b"[]")),
    "a value that is not searched": lambda text: text.replace(b'\\"0.01\\"', b'\\"os:system\\"'),
    "a setting that is not searched": lambda text: text.replace(b"learning_rate", b"learning_late"),
    "a round that does not exist": lambda text: text.replace(b'"round":0', b'"round":3'),
    "a round that is no number": lambda text: text.replace(b'"round":0', b'"round":"a"'),
    "a state that no trial has": lambda text: text.replace(b'"state":1,"values":[', b'"state":2,"values":['),
    "a result that is a list": lambda text: text.replace(b'"values":[', b'"values":[[],'),
}


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    out = tmp_path_factory.mktemp("one") / "out"
    search(out, *ONE)
    return out


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_journal_is_refused(kind, one, tmp_path, capsys):
    out = tmp_path / "out"
    shutil.copytree(one, out)
    whole = (out / "journal.jsonl").read_bytes()
    (out / "journal.jsonl").write_bytes(DAMAGES[kind](whole))
    assert (out / "journal.jsonl").read_bytes() != whole
    search(out, *ONE, code=2)
    error = capsys.readouterr().err
    assert "journal.jsonl cannot be read or written" in error and error.count("\n") == 1


@pytest.mark.parametrize("kind", ["missing", "of another search", "a folder"])
def test_a_journal_without_the_search_is_refused(kind, one, folder, tmp_path, capsys):
    out = tmp_path / "out"
    shutil.copytree(one, out)
    (out / "journal.jsonl").unlink()
    if kind == "of another search":
        shutil.copy(folder / "journal.jsonl", out)
    if kind == "a folder":
        (out / "journal.jsonl").mkdir()
    search(out, *ONE, code=2)
    error = capsys.readouterr().err
    assert "journal.jsonl" in error and error.count("\n") == 1


@pytest.mark.parametrize("content", ["", "[1]", "{", "{}", '{"recipe": 3}', "[" * 50_000, "\xff"])
def test_a_damaged_record_is_refused(content, one, tmp_path, capsys):
    shutil.copytree(one, tmp_path / "out")
    (tmp_path / "out/search.json").write_text(content, encoding="latin-1")
    search(tmp_path / "out", *ONE, code=2)
    error = capsys.readouterr().err
    assert "search.json cannot be read" in error and error.count("\n") == 1


def test_a_torn_line_at_the_end_of_the_journal_is_dropped(tmp_path, capsys):
    """As after a power cut while it was written; what follows would make one line of two."""
    out = tmp_path / "out"
    Search(Plan("art/lstm", [RATES], SMALL, rounds=[4]), out)
    with (out / "journal.jsonl").open("ab") as file:
        file.write(b'{"op_code":4,"worker')
    search(out, *ONE)
    assert [trial.state.name for trial in trials(out)] == ["COMPLETE"] * 3


def test_a_run_that_has_lost_its_records_is_named(tmp_path, capsys):
    search(tmp_path / "out", *GRID)
    for name in ("journal.jsonl", "search.json"):
        (tmp_path / "out" / name).unlink()
    next((tmp_path / "out").rglob("metrics.jsonl")).unlink()
    search(tmp_path / "out", *GRID, code=2)
    assert "has lost its validations" in capsys.readouterr().err


@pytest.mark.parametrize("module", ["optuna", "matplotlib.figure"])
def test_a_missing_library_is_one_sentence(module, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    search(tmp_path / "out", *ONE, code=2)
    error = capsys.readouterr().err
    assert "pip install 'fastweights[" in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made_is_refused(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    search(tmp_path / "file", *ONE, code=2)
    assert "cannot write" in capsys.readouterr().err


def test_an_interrupted_search_says_how_to_go_on(tmp_path, capsys, monkeypatch):
    step = Trainer.optimizer_step

    def interrupt(self):
        step(self)
        if self.step == 1:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Trainer, "optimizer_step", interrupt)
    search(tmp_path / "out", *ONE, code=130)
    assert "Resume with the same command" in capsys.readouterr().out
    monkeypatch.undo()
    search(tmp_path / "out", *ONE)
    assert [trial.state.name for trial in trials(tmp_path / "out")] == ["COMPLETE"] * 3


def test_ranges_and_lists():
    assert space.axis("x", ["1e-4..1e-2 log"]) == space.Range(1e-4, 1e-2, True)
    assert space.axis("x", ["-1..3"]) == space.Range(-1, 3, False)
    assert space.axis("x", ["1..3"]).is_whole and not space.axis("x", ["1..3.0"]).is_whole
    assert 2.5 not in space.axis("x", ["1..3"]) and 2.5 in space.axis("x", ["1..3.0"])
    assert space.axis("x", ["../x"]) == space.Values(["../x"])
    assert space.axis("x", ["1..2", "3"]) == space.Values(["1..2", "3"])
    with pytest.raises(UserError, match="no range"):
        space.axis("x", ["1..1"])


def test_a_perplexity_is_minimised_and_drawn_on_a_logarithmic_axis(tmp_path, monkeypatch, capsys):
    figures = []
    monkeypatch.setattr(results, "write_figure", lambda figure, path: figures.append(figure))
    settings = ("--objective.type=language-model", "--over=training.learning_rate=0.001,0.01", "--rounds=4")
    rows = found(tmp_path / "out", capsys, "art/lstm", *settings, *SMALL)["settings"]
    assert rows[0]["values"][0] <= rows[1]["values"][0]
    assert [axes.get_yscale() for figure in figures for axes in figure.axes] == ["log", "log"]


def test_best_recipe_and_checkpoint_agree(folder):
    best = yaml.safe_load((folder / "best.yaml").read_text())
    (run,) = (run for run in runs(folder).values() if run.read_config()["recipe"] == best)
    assert checkpoint.read_metadata(run.best)["recipe"] == json.loads(json.dumps(best))
