"""What the documents show runs: their Python, their commands, and the examples in the docstrings."""

import doctest
import importlib
import pkgutil
import re
import shlex
import shutil
from pathlib import Path

import pytest

import fastweights
from fastweights import cli, recipes, specs
from fastweights.data import babi

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md") if (ROOT / name).exists()]
BLOCK = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
QUICK = ["--training.steps=2", "--training.batch_size=2", "--training.eval_batch_size=2"]
SMALL = ["--model.embedding_size=8", "--model.core.hidden_size=8"]
QUICK_TASKS = {
    "catbabi": ["--task.segment_length=20", "--task.validation_stories=1", *SMALL],
    "retrieval": ["--task.examples=5", "--task.validation_examples=3", "--task.test_examples=3", *SMALL],
    "graph-rl": ["--task.graphs=10"],
    "text": ["--task.segment_length=12", *SMALL],
}
STORY = "1 Mary moved to the bathroom.\n2 Where is Mary? \tbathroom\t1\n"
NOT_RUN = (["bench"], ["data", "download"])  # takes long, needs the web; that they parse is checked


def blocks(document: Path) -> list[tuple[str, str]]:
    """The language and the text of each fenced block."""
    return BLOCK.findall(document.read_text(encoding="utf-8"))


def commands(text: str) -> list[list[str]]:
    """The arguments of the lines of a shell block that begin with `[python -m] fastweights`, up to | > & or ;."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        line = line.removeprefix("python -m ")
        if line.startswith("fastweights "):
            lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
            lexer.whitespace_split = True
            words = list(lexer)
            ends = [place for place, word in enumerate(words) if set(word) <= set("|>&;")]
            found.append(words[1 : ends[0] if ends else None])
    return found


def all_commands() -> list:
    return [
        pytest.param(command, id=" ".join(command))
        for document in DOCUMENTS
        for language, text in blocks(document)
        if language in ("bash", "sh", "shell", "console")
        for command in commands(text)
    ]


def check_command(arguments: list[str]) -> None:
    """Fail where a command does not parse, or names a recipe or an option that does not exist."""
    namespace = cli.parse(arguments)
    if arguments[0] == "train" and namespace.recipe and not namespace.recipe.endswith((".yaml", ".yml")):
        overrides = [f"--task.babi_tasks={namespace.babi_tasks}"] if namespace.babi_tasks else []
        recipe = recipes.load(namespace.recipe, [*namespace.overrides, *overrides])
        if not specs.import_paths(recipe.to_dict()):  # a file of the document's reader
            recipes.size(recipe)
    if arguments[0] == "recipes" and namespace.name:
        recipes.load(namespace.name)


@pytest.mark.parametrize("command", all_commands())
def test_a_command_parses(command):
    check_command(command)


@pytest.mark.parametrize(
    "command",
    [
        "fastweights trian catbabi-qa/fwm",
        "fastweights train catbabi-qa/fvm",
        "fastweights train catbabi-qa/fwm --training.stepz 3",
        "fastweights train catbabi-qa/fwm --model.core.memory_sizes 3  # with a comment",
        "fastweights train catbabi-qa/fwm --babi-tasks 1,2,4-21",
        "fastweights evaluate runs/mine --rowz 3",
        "python -m fastweights evaluate runs/mine --rowz 3",
        "fastweights recipes catbabi-qa/fvm | head",
        "fastweights data stat en-valid-10k",
    ],
)
def test_a_wrong_command_would_be_found(command):
    (arguments,) = commands(command)
    with pytest.raises((SystemExit, fastweights.UserError, AssertionError)):
        check_command(arguments)


def write_stories(folder: Path) -> None:
    """Make a folder with a file for each task and split, so that commands that read bAbI's files have some."""
    folder.mkdir()
    for task in range(1, babi.BABI_TASK_COUNT + 1):
        for split in babi.SPLITS:
            (folder / babi.file_name(task, split)).write_text(STORY * 2)


def run_command(arguments: list[str]) -> None:
    if any(arguments[: len(words)] == words for words in NOT_RUN):
        return
    if arguments[0] == "train" and "--resume" not in arguments:
        namespace = cli.parse(arguments)
        shutil.rmtree(namespace.out or f"runs/{namespace.recipe}", ignore_errors=True)
        task = recipes.load(namespace.recipe).task["type"]
        arguments = [*arguments, *QUICK, *QUICK_TASKS[task]]
    if "--resume" in arguments and "--training.steps" in arguments:
        arguments[arguments.index("--training.steps") + 1] = "3"
    if arguments[0] == "sweep":
        arguments = [*arguments, *QUICK, *QUICK_TASKS[recipes.load(arguments[1]).task["type"]]]
    if arguments[0] == "search":
        arguments = quick_search(arguments)
    assert cli.main(arguments) == 0, f"fastweights {' '.join(arguments)}"


def quick_search(arguments: list[str]) -> list[str]:
    """The same search, with few steps and small models, except in what it searches."""
    namespace, changed = cli.parse(arguments), list(arguments)
    for option, value in (("--rounds", "1,2"), ("--trials", "2")):
        if option in changed:
            changed[changed.index(option) + 1] = value
    searched = [over.partition("=")[0] for over in namespace.over] + ["training.steps"] * bool(namespace.rounds)
    small = [*QUICK, *QUICK_TASKS[recipes.load(namespace.recipe).task["type"]]]
    return [*changed, *(word for word in small if word[2:].partition("=")[0] not in searched)]


def run_python(text: str, names: dict, document: Path) -> None:
    if ">>>" in text:
        test = doctest.DocTestParser().get_doctest(text, names, document.name, str(document), 0)
        assert doctest.DocTestRunner().run(test, clear_globs=False).failed == 0
    else:
        exec(compile(text, str(document), "exec"), names)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_a_document_runs_from_top_to_bottom(document, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_stories(tmp_path / "en-valid-10k")
    (tmp_path / "my-text.txt").write_text("a rose is a rose\n" * 20)
    for folder in ("examples", "results"):  # documents name files in them
        (tmp_path / folder).symlink_to(ROOT / folder)
    names = {"__name__": "__main__"}
    recipe_text = ""
    for language, text in blocks(document):
        if language == "python":
            run_python(text, names, document)
        elif language == "yaml":
            recipe_text = text
        elif language in ("bash", "sh", "shell", "console"):
            for command in commands(text):
                for word in command:
                    if word.endswith((".yaml", ".yml")) and not Path(word).exists():
                        Path(word).write_text(recipe_text)  # a recipe that the document shows
                run_command(command)


def test_the_readme_shows_what_it_should():
    languages = [language for language, _ in blocks(ROOT / "README.md")]
    assert "bash" in languages and "python" in languages
    shown = {command.values[0][0] for command in all_commands()}
    commands_shown = {
        "train",
        "sweep",
        "search",
        "report",
        "evaluate",
        "plot",
        "recipes",
        "data",
        "graphs",
        "bench",
        "doctor",
    }
    assert commands_shown <= shown


def modules() -> list[str]:
    names = [module.name for module in pkgutil.walk_packages(fastweights.__path__, "fastweights.")]
    return ["fastweights", *(name for name in names if not name.endswith(".__main__"))]


@pytest.mark.parametrize("name", modules())
def test_the_examples_in_docstrings(name, tmp_path, monkeypatch):
    if name.endswith(".triton"):
        pytest.importorskip("triton")
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    assert doctest.testmod(module).failed == 0
