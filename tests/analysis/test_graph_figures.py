"""Maps, curves and walks: what they show is what the environments and the records say."""

import json
import shutil
from itertools import pairwise

import numpy as np
import pytest

from fastweights import cli, recipes, tasks
from fastweights.analysis import figures, graphs
from fastweights.environments.graphs import distances
from fastweights.training.runs import RunFolder

TINY = (
    "--task.graphs=12",
    "--model.core.memory_size=4",
    "--model.core.slow={type: lstm, hidden_size: 16}",
    "--training.batch_size=4",
    "--training.eval_batch_size=4",
    "--training.steps=6",
    "--training.report_every=1",
    "--training.evaluate_every=2",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("trained") / "agent"
    assert cli.main(["train", "graph-rl/fwm", *TINY, f"--out={out}"]) == 0
    return out


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were written."""
    figures = []
    write = graphs.write
    monkeypatch.setattr(graphs, "write", lambda figure, path: (figures.append(figure), write(figure, path)))
    return figures


def test_a_map_shows_every_valid_action(drawn, tmp_path, capsys):
    out = tmp_path / "maps.png"
    assert cli.main(["graphs", "maps", "2", "5", "--split", "train", f"--out={out}"]) == 0
    assert out.stat().st_size > 5000 and str(out) in capsys.readouterr().out
    task = tasks.build({"type": "graph-rl"})
    moves = task.environments("train", 1).transitions
    (figure,) = drawn
    assert len(figure.axes) == 2
    for panel, number in zip(figure.axes, (2, 5), strict=True):
        texts = [text.get_text() for text in panel.texts]
        assert texts[-5:] == list("01234")  # the places
        labels = [label for label in texts[:-5] if label]
        edges = {(place, int(to)) for place in range(5) for to in moves[number, place] if to != place}
        assert len(labels) == len(edges)
        assert sum(len(label.split(", ")) for label in labels) == 10
        colors = [line.get_color() for line in panel.lines]
        assert colors.count(graphs.AGENT) == colors.count(graphs.GOAL) == 1


def test_curves_are_means_in_bands():
    records = [{"step": step, "train": {"return": float(step)}} for step in range(1, 1001)]
    records += [{"step": 10, "valid": {"return": 0.0, "test_return": 7.0}}]
    episodes, returns = graphs.curve(records, "train")
    assert len(episodes) <= graphs.BANDS and episodes == sorted(episodes)
    assert episodes[0] == returns[0] == 1.0
    assert returns[-1] == pytest.approx(np.mean([step for step in range(1, 1001) if step > 1000 ** (39 / 40)]), abs=5)
    assert graphs.curve(records, "test") == ([pytest.approx(10.0)], [7.0])


def test_rewards_are_drawn_with_their_bounds(run, drawn, tmp_path):
    out = tmp_path / "returns.svg"
    assert cli.main(["graphs", "returns", str(run), str(run), f"--out={out}", "--json"]) == 0
    assert out.stat().st_size > 5000
    (figure,) = drawn
    task = tasks.build(recipes.load("graph-rl/fwm", TINY[:1]).task)
    for panel, split in zip(figure.axes, ("train", "test"), strict=True):
        assert panel.get_xscale() == "log"
        bounds = [line.get_ydata()[0] for line in panel.lines if line.get_linestyle() != "-"]
        assert sorted(bounds) == pytest.approx(sorted(task.bounds(split).values()))  # once for runs of the same rules
    records = RunFolder.open(run).records()
    tested = [record["valid"]["test_return"] for record in records if "valid" in record]
    curves = [line for line in figure.axes[1].lines if line.get_linestyle() == "-"]
    assert len(curves) == 2 and curves[0].get_ydata() == pytest.approx(tested)


def test_a_run_without_records_is_drawn_as_its_bounds(drawn, tmp_path):
    with RunFolder.create(tmp_path / "young", {"recipe": recipes.load("graph-rl/fwm", TINY[:1]).to_dict()}):
        graphs.draw_returns([tmp_path / "young"], tmp_path / "returns.png")
    assert [len(panel.lines) for panel in drawn[0].axes] == [3, 3]


@pytest.mark.parametrize("variant", ["paper", "as-published"])
def test_a_walk_is_told_way_by_way(run, variant, capsys):
    arguments = ["graphs", "walk", str(run), "--graph=3", "--seed=4", f"--task.variant={variant}"]
    capsys.readouterr()
    assert cli.main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    transitions, paths = np.array(found["transitions"]), found["paths"]
    assert sum(len(path["actions"]) for path in paths) == 30
    invalid = 0
    for path in paths:
        states = path["states"]
        assert [
            transitions[place, action] for place, action in zip(states[:-1], path["actions"], strict=True)
        ] == states[1:]
        assert path["arrived"] == (states[-1] == path["goal"]) and path["goal"] not in states[:-1]
        assert path["fewest"] == distances(transitions[None])[0, states[0], path["goal"]]
        invalid += sum(before == after for before, after in pairwise(states))
    assert [path["first_step"] for path in paths] == np.cumsum(
        [1, *(len(path["actions"]) for path in paths[:-1])]
    ).tolist()
    assert found["return"] == pytest.approx(10 * sum(path["arrived"] for path in paths) - 0.05 * invalid)
    if variant == "paper":
        assert all(len(path["actions"]) == 6 for path in paths[:-1] if not path["arrived"])
    assert cli.main(arguments) == 0
    printed = capsys.readouterr().out
    twice = max({path["goal"] for path in paths}, key=[path["goal"] for path in paths].count)
    assert f"path 1 to {twice}" in printed and f"path 2 to {twice}" in printed
    assert cli.main(arguments) == 0
    assert capsys.readouterr().out == printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["maps", "600", "--out=maps.png"], "There is no graph 600; they are numbered from 0 to 599"),
        (["maps", "--out=maps.rubbish"], "maps.rubbish cannot be written: its name must end in .png, .svg or .pdf"),
        (["maps", "--out=m"], "The figure m cannot be written: its name must end in .png, .svg or .pdf"),
        (["maps", "--out=no/maps.png"], "cannot write no/maps.png"),
        (["maps", "--out=maps.png", "--model.x=1"], "leave --model.x=1 out"),
        (["walk", "RUN", "--seed=-1"], "--seed is -1; give 0 or more"),
        (["walk", "RUN", "--objective.discount=0.5"], "leave --objective.discount=0.5 out"),
        (["walk", "RUN", "--training.seed=1"], "leave --training.seed=1 out"),
        (["returns", "RUN", "--out=returns"], "The figure returns cannot be written"),
        (["maps", "--out=maps.png", "--task.states=1"], "there is no graph of 1 states and 3 actions"),
        (["walk", "RUN", "--graph=12"], "There is no graph 12; they are numbered from 0 to 11"),
        (
            ["walk", "RUN", "--task.states=6"],
            "trained with observations of size 17 and 3 actions, and the task has observations of size 19",
        ),
        (["returns", "nowhere", "--out=returns.png"], "nowhere holds no run"),
        (["returns", "words", "--out=returns.png"], "words is no run of an agent on graphs"),
    ],
)
def test_what_cannot_be_shown(arguments, message, run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with RunFolder.create("words", {"recipe": recipes.load("catbabi-qa/fwm").to_dict()}):
        capsys.readouterr()
        assert cli.main(["graphs", *(str(run) if word == "RUN" else word for word in arguments)]) == 2
    printed = capsys.readouterr().err
    assert message in printed and printed.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"words"}


@pytest.mark.parametrize("train", ["much", None, {}, {"return": None}, {"return": "x"}, {"return": float("inf")}])
def test_records_that_cannot_be_drawn_are_refused(train, run, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "odd")
    (tmp_path / "odd/metrics.jsonl").write_text(json.dumps({"step": 1, "train": train}) + "\n")
    capsys.readouterr()
    assert cli.main(["graphs", "returns", str(tmp_path / "odd"), f"--out={tmp_path / 'out.png'}"]) == 2
    printed = capsys.readouterr().err
    assert "odd has records that are none of an agent" in printed and printed.count("\n") == 1


def test_a_figure_is_tried_before_it_is_drawn_and_what_was_there_stays(tmp_path):
    figures.check(tmp_path / "new.png")
    (tmp_path / "old.svg").write_text("kept")
    figures.check(tmp_path / "old.svg")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("old.svg", "kept")]
