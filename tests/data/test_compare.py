"""Distances between statistics of real and generated stories, with a noise floor."""

import json
import re

import pytest

from fastweights import cli
from fastweights.data.babi import Question, Statement, Story
from fastweights.data.compare import MEASURES, Comparison, compare, template
from fastweights.data.generate import generate_story
from fastweights.data.generate.babi_files import write_files
from fastweights.data.names import NAMES
from fastweights.errors import UserError


def stories(task: int, seed: int, count: int = 400) -> list[Story]:
    return [generate_story(task, seed, index) for index in range(count)]


def story(place: str, *facts: int) -> Story:
    lines = (Statement("Mary moved to the office."), Statement(f"Mary moved to the {place}."))
    return Story(1, (*lines, Question("Where is Mary?", place, facts)))


def test_distances_are_those_computed_by_hand():
    found = compare([story("garden", 2), story("kitchen", 2)], [story("garden", 2)] * 3 + [story("kitchen", 1, 2)])
    assert found["answers"].distance == pytest.approx(0.25)
    assert found["number of facts"].distance == pytest.approx(0.25)
    assert found["distance of facts"].distance == pytest.approx(0.2)
    assert found["distance of the nearest fact"].distance == 0
    assert found["distance of the farthest fact"].distance == pytest.approx(0.25)
    assert found["templates"].distance == found["lines per story"].distance == 0
    assert found["answers"].floor == 1  # a half is one story of the two
    assert found["number of facts"].ratio == float("inf")


@pytest.mark.parametrize("task", (2, 18))
def test_stories_of_the_same_kind_are_as_near_as_chance_allows(task):
    assert all(found.ratio < 2 for found in compare(stories(task, seed=0), stories(task, seed=1)).values())


def test_other_stories_are_far_away():
    found = compare(stories(1, seed=0), stories(11, seed=0))
    assert found["templates"].ratio > 5
    assert found["number of facts"] == Comparison(1.0, 0.0)
    assert found["lines per story"] == Comparison(0.0, 0.0)
    assert found["lines per story"].ratio == 0


def test_the_seed_alone_decides_the_halves():
    real, generated = stories(2, seed=0, count=60), stories(2, seed=1, count=60)
    found = compare(real, generated)
    assert found == compare(real, generated)
    assert found.keys() == MEASURES.keys()
    other = compare(real, generated, seed=1)
    assert other["words"].distance == found["words"].distance
    assert other["words"].floor != found["words"].floor


def test_a_template_keeps_all_but_the_names():
    assert template("Where is Mary?") == "where is <person> ?"
    assert template("This morning Julie went back to the park.") == ("this morning <person> went back to the <place> .")
    assert template("Mice are afraid of wolves.") == "<animal> are afraid of <animal> ."


def test_a_name_names_one_thing():
    names = [name for of_a_kind in NAMES.values() for name in of_a_kind]
    assert len(names) == len(set(names))


def test_too_few_stories_are_a_user_error():
    with pytest.raises(UserError, match="1 real and 1 generated stories are too few"):
        compare(stories(1, 0, 1), stories(1, 0, 1))
    with pytest.raises(UserError, match="2 real and 0 generated stories are too few"):
        compare(stories(1, 0, 2), [])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folders = [tmp_path_factory.mktemp("stories") / name for name in ("one", "other")]
    for seed, (folder, tasks) in enumerate(zip(folders, ((1, 4), (1, 2, 4)), strict=True)):
        list(write_files(folder, 900, seed, tasks))
    return [str(folder) for folder in folders]


def test_command_line(folders, capsys):
    assert cli.main(["data", "compare", *folders, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found.keys() == {"1", "4"}  # the tasks in both
    assert found["1"].keys() == MEASURES.keys()
    assert all(one["distance"] <= 2.5 * one["floor"] for of_task in found.values() for one in of_task.values())
    assert cli.main(["data", "compare", *folders, "--babi-tasks", "4", "--split", "valid"]) == 0
    shown = capsys.readouterr().out
    assert "distance of the nearest fact" in shown
    assert f"of {len(MEASURES)} measures" in shown.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--babi-tasks", "2"], "does not hold qa2_train.txt|holds none of qa2_train.txt"),
        (["--babi-tasks", "21"], "there is no bAbI task 21"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence(folders, capsys, arguments, sentence):
    assert cli.main(["data", "compare", *folders, *arguments]) == 2
    error = capsys.readouterr().err
    assert re.search(sentence, error) and error.count("\n") == 1


def test_a_directory_without_stories_is_named(folders, tmp_path, capsys):
    assert cli.main(["data", "compare", folders[0], str(tmp_path)]) == 2
    assert "have no file of the train split in common" in capsys.readouterr().err
    assert cli.main(["data", "compare", folders[0], str(tmp_path / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err
