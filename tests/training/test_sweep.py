"""A sweep makes each run once, goes on where it stopped, leaves others' runs alone, and becomes a table and figures."""

import json
import re
import shutil
import xml.etree.ElementTree

import pytest

from fastweights import cli, load_model, recipes
from fastweights.analysis import report
from fastweights.errors import UserError
from fastweights.objectives import Answers
from fastweights.training import checkpoint, sweep
from fastweights.training.loop import Trainer
from fastweights.training.runs import RunFolder
from trainings import GRAPHS, STORIES

SMALL = [
    "--training.steps=4",
    "--training.batch_size=2",
    "--training.evaluate_every=2",
    "--task.examples=8",
    "--task.validation_examples=4",
    "--task.test_examples=4",
    "--model.embedding_size=4",
    "--model.head_size=4",
    "--model.core.hidden_size=4",
]
NAMES = ["art/lstm", "art/fw-lstm"]
OVER = ["--over", "task.pairs=2,10", "--over", "training.seed=0,1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweeps") / "art"
    assert cli.main(["sweep", *NAMES, *OVER, "--out", str(folder), "--test", *SMALL]) == 0
    return folder


def outcomes(folder, capsys, *arguments) -> dict[str, list[str]]:
    capsys.readouterr()
    cli.main(["sweep", *NAMES, *OVER, "--out", str(folder), "--json", *SMALL, *arguments])
    return json.loads(capsys.readouterr().out)


def test_every_combination_has_a_run(folder):
    paths = sorted(str(path.parent.relative_to(folder)) for path in folder.rglob("config.yaml"))
    settings = ("pairs=10,seed=0", "pairs=10,seed=1", "pairs=2,seed=0", "pairs=2,seed=1")
    assert paths == [f"{name}/{setting}" for name in sorted(NAMES) for setting in settings]
    run = RunFolder.open(folder / "art/lstm/pairs=2,seed=1")
    recipe = recipes.load(run.read_config()["recipe"])
    assert (recipe.task["pairs"], recipe.training.seed, recipe.training.steps) == (2, 1, 4)
    assert [record["step"] for record in run.records() if "valid" in record] == [2, 4]
    tested = json.loads((run.path / "test.json").read_text())
    assert tested["split"] == "test" and tested["questions"] == 4


def test_what_is_done_is_not_done_again(folder, capsys):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    found = outcomes(folder, capsys, "--test")
    assert len(found["done"]) == 8 and not (found["made"] or found["in use"] or found["failed"])
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")} == before


def test_a_run_that_was_cut_goes_on_to_the_same_end(folder, tmp_path, monkeypatch, capsys):
    """Interrupted after two steps, the sweep says so, and the same command ends with the same records."""

    class Cut(Exception):
        pass

    optimizer_step = Trainer.optimizer_step

    def cut(self):
        if self.step == 3:
            raise Cut
        return optimizer_step(self)

    monkeypatch.setattr(Trainer, "optimizer_step", cut)
    with pytest.raises(Cut):
        outcomes(tmp_path / "cut", capsys)
    monkeypatch.undo()
    found = outcomes(tmp_path / "cut", capsys)
    assert len(found["made"]) == 8
    one = "art/lstm/pairs=2,seed=0/metrics.jsonl"
    assert (tmp_path / "cut" / one).read_bytes() == (folder / one).read_bytes()


def test_a_run_that_another_process_makes_is_left_alone(folder, tmp_path, capsys):
    path = tmp_path / "shared" / "art/lstm/pairs=2,seed=0"
    with RunFolder.create(path, {}):
        found = outcomes(tmp_path / "shared", capsys)
    assert found["in use"] == [str(path)]
    assert len(found["made"]) == 7


def test_a_run_that_fails_does_not_stop_the_others(tmp_path, capsys):
    (tmp_path / "x/art/lstm/pairs=2,seed=0").mkdir(parents=True)
    (tmp_path / "x/art/lstm/pairs=2,seed=0/metrics.jsonl").write_text("")  # holds a run, but of nobody knows what
    assert cli.main(["sweep", "art/lstm", *OVER, "--out", str(tmp_path / "x"), *SMALL]) == 2
    shown = capsys.readouterr().out
    assert "already holds a run" in shown and "4 runs: 3 made, 1 failed" in shown


def test_a_folder_with_other_settings_is_refused(folder, capsys):
    found = outcomes(folder, capsys, "--training.learning_rate=0.5")
    assert len(found["failed"]) == 8


@pytest.mark.parametrize("stopping", ["target=0", "patience=1"])
def test_training_that_stopped_early_is_done(tmp_path, capsys, stopping):
    settings = (f"--training.early_stopping.{stopping}", "--task.values=1", "--test", "--training.steps=6")
    found = outcomes(tmp_path / "good", capsys, *settings)
    again = outcomes(tmp_path / "good", capsys, *settings)
    assert len(found["made"]) == len(again["done"]) == 8
    path = tmp_path / "good/art/lstm/pairs=2,seed=0"
    records = RunFolder.open(path).records()
    assert records[-1]["step"] < 6 or records[-1]["valid"]["answer_accuracy"] < 0
    ended = [RunFolder.open(config.parent).records()[-1]["step"] for config in path.parents[2].rglob("config.yaml")]
    assert min(ended) < 6
    assert any(checkpoint.read_metadata(last)["stopped_early"] for last in path.parents[2].rglob("last.safetensors"))


def test_a_sweep_of_agents_is_tested_once_and_reported(tmp_path, capsys):
    folder = tmp_path / "agents"
    command = ["sweep", "graph-rl/fwm", "--over=training.seed=0,1", f"--out={folder}", "--test", *GRAPHS, "--json"]
    found = []
    for _ in range(2):
        assert cli.main(command) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert len(found[0]["made"]) == len(found[1]["done"]) == 2 and not found[1]["made"]
    tests = []
    for seed in range(2):
        run = RunFolder.open(folder / f"graph-rl/fwm/seed={seed}")
        tested = json.loads((run.path / "test.json").read_text())
        assert tested["split"] == "test" and tested["episodes"] == 8
        model, _, metadata, assembly = load_model(run.best)
        assert tested["step"] == metadata["step"]
        again = assembly.objective.evaluate(model, assembly.task, None, "test", 8)
        assert tested["return"] == again["return"]
        tests.append(tested["return"])
    (row,) = report.collect(folder)
    best = [max(r["valid"]["return"] for r in run_records(folder, seed)) for seed in range(2)]
    assert row.metric.name == "return" and row.seeds == ["0", "1"]
    assert row.validation.mean == pytest.approx(sum(best) / 2)
    assert row.test.mean == pytest.approx(sum(tests) / 2)
    assert cli.main(["report", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "validation return" in shown and row.test.show(row.metric) in shown


def run_records(folder, seed):
    records = RunFolder.open(folder / f"graph-rl/fwm/seed={seed}").records()
    return [record for record in records if "valid" in record]


def test_a_run_that_is_not_tested_yet_is_tested_without_training(folder, tmp_path, capsys, monkeypatch):
    """The sweep was made without --test, and is repeated with it."""
    out = tmp_path / "untested"
    assert len(outcomes(out, capsys)["made"]) == 8
    assert len(outcomes(out, capsys)["done"]) == 8
    monkeypatch.setattr(Trainer, "optimizer_step", None)
    assert len(outcomes(out, capsys, "--test")["made"]) == 8
    one = "art/lstm/pairs=2,seed=0/test.json"
    assert (out / one).read_bytes() == (folder / one).read_bytes()
    assert len(outcomes(out, capsys, "--test")["done"]) == 8


def test_a_report_of_language_models_has_their_lowest_perplexity(tmp_path, capsys):
    folder = tmp_path / "words"
    command = ["sweep", "catbabi-lm/fwm", "--objective.type=language-model", f"--out={folder}", *STORIES, "--test"]
    assert cli.main(command) == 0
    (row,) = report.collect(folder)
    run = RunFolder.open(folder / "catbabi-lm/fwm/run")
    assert row.metric.name == "perplexity"
    assert row.validation.mean == min(record["valid"]["perplexity"] for record in run.records() if "valid" in record)
    assert row.test.mean == json.loads((run.path / "test.json").read_text())["perplexity"]
    capsys.readouterr()
    assert cli.main(["report", str(folder)]) == 0
    assert "validation perplexity" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["art/lstn", "--over=task.pairs=2"], 'There is no recipe "art/lstn"'),
        (["art/lstm", "--over=task.pears=2"], 'no option "pears"'),
        (["art/lstm", "--over=task.pairs=2,30"], "30 pairs need 30 different keys"),
        (["art/lstm", "--over=task.pairs"], '"task.pairs" is no setting with values'),
        (["art/lstm", "--over=task.pairs=2,"], '"task.pairs=2," is no setting with values'),
        (["art/lstm", "--over=task.pairs="], '"task.pairs=" is no setting with values'),
        (["art/lstm", "--over=task.pairs=[2"], '"task.pairs=[2" is no setting with values'),
        (["art/lstm", "--over=task.pairs=2", "--over=task.pairs=3"], "in more than one --over"),
        (["art/lstm", "--over=task.pairs=2,2"], "would be the same or share a folder"),
        (["art/lstm", "--over=training.seed=0,00"], "would be the same or share a folder"),
        (["art/lstm", "art/lstm"], "would be the same or share a folder"),
        (["art/lstm", "--over=task.pairs=2,3", "--task.pairs=4"], "--over task.pairs replaces --task.pairs"),
        (["art/lstm", "--over=task={type: mqar}", "--task.pairs=4"], "--over task replaces --task.pairs"),
        (["art/lstm", "--over=description=[a,b"], '"description=[a,b" is no setting with values'),
        (["art/lstm", "--threads=0"], "--threads is 0"),
    ],
)
def test_a_sweep_that_makes_no_sense_is_refused_before_it_begins(tmp_path, capsys, arguments, sentence):
    out = tmp_path / "out"
    assert cli.main(["sweep", *arguments, "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1
    assert not out.exists()


def test_a_best_model_of_another_recipe_is_not_tested(folder, tmp_path, capsys):
    """It could name code, and a sweep trusts what it has trained."""
    out = tmp_path / "copied"
    shutil.copytree(folder, out)
    path = out / "art/lstm/pairs=2,seed=0"
    (path / "test.json").unlink()
    tensors, metadata = checkpoint.load(path / "best.safetensors")
    metadata["recipe"]["model"]["core"] = "trap_of_test_sweep:Core"
    checkpoint.save(path / "best.safetensors", tensors, metadata)
    found = outcomes(out, capsys, "--test")
    assert found["failed"] == [str(path)] and len(found["done"]) == 7
    assert not (path / "test.json").exists()


def test_rows_are_means_over_seeds(folder):
    rows = report.collect(folder)
    assert [(row.recipe, row.settings) for row in rows] == [
        (name, {"task.pairs": pairs}) for pairs in ("2", "10") for name in sorted(NAMES)
    ]
    row = rows[0]
    assert row.seeds == ["0", "1"] and row.steps == 4 and row.minutes >= 0
    accuracies = []
    for seed in row.seeds:
        records = RunFolder.open(folder / f"art/fw-lstm/pairs=2,seed={seed}").records()
        accuracies.append(max(record["valid"]["answer_accuracy"] for record in records if "valid" in record))
    one, other = accuracies
    assert row.validation.mean == pytest.approx((one + other) / 2)
    assert row.validation.deviation == pytest.approx(abs(one - other) / 2**0.5)
    assert row.test is not None
    assert row.metric == Answers.headline
    assert report.Spread(0.5, 0.015).show(row.metric) == "50.00% ± 1.50%"
    assert report.Spread(0.5, None).show(row.metric) == "50.00%"


def test_a_table_and_figures(folder, tmp_path, capsys):
    out = tmp_path / "made"
    assert cli.main(["report", str(folder), "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    text = (tmp_path / "made.md").read_text()
    assert text.splitlines()[0] == "| recipe | pairs | seeds | validation answers | test | steps | minutes |"
    assert len(text.splitlines()) == 2 + 4
    for name in NAMES:
        assert name in shown and name in text
    assert (tmp_path / "made.png").read_bytes()[:4] == b"\x89PNG"
    drawing = xml.etree.ElementTree.parse(tmp_path / "made.svg").getroot()
    assert drawing.tag.endswith("svg")
    assert cli.main(["report", str(folder), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows[0].keys() == {"recipe", "metric", "settings", "seeds", "validation", "test", "steps", "minutes"}


def test_a_curve_stays_where_a_run_stopped(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(report, "write", lambda figure, path: written.append(figure))
    spread = report.Spread(0.5, None)
    curves = {"$a$": [[(10, 0.5), (20, 0.9)], [(10, 0.7), (20, 0.7), (30, 0.5)]], "b": [[(10, 0.1), (40, 0.2)]]}
    rows = [
        report.Row(name, Answers.headline, {"x": "_$1$"}, ["0"], spread, None, 1, 1.0, curve)
        for name, curve in curves.items()
    ]
    report.draw(rows, tmp_path / "drawn.svg")
    (axes, *_), (legend,) = written[0].axes, written[0].legends
    first = axes.lines[0]
    assert list(first.get_xdata()) == [10, 20, 30, 40]
    assert list(first.get_ydata()) == pytest.approx([0.6, 0.8, 0.7, 0.7])
    assert [text.get_text() for text in legend.get_texts()] == ["$a$", "b"]
    assert axes.get_title() == "x _$1$" and not axes.title.get_parse_math()


def test_a_folder_without_a_sweep_is_refused(tmp_path):
    with pytest.raises(UserError, match=re.escape(f"{tmp_path} holds no run of a sweep")):
        report.collect(tmp_path)


def test_a_point_knows_its_folder(tmp_path):
    (point,) = sweep.points(["art/lstm"], [], [])
    assert point.path(tmp_path) == tmp_path / "art/lstm/run"


ODD = ("../../x", "/etc", "..", ".", "a/b", "a_b", "a:b", "a b", "{b: [1, 2]}", "é", "x" * 300, "x" * 299 + "y")


def test_folders_of_odd_values_are_short_differ_and_stay_inside(tmp_path):
    settings = [{"description": value} for value in ODD] + [{"a": "1", "b": "2"}, {"a": "1,b=2"}, {"a": "1/b=2"}]
    paths = [sweep.Point("art/lstm", setting, None).path(tmp_path) for setting in settings]
    assert {path.resolve().parent for path in paths} == {tmp_path / "art/lstm"}
    assert all(0 < len(path.name.encode()) <= 120 for path in paths)
    assert len({path.name for path in paths[:-3]}) == len(ODD)
    assert paths[-1] not in paths[:-1]


def test_a_value_that_is_a_path_makes_a_folder_inside(tmp_path):
    out = tmp_path / "a/b/out"
    command = ["sweep", "art/lstm", "--over=description=../../x,/tmp/x", f"--out={out}", *SMALL, "--training.steps=1"]
    assert cli.main(command) == 0
    runs = list(tmp_path.rglob("config.yaml"))
    assert len(runs) == 2 and all(run.parent.parent == out / "art/lstm" for run in runs)


def test_commas_in_brackets_and_quotes_belong_to_a_value():
    over = [
        "task.delay=0,[1, 2],3",
        "description='a,b',\"c, d\",e",
        "training.early_stopping={target: 1, patience: 2},{patience: 3}",
    ]
    found = [list(sweep._axis(text)) for text in over]
    assert found == [
        ["task.delay", ["0", "[1, 2]", "3"]],
        ["description", ["'a,b'", '"c, d"', "e"]],
        ["training.early_stopping", ["{target: 1, patience: 2}", "{patience: 3}"]],
    ]
    points = sweep.points(["art/lstm"], over[1:], [])
    assert [point.recipe.description for point in points] == ["a,b", "a,b", "c, d", "c, d", "e", "e"]
    assert {point.recipe.training.early_stopping.patience for point in points} == {2, 3}


@pytest.mark.parametrize(
    "arguments", [["report", "FOLDER", "--out=no/such/name"], ["graphs", "returns", "x", "--out=a.gif"]]
)
def test_figures_are_checked_before_anything_is_read(arguments, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(report, "collect", None)
    assert cli.main([str(folder) if word == "FOLDER" else word for word in arguments]) == 2
    assert "cannot" in capsys.readouterr().err and not list(tmp_path.iterdir())
