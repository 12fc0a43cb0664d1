"""Generated stories as files in bAbI's own format."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

from fastweights.data.babi import SPLITS, Question, Story, file_name
from fastweights.data.generate import GENERATORS, check_babi_task, generate_story
from fastweights.data.generate.story_sizes import BABI_SIZES, StorySizes
from fastweights.errors import UserError

MOST_QUESTIONS = 1_000_000  # a hundred times bAbI's; a file is made in memory
SPLIT_DIVISORS = {"train": 1, "valid": 9, "test": 9}  # questions of the training split per question of a split
TASKS_WITH_REPEATS = (4,)  # few possible stories: bAbI's own splits share some, too
MAX_REPEATS = 2000  # consecutive repeated stories before `unique_stories` gives up
TASKS_WITHOUT_BLANK = (4, 15, 16, 17, 18, 19, 20)  # no blank between question mark and tab in bAbI's files


def write_files(
    directory: str | Path,
    questions: int,
    seed: int,
    babi_tasks: tuple[int, ...] | None = None,
    sizes: StorySizes = BABI_SIZES,
) -> Iterator[Path]:
    """Write `qa{n}_{train,valid,test}.txt` for each bAbI task, and yield the path of each complete file.

    Training files hold at least `questions` questions, in whole stories; validation and test files a ninth. The splits
    share no story, except in task 4, with its few possible stories. Equal arguments give equal bytes on every machine.

    Args:
        directory: an empty or a new directory.
        questions: minimum number of questions in each training file.
        seed: seed of the stories.
        babi_tasks: numbers, 1 to 20; None: all.
        sizes: sizes of the stories.

    Raises:
        UserError: for too few or too many questions, an unknown bAbI task, or a directory that is not empty.
    """
    babi_tasks = tuple(sorted(GENERATORS)) if babi_tasks is None else babi_tasks
    for babi_task in babi_tasks:
        check_babi_task(babi_task, sizes)
    least = max(SPLIT_DIVISORS.values())
    if questions < least:
        raise UserError(f"{questions} questions leave a split without any; give --questions {least} or more.")
    if questions > MOST_QUESTIONS:
        raise UserError(f"{questions} questions are too many for a file; give --questions {MOST_QUESTIONS} or fewer.")
    directory = Path(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if any(directory.iterdir()):
            raise UserError(f"{directory} is not empty; give a new or an empty directory with --out.")
        for babi_task in babi_tasks:
            stories = unique_stories(babi_task, seed, sizes)
            for split in SPLITS:
                path = directory / file_name(babi_task, split)
                text = "".join(map(format_story, take_questions(stories, questions // SPLIT_DIVISORS[split])))
                path.write_text(text, encoding="utf-8", newline="\n")
                yield path
    except OSError as error:
        raise UserError(
            f"{error.filename or directory} cannot be written ({error.strerror}); give another --out."
        ) from error


def unique_stories(babi_task: int, seed: int, sizes: StorySizes = BABI_SIZES) -> Iterator[Story]:
    """Yield the stories of a bAbI task's stream, each only once (in task 4, with repeats).

    Raises:
        UserError: if no new story is found, because these sizes allow too few.
    """
    seen: set[str] = set()
    new = 0  # index of the last new story
    for index in itertools.count():
        story = generate_story(babi_task, seed, index, sizes)
        text = format_story(story)
        if babi_task in TASKS_WITH_REPEATS or text not in seen:
            seen.add(text)
            new = index
            yield story
        elif index - new > MAX_REPEATS:
            raise UserError(
                f"Task {babi_task} has too few different stories of this size ({len(seen)} were found); "
                "give fewer questions, or larger sizes."
            )


def take_questions(stories: Iterator[Story], questions: int) -> Iterator[Story]:
    """Yield the next stories, until they hold at least `questions` questions."""
    while questions > 0:
        story = next(stories)
        questions -= sum(isinstance(line, Question) for line in story.lines)
        yield story


def format_story(story: Story) -> str:
    r"""Return the lines of a story in bAbI's file format.

    >>> from fastweights.data.babi import Statement
    >>> format_story(Story(1, (Statement("Mary went home."), Question("Where is Mary?", "home", (1,)))))
    '1 Mary went home.\n2 Where is Mary? \thome\t1\n'
    """
    blank = "" if story.babi_task in TASKS_WITHOUT_BLANK else " "
    lines = []
    for number, line in enumerate(story.lines, 1):
        end = ""
        if isinstance(line, Question):
            end = f"{blank}\t{line.answer}\t{' '.join(map(str, line.support))}"
        lines.append(f"{number} {line.text}{end}\n")
    return "".join(lines)
