import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastweights.data import babi
from fastweights.data.babi import Question, Statement, Story
from fastweights.errors import UserError

FIRST = Story(
    1,
    (
        Statement("Mary moved to the bathroom."),
        Statement("John went to the hallway."),
        Question("Where is Mary?", "bathroom", (1,)),
        Statement("Mary went back to the office."),
        Question("Where is Mary?", "office", (4,)),
    ),
)
SECOND = Story(1, (Statement("John moved to the garden."), Question("Where is John?", "garden", (1,))))
TEXT = (
    "1 Mary moved to the bathroom.\n"
    "2 John went to the hallway.\n"
    "3 Where is Mary? \tbathroom\t1\n"
    "4 Mary went back to the office.\n"
    "5 Where is Mary? \toffice\t4\n"
    "1 John moved to the garden.\n"
    "2 Where is John? \tgarden\t1\n"
)


def written(directory: Path, text: str | bytes = TEXT, name: str = "qa1_train.txt") -> Path:
    path = directory / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


# Words and numbers


def test_vocabulary_is_fixed():
    assert len(babi.VOCABULARY) == len(set(babi.VOCABULARY)) == 180
    assert babi.VOCABULARY[babi.PAD] == "<pad>"
    assert babi.VOCABULARY[babi.EOS] == "<eos>"
    assert babi.VOCABULARY[babi.QUESTION_MARK] == "?"
    assert list(babi.VOCABULARY[2:]) == sorted(babi.VOCABULARY[2:])


def test_published_vocabulary_adds_the_task_numbers_at_the_end():
    published = babi.vocabulary(as_published=True)
    assert published[:180] == babi.vocabulary() == babi.VOCABULARY
    assert published[180:] == tuple(str(task) for task in range(1, 21))


def test_words_are_lower_cased_and_answers_follow_question_marks():
    assert " ".join(babi.words(FIRST)) == (
        "mary moved to the bathroom . john went to the hallway . where is mary ? bathroom "
        "mary went back to the office . where is mary ? office"
    )


def test_an_answer_of_several_words_is_one_word():
    path = Story(19, (Question("How do you go from the kitchen to the garden?", "n,w", (1,)),))
    assert babi.words(path)[-2:] == ["?", "n,w"]


def test_encoding_shifts_the_words_by_one():
    encoded = babi.encode(FIRST)
    assert encoded.babi_task == 1
    assert [babi.VOCABULARY[word] for word in encoded.inputs] == ["<eos>", *babi.words(FIRST)]
    assert [babi.VOCABULARY[word] for word in encoded.targets] == [*babi.words(FIRST), "<eos>"]
    assert np.issubdtype(encoded.inputs.dtype, np.signedinteger)


def test_encoding_an_unknown_word_names_it():
    with pytest.raises(UserError, match=r'the word "bathrom" in a story of task 1 .*did you mean "bathroom"'):
        babi.encode(Story(1, (Statement("Mary moved to the bathrom."),)))


# Names of tasks


@pytest.mark.parametrize(
    ("text", "tasks"),
    [("3", (3,)), ("1-3", (1, 2, 3)), (" 7 - 8 , 2", (2, 7, 8)), ("1-20", tuple(range(1, 21)))],
)
def test_parse_babi_tasks(text, tasks):
    assert babi.parse_babi_tasks(text) == tasks


@given(st.sets(st.integers(1, 20), min_size=1))
def test_tasks_are_written_as_they_are_read(tasks):
    assert babi.parse_babi_tasks(babi.format_babi_tasks(tasks)) == tuple(sorted(tasks))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", '"" in the bAbI tasks "" is no task'),
        ("1,,2", '"" in the bAbI tasks "1,,2" is no task'),
        ("1,two", '"two" in the bAbI tasks "1,two" is no task'),
        ("-3", '"-3" in the bAbI tasks "-3" is no task'),
        ("4-2", 'the range "4-2" in the bAbI tasks "4-2" runs backwards; write 2-4'),
        ("0", "there is no bAbI task 0; they are 1 to 20"),
        ("1-999999999", "there is no bAbI task 999999999"),
        ("1-5,3", 'task 3 stands more than once in the bAbI tasks "1-5,3"'),
    ],
)
def test_parse_babi_tasks_explains_what_is_wrong(text, sentence):
    with pytest.raises(UserError, match=re.escape(sentence)):
        babi.parse_babi_tasks(text)


# Files


@pytest.mark.parametrize("text", [TEXT, TEXT.rstrip("\n"), TEXT.replace("\n", "\r\n"), TEXT.replace("? ", "?")])
def test_read_file(tmp_path, text):
    assert babi.read_file(written(tmp_path, text)) == [FIRST, SECOND]


STORY = "1 Mary moved to the bathroom.\n"
GOOD = STORY + "2 Where is Mary?\tbathroom\t1\n"


@pytest.mark.parametrize(
    ("text", "line", "sentence"),
    [
        ("", 1, "empty"),
        ("\n", 1, "no index"),
        (GOOD + "\n" + GOOD, 3, "no index"),
        (GOOD + "Mary moved to the office.\n", 3, "no index"),
        (GOOD + "1\n", 3, "no index"),
        (GOOD + "9" * 5000 + " Mary moved to the office.\n", 3, "no index"),
        ("2 Mary moved to the office.\n", 1, "index 2 instead of 1;"),
        (STORY + "3 Mary moved to the office.\n", 2, "index 3 instead of 2 or 1;"),
        (STORY + "0 Mary moved to the office.\n", 2, "index 0 instead of 2 or 1;"),
        (b"\x89PNG\r\n\x1a\n\x00", 1, "not text"),
        (GOOD.encode() + b"1 Mary \xff\xfe moved.\n", 3, "not text"),
        ("PK\x03\x04\x00\x00", 1, "no index"),
        (STORY + "2 Where is Mary?\n", 2, "has no answer"),
        (STORY + "2 Where is Mary?\t\t1\n", 2, "has no answer"),
        (STORY + "2 Where is Mary?\tbathroom\n", 2, "supporting line numbers"),
        (STORY + "2 Where is Mary?\tbathroom\tone\n", 2, "supporting line numbers"),
        (STORY + "2 Where is Mary?\tbathroom\t1\t1\n", 2, "supporting line numbers"),
        (STORY + "2 Where is Mary?\tbathroom\t2\n", 2, "supported by line 2"),
        (GOOD + "3 Where is Mary?\tbathroom\t2\n", 3, "supported by line 2"),
        (STORY + "2 Where is Mary\tbathroom\t1\n", 2, 'no statement that ends in "."'),
        (STORY + "2 Mary moved\n", 2, 'no statement that ends in "."'),
        (STORY + "2 Mary moved to the bathrom.\n", 2, "the word 'bathrom'"),
        (STORY + "2 Mary moved. John moved.\n", 2, "the word 'moved.'"),
        (STORY + "2 Where is Mary?\tbath room\t1\n", 2, "the word 'bath room'"),
        (GOOD + STORY, 3, "cut short"),
        (STORY + GOOD, 1, "cut short"),
    ],
)
def test_a_faulty_file_is_named_with_its_line(tmp_path, text, line, sentence):
    path = written(tmp_path, text)
    with pytest.raises(UserError) as raised:
        babi.read_file(path)
    message = str(raised.value)
    assert f"{path}:{line}" in message
    assert not re.search(rf"{re.escape(str(path))}:{line}\d", message)
    assert sentence in message
    assert ";" in message, "it says what to do"
    assert message.isprintable()


@given(st.binary(max_size=200))
def test_any_file_is_read_whole_or_refused(tmp_path_factory, content):
    path = written(tmp_path_factory.getbasetemp(), content)
    with pytest.raises(UserError, match=re.escape(str(path)) + ":[0-9]+"):
        babi.read_file(path)


@given(cut=st.integers(0, len(TEXT) - 1))
def test_a_file_cut_short_loses_no_line_silently(tmp_path_factory, cut):
    path = written(tmp_path_factory.getbasetemp(), TEXT[:cut])
    try:
        stories = babi.read_file(path)
    except UserError as error:
        assert f"{path}:" in str(error)
    else:
        assert sum(len(story.lines) for story in stories) == len(TEXT[:cut].splitlines())


@pytest.mark.parametrize("name", ["stories.txt", "qa0_train.txt", "qa21_train.txt"])
def test_a_file_name_must_tell_a_task(tmp_path, name):
    with pytest.raises(UserError, match="task"):
        babi.read_file(written(tmp_path, name=name))


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match=r"qa1_train\.txt cannot be read \(No such file"):
        babi.read_file(tmp_path / "qa1_train.txt")


# Splits and counts


def test_read_split_goes_through_the_tasks(tmp_path):
    written(tmp_path)
    written(tmp_path, name="qa4_train.txt")
    stories = babi.read_split(tmp_path, "train", (1, 4))
    assert [story.babi_task for story in stories] == [1, 1, 4, 4]
    assert stories[:2] == [FIRST, SECOND]


def test_as_published_the_last_story_of_each_file_is_lost(tmp_path):
    written(tmp_path)
    written(tmp_path, name="qa4_train.txt")
    stories = babi.read_split(tmp_path, "train", (1, 4), as_published=True)
    assert [(story.babi_task, story.lines) for story in stories] == [(1, FIRST.lines), (4, FIRST.lines)]


def test_a_missing_file_is_named_with_the_way_on(tmp_path):
    for task in (1, 2, 4, 5, 6):
        written(tmp_path, name=f"qa{task}_train.txt")
    with pytest.raises(UserError) as raised:
        babi.read_split(tmp_path, "train", range(1, 7))
    assert str(raised.value) == (
        f"{tmp_path} does not hold qa3_train.txt; leave the missing ones out with "
        "--babi-tasks 1,2,4-6 (in a recipe, task.babi_tasks)"
    )


def test_a_folder_without_any_of_the_files(tmp_path):
    with pytest.raises(UserError, match=r"holds none of qa1_valid\.txt, qa2_valid\.txt; give a folder"):
        babi.read_split(tmp_path, "valid", (1, 2))
    with pytest.raises(UserError, match="holds no bAbI file"):
        babi.statistics(tmp_path)


@pytest.mark.parametrize("read", [lambda path: babi.read_split(path, "train"), babi.statistics])
def test_a_missing_folder(tmp_path, read):
    with pytest.raises(UserError, match=r"there is no directory .*nowhere"):
        read(tmp_path / "nowhere")


def test_an_unknown_split(tmp_path):
    with pytest.raises(UserError, match='no split "validation"; did you mean "valid"'):
        babi.read_split(tmp_path, "validation")


def test_an_unknown_task(tmp_path):
    with pytest.raises(UserError, match="no bAbI task 21"):
        babi.read_split(tmp_path, "train", (1, 21))


def test_statistics(tmp_path):
    written(tmp_path)
    written(tmp_path, name="qa4_valid.txt")
    whole = {"stories": 2, "questions": 3, "tokens": len(babi.words(FIRST)) + len(babi.words(SECOND))}
    counts = babi.statistics(tmp_path)
    assert list(counts) == ["train", "valid"]
    assert counts["train"] == {
        **whole,
        "babi_tasks": {1: whole},
        "missing": [f"qa{task}_train.txt" for task in range(2, 21)],
    }
    assert counts["valid"]["babi_tasks"] == {4: whole}
    published = babi.statistics(tmp_path, as_published=True)["train"]
    assert (published["stories"], published["questions"]) == (1, 2)
    assert published["tokens"] == len(babi.words(FIRST))


# The real files


@pytest.fixture
def real_files(real_data) -> Path:
    return real_data / "babi" / "en-valid-10k"


def counts_of(split: dict) -> tuple[int, int, int]:
    return split["stories"], split["questions"], split["tokens"]


def test_counts_of_the_real_files(real_files):
    counts = babi.statistics(real_files)
    published = babi.statistics(real_files, as_published=True)
    assert counts_of(counts["valid"]) == (6_265, 20_002, 573_528)
    assert counts_of(published["valid"]) == (6_245, 19_907, 570_894)
    if counts["train"]["missing"] == ["qa3_train.txt"]:
        assert counts_of(published["train"]) == (54_577, 170_914, 4_263_959)


def test_vocabulary_is_that_of_the_real_files(real_files):
    used = set()
    for path in sorted(real_files.glob("qa*_*.txt")):
        for story in babi.read_file(path):
            used.update(babi.words(story))
    assert used == set(babi.VOCABULARY[2:])
