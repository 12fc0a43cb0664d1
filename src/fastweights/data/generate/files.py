"""Generated stories as files in bAbI's own format, for any reader of it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

from fastweights.data.babi import SPLITS, Question, Story, file_name
from fastweights.data.generate import GENERATORS, check_babi_task, generate_story
from fastweights.data.generate.setting import AS_IN_BABI, Setting
from fastweights.errors import UserError

PARTS = {"train": 1, "valid": 9, "test": 9}  # a split has a question for so many of the training split's
FEW_STORIES = (4,)  # tasks with so few possible stories that bAbI's own splits share some
PATIENCE = 2000  # stories met before, one after another
NO_BLANK = (4, 15, 16, 17, 18, 19, 20)  # tasks whose files have no blank between question mark and tab


def write_files(
    directory: str | Path,
    questions: int,
    seed: int,
    babi_tasks: tuple[int, ...] | None = None,
    setting: Setting = AS_IN_BABI,
) -> Iterator[Path]:
    """Write `qa{n}_{train,valid,test}.txt` for each task, and give each file's path once it is whole.

    Training files hold at least so many questions, in whole stories, the others a ninth. The splits share no story,
    except in task 4, of which there are too few. The same arguments give the same bytes everywhere.

    Args:
        directory: an empty directory, or one to be made.
        questions: questions of a training file, for each task.
        seed: decides the stories.
        babi_tasks: numbers, 1 to 20; all that can be generated if not given.
        setting: sizes of the stories.

    Raises:
        UserError: where there are too few questions for a split, a task is unknown, or the directory is not empty.
    """
    babi_tasks = tuple(sorted(GENERATORS)) if babi_tasks is None else babi_tasks
    for babi_task in babi_tasks:
        check_babi_task(babi_task, setting)
    least = max(PARTS.values())
    if questions < least:
        raise UserError(f"{questions} questions leave a split without any; give --questions {least} or more.")
    directory = Path(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if any(directory.iterdir()):
            raise UserError(f"{directory} is not empty; give a new or an empty directory with --out.")
        for babi_task in babi_tasks:
            stories = different_stories(babi_task, seed, setting)
            for split in SPLITS:
                path = directory / file_name(babi_task, split)
                text = "".join(map(format_story, take(stories, questions // PARTS[split])))
                path.write_text(text, encoding="utf-8", newline="\n")
                yield path
    except OSError as error:
        raise UserError(
            f"{error.filename or directory} cannot be written ({error.strerror}); give another --out."
        ) from error


def different_stories(babi_task: int, seed: int, setting: Setting = AS_IN_BABI) -> Iterator[Story]:
    """The stories of a task's stream, each only once (in task 4, as often as it comes).

    Raises:
        UserError: where no new one comes any more, as the setting leaves too few.
    """
    seen: set[str] = set()
    new = 0  # the index of the last new story
    for index in itertools.count():
        story = generate_story(babi_task, seed, index, setting)
        text = format_story(story)
        if babi_task in FEW_STORIES or text not in seen:
            seen.add(text)
            new = index
            yield story
        elif index - new > PATIENCE:
            raise UserError(
                f"Task {babi_task} has too few different stories of this size ({len(seen)} were found); "
                "ask fewer questions, or make the stories larger."
            )


def take(stories: Iterator[Story], questions: int) -> Iterator[Story]:
    """The next stories, until so many questions are asked."""
    while questions > 0:
        story = next(stories)
        questions -= sum(isinstance(line, Question) for line in story.lines)
        yield story


def format_story(story: Story) -> str:
    r"""The lines of a story as they stand in bAbI's files.

    >>> from fastweights.data.babi import Statement
    >>> format_story(Story(1, (Statement("Mary went home."), Question("Where is Mary?", "home", (1,)))))
    '1 Mary went home.\n2 Where is Mary? \thome\t1\n'
    """
    blank = "" if story.babi_task in NO_BLANK else " "
    lines = []
    for number, line in enumerate(story.lines, 1):
        end = ""
        if isinstance(line, Question):
            end = f"{blank}\t{line.answer}\t{' '.join(map(str, line.support))}"
        lines.append(f"{number} {line.text}{end}\n")
    return "".join(lines)
