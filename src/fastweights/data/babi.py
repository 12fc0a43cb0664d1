"""bAbI stories: their form, their files, their vocabulary and their counts.

A story is a list of statements and questions about one small world. On disk (bAbI v1.2, Weston et al. 2015)
it is a run of lines `index text`, a question's line ending in `<tab>answer<tab>supporting line numbers`; the
index starts again at 1 with each story. For a model it is one sequence of lower-cased words in which answers
follow the question marks (catbAbI; Learning Associative Inference Using Fast Weight Memory, appendix D).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path

import numpy as np

from fastweights.errors import UserError, nearest


@dataclass(frozen=True, slots=True)
class Statement:
    """A sentence that tells a fact, written as in the file: `Mary moved to the bathroom.`"""

    text: str


@dataclass(frozen=True, slots=True)
class Question:
    """A question, `Where is Mary?`, with its answer and the 1-based numbers of the lines that prove it."""

    text: str
    answer: str
    support: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Story:
    """One story of a task (1 to 20): its lines in order."""

    task: int
    lines: tuple[Statement | Question, ...]


@dataclass(frozen=True, slots=True, eq=False)
class EncodedStory:
    """A story as numbers: `inputs [T]` begin with the end-of-story token, `targets [T]` end with it."""

    task: int
    inputs: np.ndarray
    targets: np.ndarray


TASK_NAMES = (
    "one supporting fact", "two supporting facts", "three supporting facts", "two argument relations",
    "three argument relations", "yes or no", "counting", "lists and sets", "simple negation", "indefinite knowledge",
    "basic coreference", "conjunction", "compound coreference", "time reasoning", "basic deduction", "basic induction",
    "positional reasoning", "size reasoning", "path finding", "agents' motivations",
)  # fmt: skip
TASK_COUNT = len(TASK_NAMES)
SPLITS = ("train", "valid", "test")
_USE_BABI = "give a file of bAbI v1.2 such as en-valid-10k/qa1_train.txt"

PAD = 0
EOS = 1
VOCABULARY: tuple[str, ...] = (
    "<pad>",
    "<eos>",
    *(resources.files(__package__) / "babi_vocabulary.txt").read_text(encoding="utf-8").split(),
)
_IDS = {word: number for number, word in enumerate(VOCABULARY)}
QUESTION_MARK = _IDS["?"]


def vocabulary(as_published: bool = False) -> tuple[str, ...]:
    """Return the words by their number; as published, the authors' 20 superfluous task numbers come last.

    >>> len(vocabulary()), len(vocabulary(as_published=True))
    (180, 200)
    """
    return (*VOCABULARY, *map(str, range(1, TASK_COUNT + 1))) if as_published else VOCABULARY


def words(story: Story) -> list[str]:
    """Return the story as catbAbI reads it: lower-cased words, an answer after each question mark.

    >>> words(Story(1, (Statement("Mary went home."), Question("Where is Mary?", "home", (1,)))))
    ['mary', 'went', 'home', '.', 'where', 'is', 'mary', '?', 'home']
    """
    result: list[str] = []
    for line in story.lines:
        result += _line_words(line)
    return result


def encode(story: Story) -> EncodedStory:
    """Return the story's numbers, at each step the word and the word that follows it.

    >>> story = encode(Story(1, (Statement("Mary moved."),)))
    >>> [VOCABULARY[word] for word in story.inputs], [VOCABULARY[word] for word in story.targets]
    (['<eos>', 'mary', 'moved', '.'], ['mary', 'moved', '.', '<eos>'])
    """
    numbers = [EOS]
    try:
        for line in story.lines:
            numbers += _sentence_numbers(line.text)
            if isinstance(line, Question):
                numbers.append(_IDS[line.answer.lower()])
    except KeyError as error:
        word = error.args[0]
        raise UserError(
            f'the word "{word}" in a story of task {story.task} is not in the vocabulary of bAbI'
            f"{nearest(word, VOCABULARY)}; use only its {len(VOCABULARY) - 2} words (babi_vocabulary.txt)"
        ) from None
    numbers.append(EOS)
    sequence = np.array(numbers, dtype=np.int16)
    return EncodedStory(story.task, inputs=sequence[:-1], targets=sequence[1:])


def parse_tasks(text: str) -> tuple[int, ...]:
    """Return the tasks that a list of numbers and ranges names, in rising order.

    >>> parse_tasks("1-2,4,18-20")
    (1, 2, 4, 18, 19, 20)
    """
    tasks: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,9})\s*(?:-\s*([0-9]{1,9})\s*)?", part)
        if not match:
            raise UserError(f'"{part.strip()}" in the tasks "{text}" is no task; write for example 1,2,4-20')
        first = int(match[1])
        last = int(match[2] or first)
        if first > last:
            raise UserError(f'the range "{part.strip()}" in the tasks "{text}" runs backwards; write {last}-{first}')
        # Looking at the range's ends first keeps a range such as 1-999999999 from being spelled out.
        _check_task(first)
        _check_task(last)
        tasks += range(first, last + 1)
    repeated = [task for task in tasks if tasks.count(task) > 1]
    if repeated:
        raise UserError(f'task {repeated[0]} stands more than once in the tasks "{text}"; name each task once')
    return tuple(sorted(tasks))


def format_tasks(tasks: Iterable[int]) -> str:
    """Return tasks in the short form that `parse_tasks` reads.

    >>> format_tasks((1, 2, 4, 5, 6, 7))
    '1,2,4-7'
    """
    runs: list[list[int]] = []
    for task in sorted(tasks):
        if runs and runs[-1][-1] == task - 1:
            runs[-1].append(task)
        else:
            runs.append([task])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 2 else ",".join(map(str, run)) for run in runs)


def file_name(task: int, split: str) -> str:
    """Return the name that bAbI gives to a task's file: `qa3_train.txt`."""
    return f"qa{task}_{split}.txt"


def read_file(path: str | Path) -> list[Story]:
    """Return all stories of one bAbI file, whose name tells the task: `qa3_train.txt`."""
    path = Path(path)
    name = re.match(r"qa([0-9]{1,9})_", path.name)
    if not name:
        raise UserError(f"the name of {path} does not tell its task; name the file like {file_name(3, 'train')}")
    task = int(name[1])
    _check_task(task)

    stories: list[Story] = []
    lines: list[Statement | Question] = []
    for number, text in enumerate(_read_lines(path), start=1):
        where = f"{path}:{number}"
        match = re.fullmatch(r"([0-9]{1,9}) (.+)", text)
        if not match:
            raise UserError(f'the line {_shown(text)} at {where} has no index, as in "1 Mary moved."; {_USE_BABI}')
        index = int(match[1])
        if index == 1 and lines:
            stories.append(_finished(task, lines, f"{path}:{number - 1}"))
            lines = []
        if index != len(lines) + 1:
            expected = f"{len(lines) + 1} or 1" if lines else "1"
            raise UserError(f"the line at {where} has the index {index} instead of {expected}; {_USE_BABI}")
        lines.append(_parse_line(match[2], lines, where))
    stories.append(_finished(task, lines, where))
    return stories


def read_split(
    directory: str | Path,
    split: str,
    tasks: Iterable[int] = range(1, TASK_COUNT + 1),
    as_published: bool = False,
) -> list[Story]:
    """Return the stories of a split, task after task; as published, each file's last story is left out.

    The paper's counts are those of the authors' script, which loses the last story of every file.
    """
    directory = _existing(directory)
    if split not in SPLITS:
        raise UserError(f'there is no split "{split}"{nearest(split, SPLITS)}; the splits are {", ".join(SPLITS)}')
    tasks = tuple(tasks)
    for task in tasks:
        _check_task(task)
    missing = [task for task in tasks if not (directory / file_name(task, split)).exists()]
    if missing:
        present = [task for task in tasks if task not in missing]
        names = ", ".join(file_name(task, split) for task in missing)
        if not present:
            raise UserError(f"{directory} holds none of {names}; give a folder of bAbI v1.2 that has them")
        raise UserError(
            f"{directory} does not hold {names}; "
            f"go on without with --babi-tasks {format_tasks(present)} (in a recipe, task.babi_tasks)"
        )
    stories: list[Story] = []
    for task in tasks:
        stories += _read_counted(directory / file_name(task, split), as_published)
    return stories


def statistics(directory: str | Path, as_published: bool = False) -> dict[str, dict]:
    """Return the counts of each split and task that a directory holds, and the names of the files it lacks.

    Each split maps to `{stories, questions, tokens, tasks: {task: {stories, questions, tokens}}, missing}`.
    A token is a word, a full stop, a question mark or an answer, but not an end of story: so counted, and
    `as_published`, the valid files of en-valid-10k hold exactly the authors' 570,894 tokens.
    """
    directory = _existing(directory)
    result: dict[str, dict] = {}
    for split in SPLITS:
        per_task: dict[int, dict[str, int]] = {}
        missing: list[str] = []
        for task in range(1, TASK_COUNT + 1):
            path = directory / file_name(task, split)
            if path.exists():
                per_task[task] = _counts(_read_counted(path, as_published))
            else:
                missing.append(path.name)
        if per_task:
            keys = ("stories", "questions", "tokens")
            totals = {key: sum(counts[key] for counts in per_task.values()) for key in keys}
            result[split] = {**totals, "tasks": per_task, "missing": missing}
    if not result:
        raise UserError(
            f"{directory} holds no bAbI file such as {file_name(1, 'train')}; give the folder en-valid-10k of bAbI v1.2"
        )
    return result


@lru_cache(maxsize=2**16)
def _sentence_words(text: str) -> tuple[str, ...]:
    return (*text[:-1].lower().split(), text[-1:])


@lru_cache(maxsize=2**16)
def _sentence_numbers(text: str) -> tuple[int, ...]:
    # Sentences come again and again: encoding a generated story word by word took a fifth of the time of making it.
    return tuple(_IDS[word] for word in _sentence_words(text))


def _line_words(line: Statement | Question) -> tuple[str, ...]:
    sentence = _sentence_words(line.text)
    return (*sentence, line.answer.lower()) if isinstance(line, Question) else sentence


def _check_task(task: int) -> None:
    if not 1 <= task <= TASK_COUNT:
        raise UserError(f"there is no bAbI task {task}; the tasks are 1 to {TASK_COUNT}")


def _existing(directory: str | Path) -> Path:
    directory = Path(directory)
    if not directory.is_dir():
        raise UserError(f"there is no directory {directory}; give the folder en-valid-10k of bAbI v1.2")
    return directory


def _shown(text: str) -> str:
    return ascii(text if len(text) <= 40 else text[:37] + "...")


def _read_lines(path: Path) -> list[str]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); {_USE_BABI}") from None
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}:{line} is not text (it is no UTF-8); {_USE_BABI}") from None
    if not text:
        raise UserError(f"{path}:1 is missing, the file is empty; {_USE_BABI}")
    return text.replace("\r\n", "\n").removesuffix("\n").split("\n")


def _parse_line(text: str, earlier: list[Statement | Question], where: str) -> Statement | Question:
    sentence, *rest = (part.strip() for part in text.split("\t"))
    line: Statement | Question
    if sentence.endswith("?"):
        if not rest or not rest[0]:
            raise UserError(f"the question {_shown(sentence)} at {where} has no answer; {_USE_BABI}")
        line = Question(sentence, rest[0], _parse_support(rest[1:], earlier, where))
    elif rest or not sentence.endswith("."):
        raise UserError(
            f'the line {_shown(text)} at {where} is no statement that ends in "." and no question with "?", '
            f"<tab>, answer, <tab>, supporting line numbers; {_USE_BABI}"
        )
    else:
        line = Statement(sentence)
    for word in _line_words(line):
        if word not in _IDS:
            raise UserError(
                f"the word {_shown(word)} at {where} is none of bAbI's {len(VOCABULARY) - 2} words"
                f"{nearest(word, VOCABULARY)}; mend the file, or {_USE_BABI}"
            )
    return line


def _parse_support(fields: list[str], earlier: list[Statement | Question], where: str) -> tuple[int, ...]:
    numbers = fields[0].split() if len(fields) == 1 else []
    support = tuple(int(number) for number in numbers if re.fullmatch(r"[0-9]{1,9}", number))
    if not numbers or len(support) < len(numbers):
        raise UserError(f"the question at {where} does not end in <tab>supporting line numbers; {_USE_BABI}")
    for number in support:
        if not 1 <= number <= len(earlier) or isinstance(earlier[number - 1], Question):
            raise UserError(
                f"the question at {where} is supported by line {number} of its story, which is no statement "
                f"before it; {_USE_BABI}"
            )
    return support


def _finished(task: int, lines: list[Statement | Question], where: str) -> Story:
    if isinstance(lines[-1], Statement):
        raise UserError(
            f"the story that ends at {where} has no question at its end, the file is probably cut short; fetch it again"
        )
    return Story(task, tuple(lines))


def _read_counted(path: Path, as_published: bool) -> list[Story]:
    stories = read_file(path)
    return stories[:-1] if as_published else stories


def _counts(stories: list[Story]) -> dict[str, int]:
    return {
        "stories": len(stories),
        "questions": sum(isinstance(line, Question) for story in stories for line in story.lines),
        "tokens": sum(len(words(story)) for story in stories),
    }
