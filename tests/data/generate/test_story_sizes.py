"""Stories of other sizes: correct answers, the given sizes, errors for impossible sizes."""

import json
import re

import pytest
from babi_solvers import SOLVERS

from fastweights import cli
from fastweights.data.babi import Question, encode, read_file, words
from fastweights.data.generate import GENERATORS, generate_story, questions_per_story
from fastweights.data.generate.babi_files import write_files
from fastweights.data.generate.story_sizes import ALL_OBJECTS, ALL_PEOPLE, ALL_PLACES, StorySizes
from fastweights.data.sources import GeneratedStories
from fastweights.errors import UserError
from fastweights.tasks.catbabi import CatBabi

SIZABLE = (1, 2, 3, *range(5, 15))
LARGE = StorySizes(people=9, places=9, objects=3, questions=6, statements=4, distractors=3)
SMALL = StorySizes(people=3, places=3, objects=1, questions=1)
NAMES = {*map(str.lower, ALL_PEOPLE)}


def stories(task, sizes, count=60):
    return [generate_story(task, 0, index, sizes) for index in range(count)]


@pytest.mark.parametrize("sizes", (LARGE, SMALL), ids=("large", "small"))
@pytest.mark.parametrize("task", SIZABLE)
def test_the_text_alone_proves_answers_and_support(task, sizes):
    for story in stories(task, sizes):
        asked = [line for line in story.lines if isinstance(line, Question)]
        assert len(asked) == sizes.questions
        assert len(encode(story).inputs) == len(words(story)) + 1  # bAbI's vocabulary suffices
        for question, solution in zip(asked, SOLVERS[task](story), strict=True):
            solutions = solution if isinstance(solution, list) else [solution]
            assert (question.answer, question.support) in solutions, (story, question)


@pytest.mark.parametrize("task", SIZABLE)
def test_no_question_concerns_a_bystander(task):
    for story in stories(task, StorySizes(distractors=2), 20):
        for number, line in enumerate(story.lines):
            if isinstance(line, Question):
                told_of = " ".join(story.lines[fact - 1].text for fact in line.support) + line.text + line.answer
                for aside in story.lines[number - 2 : number]:
                    (bystander,) = set(ALL_PEOPLE) & set(aside.text.split())
                    assert bystander not in told_of


def test_people_and_places_are_as_many_as_asked_for():
    said = {word for story in stories(1, StorySizes(people=12, places=3)) for word in words(story)}
    assert len(said & NAMES) == 12
    assert len(said & set(ALL_PLACES)) == 3
    said = {word for story in stories(2, StorySizes(objects=9)) for word in words(story)}
    assert said >= set(ALL_OBJECTS)


def test_sizes_without_a_value_are_those_of_babi():
    assert generate_story(2, 0, 0, StorySizes()) == generate_story(2, 0, 0)
    assert generate_story(2, 0, 0, StorySizes(people=4, places=6, objects=3)) == generate_story(2, 0, 0)


@pytest.mark.parametrize(
    ("task", "sizes", "sentence"),
    [
        (1, {"people": 22}, "22 people are too many: bAbI's vocabulary names 21; give people 21 or fewer"),
        (1, {"places": 10}, "10 places are too many: bAbI's vocabulary names 9"),
        (2, {"objects": 10}, "10 objects are too many: bAbI's vocabulary names 9"),
        (7, {"objects": 4}, "objects is 4, but bAbI has words for at most 3 in task 7"),
        (1, {"places": 1}, "places is 1, but a story needs a whole number of at least 2"),
        (1, {"people": 0}, "people is 0, but a story needs a whole number of at least 1"),
        (1, {"people": "many"}, "people is 'many', but"),
        (1, {"questions": 0}, "questions is 0"),
        (1, {"distractors": -1}, "distractors is -1"),
        (12, {"people": 1}, "people is 1, but task 12 needs at least 2"),
        (11, {"statements": 3}, "statements is 3, but task 11 has them in pairs; give an even number"),
        (14, {"questions": 9}, "In task 14 4 people live through 16 times, too few for 9 questions"),
        (14, {"distractors": 14}, "In task 14 17 other people live through 68 times, too few for 14 distractors"),
        (1, {"people": 21, "distractors": 1}, "All 21 people act in the story"),
        (4, {"people": 5}, "Stories of task 4 are of one size only; change the sizes of tasks 1-3,5-14 alone"),
    ],
)
def test_impossible_sizes(task, sizes, sentence):
    with pytest.raises(UserError, match=re.escape(sentence)):
        generate_story(task, 0, 0, StorySizes(**sizes))


@pytest.mark.parametrize("people", (1, 2, 3, 5, 21))
@pytest.mark.parametrize("statements", (1, 2, 3, 6))
def test_a_day_is_never_too_short_for_its_questions(people, statements):
    most = 0
    for questions in range(1, 60):
        try:
            GENERATORS[14].select_entities(StorySizes(people=people, statements=statements, questions=questions))
        except UserError:
            break
        most = questions
    for index in range(50 if most else 0):
        assert generate_story(14, 0, index, StorySizes(people=people, statements=statements, questions=most))
    assert most or 4 * people < 2 * statements + people


def test_every_task_asks_equally_often_in_training():
    task = CatBabi(babi_tasks="1,4,8")
    source = GeneratedStories(task.babi_tasks, 0, task._weights())
    told = [source.babi_task(index) for index in range(7000)]
    for number in (1, 4, 8):
        assert told.count(number) == pytest.approx(1000 * 5 / questions_per_story(number), rel=0.1)


def test_a_recipe_sets_sizes():
    task = CatBabi(babi_tasks="1", people=2, places=2, questions=1, validation_stories=30)
    said = {word for story in task.evaluation_stories(None, "valid") for word in words(story)}
    assert said & NAMES == {"mary", "john"}
    assert next(task.training_batches(None, 2, 0)).inputs.shape == (2, 200)
    with pytest.raises(UserError, match=r"Sizes of stories .* leave them or --data out"):
        CatBabi(babi_tasks="1", people=2).training_batches("folder", 2, 0)
    with pytest.raises(UserError, match="Stories of task 4 are of one size only"):
        CatBabi(babi_tasks="4", people=2).evaluation_stories(None, "valid")


def test_files_of_other_sizes(tmp_path, capsys):
    arguments = ["data", "generate", "--questions", "9", "--babi-tasks", "1", "--people", "2", "--json"]
    assert cli.main([*arguments, "--out", str(tmp_path / "one")]) == 0
    path = json.loads(capsys.readouterr().out)["files"][0]
    assert {word for story in read_file(path) for word in words(story)} & NAMES == {"mary", "john"}
    assert cli.main([*arguments, "--places", "12", "--out", str(tmp_path / "two")]) == 2
    assert "12 places are too many" in capsys.readouterr().err


def test_too_few_different_stories_are_said_to_be(tmp_path):
    tiny = StorySizes(people=1, places=2, questions=1)
    with pytest.raises(UserError, match=r"Task 9 has too few different stories of this size \(\d+ were found\)"):
        list(write_files(tmp_path, 3000, 0, (9,), tiny))
