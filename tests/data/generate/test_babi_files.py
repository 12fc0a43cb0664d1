"""Generated stories as files: bAbI's own format, splits that share nothing, the same bytes each time."""

import hashlib
import json

import pytest

from fastweights import cli
from fastweights.data.babi import SPLITS, Question, file_name, read_file, statistics
from fastweights.data.generate import GENERATORS
from fastweights.data.generate.babi_files import TASKS_WITH_REPEATS, format_story, write_files


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stories") / "new"
    assert len(list(write_files(folder, 90, seed=0))) == len(GENERATORS) * len(SPLITS)
    return folder


def test_each_file_holds_the_questions_asked_for_in_whole_stories(folder):
    for split, counts in statistics(folder).items():
        wanted = 90 if split == "train" else 10
        for task, found in counts["babi_tasks"].items():
            assert wanted <= found["questions"] < wanted + 12, (split, task)


def test_what_is_written_is_read_back(folder):
    for task in GENERATORS:
        path = folder / file_name(task, "train")
        assert "".join(map(format_story, read_file(path))) == path.read_text()


def test_the_splits_share_no_story(folder):
    for task in set(GENERATORS) - set(TASKS_WITH_REPEATS):
        stories = [format_story(story) for split in SPLITS for story in read_file(folder / file_name(task, split))]
        assert len(stories) == len(set(stories))


def test_the_same_seed_gives_the_same_bytes(folder, tmp_path):
    for seed, same in ((0, True), (1, False)):
        again = tmp_path / str(seed)
        list(write_files(again, 90, seed))
        for path in folder.iterdir():
            assert (path.read_bytes() == (again / path.name).read_bytes()) == same, path.name


def test_the_bytes_are_those_of_every_other_machine(tmp_path):
    """A change of these files would be a change of everybody's data: say so in the changelog."""
    (path, *_) = write_files(tmp_path, 9, seed=0, babi_tasks=(1,))
    assert hashlib.sha256(path.read_bytes()).hexdigest() == (
        "4b81fce7c2faebebaf4bf69dec63edca26b0c1d7bf598406a1868df9a1b5e0f8"
    )


def test_lines_look_like_the_originals(folder):
    lines = (folder / file_name(1, "train")).read_text().splitlines()
    question = next(line for line in lines if "\t" in line)
    number, rest = question.split(" ", 1)
    sentence, answer, support = rest.split("\t")
    assert number == "3" and sentence.startswith("Where is ") and sentence.endswith("? ")
    assert answer in ("bathroom", "bedroom", "garden", "hallway", "kitchen", "office") and support in ("1", "2")


def test_command_line(tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["data", "generate", "--out", str(out), "--questions", "9", "--babi-tasks", "1-2"]
    assert cli.main([*arguments, "--json"]) == 0
    files = json.loads(capsys.readouterr().out)["files"]
    assert files == [str(out / file_name(task, split)) for task in (1, 2) for split in SPLITS]
    assert sum(isinstance(line, Question) for story in read_file(files[0]) for line in story.lines) >= 9
    assert cli.main(arguments) == 2
    assert "is not empty; give a new or an empty directory" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--questions", "8"], "8 questions leave a split without any"),
        (["--questions", "1000000000"], "1000000000 questions are too many for a file"),
        (["--babi-tasks", "21"], "there is no bAbI task 21"),
        (["--babi-tasks", "one"], '"one" in the bAbI tasks "one" is no task'),
    ],
)
def test_bad_arguments_are_one_sentence(tmp_path, capsys, arguments, words):
    assert cli.main(["data", "generate", "--out", str(tmp_path / "x"), *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_a_place_that_cannot_be_written_is_named(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert cli.main(["data", "generate", "--out", str(tmp_path / "file")]) == 2
    assert "cannot be written" in capsys.readouterr().err
