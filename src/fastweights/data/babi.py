"""bAbI stories: data types, file format, vocabulary and statistics.

A story is a list of statements and questions. In a file (bAbI v1.2, Weston et al. 2015) it is a sequence of lines
`index text`, with `<tab>answer<tab>supporting line numbers` at the end of questions; the index is 1 at the start of a
story. As model input it is one sequence of lower-cased words, with answers behind the question marks (catbAbI; Schlag
et al. 2021, Learning Associative Inference Using Fast Weight Memory, appendix D).
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
    """A sentence that states a fact, as in the file: `Mary moved to the bathroom.`"""

    text: str


@dataclass(frozen=True, slots=True)
class Question:
    """A question, `Where is Mary?`, with its answer and the 1-based numbers of the supporting lines."""

    text: str
    answer: str
    support: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Story:
    """One story of a bAbI task (1 to 20): its lines in order."""

    babi_task: int
    lines: tuple[Statement | Question, ...]


@dataclass(frozen=True, slots=True, eq=False)
class EncodedStory:
    """A story as token numbers: `inputs [T]` start with the end-of-story token, `targets [T]` end with it."""

    babi_task: int
    inputs: np.ndarray
    targets: np.ndarray


BABI_TASK_NAMES = (
    "one supporting fact", "two supporting facts", "three supporting facts", "two argument relations",
    "three argument relations", "yes or no", "counting", "lists and sets", "simple negation", "indefinite knowledge",
    "basic coreference", "conjunction", "compound coreference", "time reasoning", "basic deduction", "basic induction",
    "positional reasoning", "size reasoning", "path finding", "agents' motivations",
)  # fmt: skip
BABI_TASK_COUNT = len(BABI_TASK_NAMES)
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
    """Return the vocabulary by number; as published, with the authors' 20 unused task numbers at the end.

    >>> len(vocabulary()), len(vocabulary(as_published=True))
    (180, 200)
    """
    return (*VOCABULARY, *map(str, range(1, BABI_TASK_COUNT + 1))) if as_published else VOCABULARY


def words(story: Story) -> list[str]:
    """Return the story in catbAbI's form: lower-cased words, an answer after each question mark.

    >>> words(Story(1, (Statement("Mary went home."), Question("Where is Mary?", "home", (1,)))))
    ['mary', 'went', 'home', '.', 'where', 'is', 'mary', '?', 'home']
    """
    result: list[str] = []
    for line in story.lines:
        result += _line_words(line)
    return result


def encode(story: Story) -> EncodedStory:
    """Return the token numbers of a story: inputs, and targets one step ahead.

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
            f'the word "{word}" in a story of task {story.babi_task} is not in the vocabulary of bAbI'
            f"{nearest(word, VOCABULARY)}; use only its {len(VOCABULARY) - 2} words (babi_vocabulary.txt)"
        ) from None
    numbers.append(EOS)
    sequence = np.array(numbers, dtype=np.int16)
    return EncodedStory(story.babi_task, inputs=sequence[:-1], targets=sequence[1:])


def parse_babi_tasks(text: str) -> tuple[int, ...]:
    """Return the bAbI tasks of a list of numbers and ranges, in rising order.

    >>> parse_babi_tasks("1-2,4,18-20")
    (1, 2, 4, 18, 19, 20)
    """
    babi_tasks: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,9})\s*(?:-\s*([0-9]{1,9})\s*)?", part)
        if not match:
            raise UserError(f'"{part.strip()}" in the bAbI tasks "{text}" is no task; write for example 1,2,4-20')
        first = int(match[1])
        last = int(match[2] or first)
        if first > last:
            raise UserError(
                f'the range "{part.strip()}" in the bAbI tasks "{text}" runs backwards; write {last}-{first}'
            )
        # The check precedes the expansion, because of ranges such as 1-999999999.
        _check_babi_task(first)
        _check_babi_task(last)
        babi_tasks += range(first, last + 1)
    repeated = [babi_task for babi_task in babi_tasks if babi_tasks.count(babi_task) > 1]
    if repeated:
        raise UserError(f'task {repeated[0]} stands more than once in the bAbI tasks "{text}"; name each task once')
    return tuple(sorted(babi_tasks))


def format_babi_tasks(babi_tasks: Iterable[int]) -> str:
    """Return bAbI tasks in short form, the inverse of `parse_babi_tasks`.

    >>> format_babi_tasks((1, 2, 4, 5, 6, 7))
    '1,2,4-7'
    """
    runs: list[list[int]] = []
    for babi_task in sorted(babi_tasks):
        if runs and runs[-1][-1] == babi_task - 1:
            runs[-1].append(babi_task)
        else:
            runs.append([babi_task])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 2 else ",".join(map(str, run)) for run in runs)


def file_name(babi_task: int, split: str) -> str:
    """Return the name of a bAbI task's file: `qa3_train.txt`."""
    return f"qa{babi_task}_{split}.txt"


def read_file(path: str | Path) -> list[Story]:
    """Return the stories of one bAbI file; its name contains the bAbI task: `qa3_train.txt`."""
    path = Path(path)
    name = re.match(r"qa([0-9]{1,9})_", path.name)
    if not name:
        raise UserError(
            f"the name of {path} does not contain its bAbI task; name the file like {file_name(3, 'train')}"
        )
    babi_task = int(name[1])
    _check_babi_task(babi_task)

    stories: list[Story] = []
    lines: list[Statement | Question] = []
    for number, text in enumerate(_read_lines(path), start=1):
        where = f"{path}:{number}"
        match = re.fullmatch(r"([0-9]{1,9}) (.+)", text)
        if not match:
            raise UserError(f'the line {_shown(text)} at {where} has no index, as in "1 Mary moved."; {_USE_BABI}')
        index = int(match[1])
        if index == 1 and lines:
            stories.append(_finished(babi_task, lines, f"{path}:{number - 1}"))
            lines = []
        if index != len(lines) + 1:
            expected = f"{len(lines) + 1} or 1" if lines else "1"
            raise UserError(f"the line at {where} has the index {index} instead of {expected}; {_USE_BABI}")
        lines.append(_parse_line(match[2], lines, where))
    stories.append(_finished(babi_task, lines, where))
    return stories


def read_split(
    directory: str | Path,
    split: str,
    babi_tasks: Iterable[int] = range(1, BABI_TASK_COUNT + 1),
    as_published: bool = False,
) -> list[Story]:
    """Return the stories of a split, task after task; as published, without the last story of each file.

    The authors' script drops the last story of every file, and the paper's counts are those of the script.

    Raises:
        UserError: for an unknown split or task, a missing or faulty file.
    """
    directory = _existing(directory)
    if split not in SPLITS:
        raise UserError(f'there is no split "{split}"{nearest(split, SPLITS)}; the splits are {", ".join(SPLITS)}')
    babi_tasks = tuple(babi_tasks)
    for babi_task in babi_tasks:
        _check_babi_task(babi_task)
    missing = [babi_task for babi_task in babi_tasks if not (directory / file_name(babi_task, split)).exists()]
    if missing:
        present = [babi_task for babi_task in babi_tasks if babi_task not in missing]
        names = ", ".join(file_name(babi_task, split) for babi_task in missing)
        if not present:
            raise UserError(f"{directory} holds none of {names}; give a folder of bAbI v1.2 that has them")
        raise UserError(
            f"{directory} does not hold {names}; leave the missing ones out with "
            f"--babi-tasks {format_babi_tasks(present)} (in a recipe, task.babi_tasks)"
        )
    stories: list[Story] = []
    for babi_task in babi_tasks:
        stories += _read_counted(directory / file_name(babi_task, split), as_published)
    return stories


def statistics(directory: str | Path, as_published: bool = False) -> dict[str, dict]:
    """Return the statistics of a directory by split and bAbI task, and the names of missing files.

    Each split maps to `{stories, questions, tokens, babi_tasks: {number: {stories, questions, tokens}}, missing}`.
    Tokens are words, full stops, question marks and answers, without end-of-story tokens. With `as_published`, the
    valid files of en-valid-10k have the authors' 570,894 tokens.
    """
    directory = _existing(directory)
    result: dict[str, dict] = {}
    for split in SPLITS:
        per_babi_task: dict[int, dict[str, int]] = {}
        missing: list[str] = []
        for babi_task in range(1, BABI_TASK_COUNT + 1):
            path = directory / file_name(babi_task, split)
            if path.exists():
                per_babi_task[babi_task] = _counts(_read_counted(path, as_published))
            else:
                missing.append(path.name)
        if per_babi_task:
            keys = ("stories", "questions", "tokens")
            totals = {key: sum(counts[key] for counts in per_babi_task.values()) for key in keys}
            result[split] = {**totals, "babi_tasks": per_babi_task, "missing": missing}
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
    # Sentences repeat: without the cache, encoding takes a fifth of the time of generation.
    return tuple(_IDS[word] for word in _sentence_words(text))


def _line_words(line: Statement | Question) -> tuple[str, ...]:
    sentence = _sentence_words(line.text)
    return (*sentence, line.answer.lower()) if isinstance(line, Question) else sentence


def _check_babi_task(babi_task: int) -> None:
    if not 1 <= babi_task <= BABI_TASK_COUNT:
        raise UserError(f"there is no bAbI task {babi_task}; they are 1 to {BABI_TASK_COUNT}")


def _existing(directory: str | Path) -> Path:
    directory = Path(directory)
    if not directory.is_dir():
        raise UserError(
            f"there is no directory {directory}; give the folder en-valid-10k of bAbI v1.2, or fetch most of it with "
            "`fastweights data download babi` and give --data babi"
        )
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
                f"{nearest(word, VOCABULARY)}; correct the file, or {_USE_BABI}"
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


def _finished(babi_task: int, lines: list[Statement | Question], where: str) -> Story:
    if isinstance(lines[-1], Statement):
        raise UserError(
            f"the story that ends at {where} has no question at its end, the file is probably cut short; fetch it again"
        )
    return Story(babi_task, tuple(lines))


def _read_counted(path: Path, as_published: bool) -> list[Story]:
    stories = read_file(path)
    return stories[:-1] if as_published else stories


def _counts(stories: list[Story]) -> dict[str, int]:
    return {
        "stories": len(stories),
        "questions": sum(isinstance(line, Question) for story in stories for line in story.lines),
        "tokens": sum(len(words(story)) for story in stories),
    }
