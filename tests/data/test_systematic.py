"""A systematic split: questions of training and of evaluation share names, but no combination of names."""

import itertools

import pytest

from fastweights import tasks
from fastweights.data.babi import VOCABULARY, Question, Statement, Story, words
from fastweights.data.generate import GENERATORS, generate_story
from fastweights.data.sources import GeneratedStories
from fastweights.data.systematic import combination, filter_questions, filter_stories, is_held_out
from fastweights.errors import UserError

FRACTION = 0.3
STORIES = [generate_story(task, 0, index) for task in GENERATORS for index in range(60)]


def asked(stories):
    """The combinations that questions of stories are about, by task."""
    return {
        (story.babi_task, combination(story, line))
        for story in stories
        for line in story.lines
        if isinstance(line, Question)
    }


def test_the_two_parts_share_no_combination_and_miss_none():
    for_training, for_evaluation = (asked(filter_stories(STORIES, held_out, FRACTION)) for held_out in (False, True))
    assert for_training and for_evaluation
    assert not for_training & for_evaluation
    assert for_training | for_evaluation == asked(STORIES)


def test_about_the_share_is_held_out():
    people, places = ("mary", "john", "daniel", "sandra"), ("kitchen", "garden", "office", "hallway", "bathroom")
    things = ("apple", "milk", "football", "pajamas", "box", "chest", "container", "suitcase")
    combinations = list(itertools.product(people, places, things))
    held_out = [names for names in combinations if is_held_out(2, names, FRACTION)]
    assert abs(len(held_out) / len(combinations) - FRACTION) < 0.12
    assert not any(is_held_out(2, names, 0.0) for names in combinations)
    for place in range(3):  # every name is met in training
        assert {names[place] for names in combinations} == {
            names[place] for names in combinations if names not in held_out
        }


def test_questions_keep_their_proofs():
    for story in STORIES:
        for held_out in (False, True):
            part = filter_questions(story, held_out, FRACTION)
            if part is None:
                continue
            assert isinstance(part.lines[-1], Question)
            statements, whole = ([x for x in y.lines if isinstance(x, Statement)] for y in (part, story))
            assert statements == whole[: len(statements)]
            proofs = {
                (line.text, line.answer, tuple(story.lines[n - 1].text for n in line.support))
                for line in story.lines
                if isinstance(line, Question)
            }
            for line in part.lines:
                if isinstance(line, Question):
                    facts = tuple(part.lines[n - 1].text for n in line.support)
                    assert (line.text, line.answer, facts) in proofs


def test_lists_name_each_thing():
    story = Story(8, (Statement("Mary got the milk there."), Question("What is Mary carrying?", "milk,apple", (1,))))
    assert combination(story, story.lines[1]) == ("apple", "mary", "milk")


def test_training_streams_never_ask_what_is_held_out():
    source = GeneratedStories((1, 2), seed=0, held_out=FRACTION)
    again = GeneratedStories((1, 2), seed=0, held_out=FRACTION)
    for index in range(40):
        assert (source[index].inputs == again[index].inputs).all()
    task = tasks.build({"type": "catbabi", "babi_tasks": "1", "held_out": FRACTION})
    for_evaluation = {names for _, names in asked(task.evaluation_stories(None, "valid"))}
    assert for_evaluation and all(is_held_out(1, names, FRACTION) for names in for_evaluation)
    place = dict(enumerate(VOCABULARY))
    met = set()
    for index in range(200):
        story = source[index]
        if story.babi_task == 1:
            text = [place[number] for number in story.inputs]
            met |= {tuple(sorted((text[t - 1], text[t + 1]))) for t, word in enumerate(text[:-1]) if word == "?"}
    assert met and not met & for_evaluation


def test_every_name_is_in_the_vocabulary():
    from fastweights.data import systematic

    assert set(VOCABULARY) >= systematic._NAMES
    assert all(words(story) for story in STORIES)


@pytest.mark.parametrize("fraction", [-0.1, 1.0])
def test_shares_that_make_no_sense_are_refused(fraction):
    with pytest.raises(UserError, match="held_out of the task"):
        tasks.build({"type": "catbabi", "held_out": fraction})


def test_a_share_that_leaves_no_question_is_refused_before_training_or_evaluation():
    task = tasks.build({"type": "catbabi", "babi_tasks": "1", "held_out": 0.999999})
    with pytest.raises(UserError, match=r"None of 1,000 stories of bAbI task 1 .* make task\.held_out smaller"):
        task.training_batches(None, 1, 0)
    task = tasks.build({"type": "catbabi", "babi_tasks": "1", "held_out": 1e-9})
    with pytest.raises(UserError, match=r"No question of these 100 stories .* make task\.held_out larger"):
        task.evaluation_batches(None, "valid", 1)
