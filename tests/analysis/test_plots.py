"""Any runs as curves and as bars: the numbers are those of the records, labels say what differs, odd runs are named."""

import json
import shutil
import xml.etree.ElementTree
from itertools import pairwise

import pytest
from matplotlib.colors import to_rgb

from fastweights import cli
from fastweights.analysis import figures, plots, records
from fastweights.errors import UserError
from trainings import GRAPHS, SEQUENCES

CORES = {"lstm": ("lstm-0", "lstm-1"), "fw-lstm": ("fw-lstm-0",)}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two seeds of one recipe, of which one has another report_every, and a run of another."""
    folder = tmp_path_factory.mktemp("runs")
    for name in ("lstm-0", "lstm-1", "fw-lstm-0"):
        core, _, seed = name.rpartition("-")
        options = (*SEQUENCES, "--training.report_every=3") if name == "lstm-1" else SEQUENCES
        assert cli.main(["train", f"art/{core}", *options, "--seed", seed, "--out", str(folder / name)]) == 0
    return folder


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were written."""
    found = []
    write = plots.write
    monkeypatch.setattr(plots, "write", lambda figure, path: (found.append(figure), write(figure, path)))
    return found


@pytest.fixture
def plot(capsys):
    """Runs `fastweights plot` and returns its JSON and what it says of runs that are left out."""

    def run(*arguments):
        capsys.readouterr()
        assert cli.main(["plot", *map(str, arguments), "--json"]) == 0
        printed = capsys.readouterr()
        return json.loads(printed.out), printed.err.splitlines()

    return run


def refusal(capsys, *arguments):
    """The last line that `fastweights plot` says where it refuses."""
    capsys.readouterr()
    assert cli.main(["plot", *map(str, arguments)]) == 2
    return capsys.readouterr().err.splitlines()[-1]


def validations(path):
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return {record["step"]: record["valid"] for record in lines if "valid" in record}


def write_run(path, *values, name="answer_accuracy", **more):
    """A folder of records alone: a validation for each value."""
    path.mkdir(parents=True)
    lines = [{"step": 10 * step, "valid": {name: value, **more}} for step, value in enumerate(values, 1)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_seeds_are_one_line_of_mean_least_and_most(runs, plot):
    found, skipped = plot(runs / "lstm-0", runs / "fw-lstm-0", runs / "lstm-1")
    assert found["metric"] == "valid.answer_accuracy" and not skipped
    assert [(line["label"], len(line["runs"])) for line in found["lines"]] == [("lstm", 2), ("fw-lstm", 1)]
    seeds = [validations(runs / name) for name in CORES["lstm"]]
    line = found["lines"][0]
    assert line["steps"] == [2, 4, 6]
    for step, mean, least, most in zip(line["steps"], line["mean"], line["least"], line["most"], strict=True):
        values = [seed[step]["answer_accuracy"] for seed in seeds]
        assert (mean, least, most) == (pytest.approx(sum(values) / 2), min(values), max(values))


@pytest.mark.parametrize("metric", ["valid.loss", "train.loss", "valid.groups.1.accuracy"])
def test_any_recorded_metric(metric, runs, plot):
    found, _ = plot(runs / "lstm-0", "--metric", metric)
    (line,) = found["lines"]
    lines = map(json.loads, (runs / "lstm-0/metrics.jsonl").read_text().splitlines())
    assert line["mean"] == [value for record in lines for value in plots.look_up(record, metric)]
    assert line["steps"] == [2, 4, 6]


def test_a_folder_stands_for_the_runs_in_it_and_a_run_counts_once(runs, plot, tmp_path):
    whole, _ = plot(runs)
    assert [(line["label"], len(line["runs"])) for line in whole["lines"]] == [("fw-lstm", 1), ("lstm", 2)]
    again, _ = plot(runs, runs / "lstm-0", runs / ".." / runs.name / "lstm-1")
    assert again == whole


def test_runs_of_one_name_are_one_line(runs, plot):
    found, _ = plot(f"a=b={runs}/lstm-0", f"a=b={runs}/fw-lstm-0", f"$x_1$={runs}/lstm-1/metrics.jsonl")
    assert [(line["label"], len(line["runs"])) for line in found["lines"]] == [("a=b", 2), ("$x_1$", 1)]


def test_paths_with_equals_signs_are_paths(plot, tmp_path):
    path = write_run(tmp_path / "pairs=8,seed=0", 0.5)
    found, _ = plot(path, f"mine={path}")
    assert [line["label"] for line in found["lines"]] == [str(path), "mine"]


def test_between_its_points_a_run_is_interpolated_up_to_where_the_first_ends():
    steps, spreads = plots.average([[(10, 0.0), (30, 1.0), (40, 0.0)], [(20, 1.0), (30, 0.0)]])
    assert steps == [20, 30]
    assert spreads == [plots.Spread(0.75, 0.5, 1.0), plots.Spread(0.5, 0.0, 1.0)]


def test_labels_say_what_differs():
    def differences(*recipes):
        return records.differences([records.settings_of(recipe) for recipe in recipes])

    def config(core, data=None, **training):
        return {"recipe": {"description": str(training), "model": {"core": core}, "training": training}, "data": data}

    fwm = {"type": "fwm", "hidden_size": 8}
    assert differences(config("lstm", seed=1), config({"type": "lstm"}, seed=2)) == ["lstm", "lstm"]
    assert differences(config(fwm), config(fwm | {"num_reads": 1})) == ["fwm", "num_reads 1"]
    assert differences(config(fwm), config({"type": "lstm", "hidden_size": 9})) == ["fwm", "lstm"]
    assert differences(config(fwm, "files", clip_norm=None), config("lstm", clip_norm=1.0)) == [
        "fwm, data files", "lstm, clip_norm 1.0",
    ]  # fmt: skip
    slow = {"type": "fwm", "hidden_size": 8, "slow": {"type": "lstm", "hidden_size": 9}}
    assert differences(config(slow), config(fwm)) == ["slow lstm, model.core.slow.hidden_size 9", "fwm"]
    assert differences({}, config(fwm)) == ["", "fwm"]


def test_records_without_a_configuration_have_their_path_as_label(plot, tmp_path):
    one, other = write_run(tmp_path / "one", 0.5, 0.75), write_run(tmp_path / "other", 0.25)
    (tmp_path / "own.jsonl").write_bytes((other / "metrics.jsonl").read_bytes())
    found, _ = plot(one, other, tmp_path / "own.jsonl")
    assert [line["label"] for line in found["lines"]] == [str(one), str(other), str(tmp_path / "own.jsonl")]
    assert found["lines"][0]["mean"] == [0.5, 0.75]


def test_the_legend_is_in_the_order_of_the_ends_and_says_labels_as_they_are(plot, drawn, tmp_path):
    words = [
        f"{name}={write_run(tmp_path / str(number), *values)}"
        for number, (name, values) in enumerate({"_low": (0.9, 0.1), "$x$ high": (0.2, 0.8), "mid": (0.5,)}.items())
    ]
    plot(*words, "--out", tmp_path / "curves.svg")
    assert xml.etree.ElementTree.parse(tmp_path / "curves.svg").getroot().tag.endswith("svg")
    (legend,) = drawn[0].legends
    assert [text.get_text() for text in legend.get_texts()] == ["$x$ high", "mid", "_low"]
    assert not any(text.get_parse_math() for text in legend.get_texts())
    lines = drawn[0].axes[0].lines
    assert [handle.get_color() for handle in legend.legend_handles] == [lines[n].get_color() for n in (1, 2, 0)]


def test_letters_that_the_font_has_not_are_drawn_as_boxes(plot, tmp_path):
    plot(f"字={write_run(tmp_path / 'run', 0.5)}", "--out", tmp_path / "curves.png")


@pytest.mark.parametrize("ending", figures.ENDINGS)
def test_a_figure_is_of_the_kind_of_its_name(ending, runs, plot, tmp_path):
    for kind, *options in (("curves",), ("bars", "--groups")):
        out = tmp_path / f"{kind}{ending}"
        plot(runs, *options, "--out", out)
        begins = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}[ending]
        assert out.read_bytes().startswith(begins) and out.stat().st_size > 5000


def test_many_runs_with_long_names_have_room(plot, drawn, tmp_path):
    words = [f"{number} {'and more ' * 9}={write_run(tmp_path / str(number), 0.5)}" for number in range(40)]
    plot(*words, "--out", tmp_path / "curves.png")
    (legend,) = drawn[0].legends
    box = legend.get_window_extent()
    assert box.y0 >= 0 and box.y1 <= drawn[0].bbox.y1 * 1.001


def test_neighbours_differ_in_colour_in_grey_and_without_any():
    looks = [figures.style(index) for index in range(len(figures.COLORS))]

    def grey(color):
        return sum(part * weight for part, weight in zip(to_rgb(color), (0.299, 0.587, 0.114), strict=True))

    for one, other in pairwise(looks):
        assert abs(grey(one.color) - grey(other.color)) > 0.05
        assert one.line != other.line and one.marker != other.marker and one.hatch != other.hatch
    assert len({(look.line, look.marker) for look in map(figures.style, range(36))}) == 36


def test_bars_are_the_groups_of_the_best_validation(runs, plot, drawn, tmp_path):
    found, _ = plot(runs / "lstm-0", runs / "lstm-1", runs / "fw-lstm-0", "--groups", "--out", tmp_path / "bars.png")
    assert (found["split"], list(found["groups"])) == ("valid", ["1", "2", "all"])
    assert found["groups"]["1"] == "pair 1 of 2"
    best = [max(validations(runs / name).values(), key=lambda metrics: metrics["answer_accuracy"])
            for name in CORES["lstm"]]  # fmt: skip
    lstm = found["lines"][0]["groups"]
    for group in ("1", "2"):
        values = [metrics["groups"][group]["accuracy"] for metrics in best]
        assert lstm[group] == {"mean": pytest.approx(sum(values) / 2), "least": min(values), "most": max(values)}
    assert lstm["all"]["most"] == max(metrics["answer_accuracy"] for metrics in best)
    (panel,) = drawn[0].axes
    heights = [bar.get_height() for bars in panel.containers[:1] for bar in bars]
    assert heights == [lstm[group]["mean"] for group in ("1", "2", "all")]
    assert [label.get_text() for label in panel.get_xticklabels()] == ["1\npair 1 of 2", "2\npair 2 of 2", "all"]


def test_bars_of_evaluations_on_the_test_split(runs, plot, tmp_path, capsys):
    words = []
    for name in ("lstm-0", "fw-lstm-0"):
        shutil.copytree(runs / name, tmp_path / name)
        capsys.readouterr()
        assert cli.main(["evaluate", str(tmp_path / name), "--split=test", "--json"]) == 0
        words.append(tmp_path / name / "test.json")
        words[-1].write_text(capsys.readouterr().out)
    found, _ = plot(*words, "--groups")
    assert found["split"] == "test" and [line["label"] for line in found["lines"]] == ["lstm", "fw-lstm"]
    evaluation = json.loads(words[0].read_text())
    assert found["lines"][0]["steps"] == [evaluation["step"]]
    assert found["lines"][0]["groups"]["all"]["mean"] == evaluation["answer_accuracy"]
    assert "others of the test split" in refusal(capsys, words[0], runs / "fw-lstm-0", "--groups")


def test_twenty_tasks_are_in_two_panels_and_a_missing_one_has_no_bar(plot, drawn, tmp_path):
    groups = {str(task): {"accuracy": task / 20, "questions": 5} for task in range(1, 21)}
    whole = write_run(tmp_path / "whole", 0.5, groups=groups)
    part = write_run(tmp_path / "part", 0.5, groups={task: row for task, row in groups.items() if task != "3"})
    found, _ = plot(whole, part, "--groups", "--out", tmp_path / "bars.png")
    assert list(found["groups"]) == [*map(str, range(1, 21)), "all"]
    assert "3" in found["lines"][0]["groups"] and "3" not in found["lines"][1]["groups"]
    assert [[len(bars) for bars in panel.containers] for panel in drawn[0].axes] == [[11, 10], [10, 10]]
    assert [text.get_text() for text in drawn[0].axes[0].texts] == ["–"]


def test_tables_for_people(runs, capsys):
    capsys.readouterr()
    assert cli.main(["plot", str(runs)]) == 0
    shown = capsys.readouterr().out
    assert "validation answer accuracy" in shown and "fw-lstm" in shown and "%" in shown
    assert cli.main(["plot", str(runs), "--groups"]) == 0
    assert "1 pair 1 of 2" in capsys.readouterr().out


BREAKS = {
    "a record that is none": ("metrics.jsonl", "[1]\n"),
    "a value that is no number": ("metrics.jsonl", '{"step": 1, "valid": {"answer_accuracy": "much"}}\n'),
    "a value that is not finite": ("metrics.jsonl", '{"step": 1, "valid": {"answer_accuracy": null}}\n'),
    "validations that are lists": ("metrics.jsonl", '{"step": 1, "valid": [1]}\n'),
    "no validation yet": ("metrics.jsonl", '{"step": 1, "train": {"loss": 1}}\n'),
    "nothing recorded yet": ("metrics.jsonl", ""),
    "a configuration that is a list": ("config.yaml", "[1]"),
    "a configuration without an end": ("config.yaml", "[" * 50_000),
    "a headline that is a number": ("config.yaml", "headline: 4"),
    "a headline of nothing": ("config.yaml", "headline: {name: [1], label: x, format: x}"),
}


@pytest.mark.parametrize("options", [[], ["--groups"]])
@pytest.mark.parametrize("kind", BREAKS)
def test_a_run_that_cannot_be_read_is_named_and_left_out(kind, options, runs, plot, tmp_path):
    shutil.copytree(runs, tmp_path / "runs")
    name, content = BREAKS[kind]
    (tmp_path / "runs/lstm-1" / name).write_text(content)
    found, skipped = plot(tmp_path / "runs", *options)
    assert [len(line["runs"]) for line in found["lines"]] == [1, 1]
    assert len(skipped) == 1 and "lstm-1 is left out: " in skipped[0]


@pytest.mark.parametrize("content", ["", "[1]", "{}", '{"step": "x", "split": "test"}', '{"step": 1, "split": "test"}'])
def test_an_evaluation_that_is_none_is_left_out(content, runs, plot, tmp_path):
    (tmp_path / "odd.json").write_text(content)
    found, skipped = plot(runs / "lstm-0", tmp_path / "odd.json", "--groups")
    assert len(found["lines"]) == 1 and len(skipped) == 1 and "odd.json is left out: " in skipped[0]


def test_a_recipe_that_names_code_outside_the_package_runs_none(runs, plot, tmp_path):
    shutil.copytree(runs / "lstm-0", tmp_path / "lstm-0")
    path = tmp_path / "lstm-0/config.yaml"
    path.write_text(path.read_text().replace("type: retrieval", f"type: {tmp_path}/trap.py:Task"))
    (tmp_path / "trap.py").write_text("raise SystemExit('run')")
    found, _ = plot(tmp_path / "lstm-0", "--groups")
    assert found["groups"] == {"1": "", "2": "", "all": ""}


def test_what_cannot_be_shown(runs, tmp_path, capsys):
    agent = tmp_path / "agent"
    assert cli.main(["train", "graph-rl/fwm", *GRAPHS, f"--out={agent}"]) == 0
    (tmp_path / "empty").mkdir()
    early, late = write_run(tmp_path / "early", 0.5), write_run(tmp_path / "late", 0.5)
    (late / "metrics.jsonl").write_text('{"step": 99, "valid": {"answer_accuracy": 1}}\n')
    for arguments, sentence in (
        ([runs / "none"], "There is no run"),
        ([f"name={runs}/none"], "There is no run"),
        ([tmp_path / "empty"], "empty holds no run; check the path"),
        ([runs / "lstm-0/best.safetensors"], "No run can be shown"),
        ([agent, runs], "different headline metrics (valid.answer_accuracy, valid.return); choose one with --metric"),
        ([agent, "--groups"], "No run can be shown"),
        ([runs, "--metric=valid.los"], "No run can be shown"),
        ([runs, "--metric=loss", "--groups"], "leave --metric or --groups out"),
        ([runs, "--out=curves.gif"], "its name must end in .png, .svg or .pdf"),
        ([f"a={early}", f"a={late}"], "The runs of a have no steps in common"),
    ):
        assert sentence in refusal(capsys, *arguments)
    with pytest.raises(UserError, match="No run can be shown"):
        plots.curves([str(runs / "lstm-0")], "valid.los", skipped := [].append)
    assert skipped.__self__ == [f'{runs}/lstm-0 is left out: its records have no valid.los; did you mean "valid.loss"?']
