"""The command line: help, JSON and nothing else with --json, exit codes."""

import argparse
import json
import subprocess
import sys

import pytest
import torch

from fastweights import cli, recipes
from fastweights.cli.table import COMMANDS

TINY = (
    "--model.embedding_size=8",
    "--model.core.hidden_size=8",
    "--model.core.memory_size=4",
    "--task.segment_length=20",
    "--task.validation_stories=2",
    "--training.batch_size=2",
    "--training.eval_batch_size=2",
    "--training.steps=3",
    "--training.report_every=1",
)
STORY = "1 Mary moved to the bathroom.\n2 Where is Mary? \tbathroom\t1\n"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a tiny run on generated stories of tasks 1 and 2."""
    out = tmp_path_factory.mktemp("trained") / "run"
    assert cli.main(["train", "catbabi-qa/fwm", *TINY, "--babi-tasks=1,2", f"--out={out}"]) == 0
    return out


@pytest.fixture
def json_of(capsys):
    """Return a function that runs a command with --json and gives what it printed."""

    def json_of(*arguments):
        capsys.readouterr()
        assert cli.main([*map(str, arguments), "--json"]) == 0
        printed = capsys.readouterr().out
        assert printed.endswith("\n") and printed.count("\n") == 1
        return json.loads(printed)

    return json_of


@pytest.mark.parametrize(
    ("command", "mentioned"),
    [
        ([], ["train", "evaluate", "recipes", "data", "bench", "doctor", "fastweights train catbabi-qa/fwm-quick"]),
        (["train"], ["--data", "--resume", "--seed", "--threads", "fastweights train catbabi-qa/fwm --training.steps"]),
        (
            ["evaluate"],
            [
                "RUN_OR_CHECKPOINT",
                "--split",
                "--babi-tasks",
                "--batch-size",
                "--initial-state",
                "--generated",
                "--trust",
            ],
        ),
        (["recipes"], ["NAME", "--json"]),
        (["data"], ["stats"]),
        (["data", "stats"], ["DIR", "--as-published"]),
        (["bench"], ["--repeats", "--batch-size", "--length"]),
        (["doctor"], ["--json"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_help(command, mentioned, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main([*command, "--help"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert all(word in printed for word in mentioned)


def test_every_argument_of_every_command_says_what_it_is_for():
    seen = []

    def check(parser: argparse.ArgumentParser) -> None:
        seen.append(parser.prog)
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for command in action.choices.values():
                    check(command)
            else:
                assert action.help, f"{parser.prog} {action.dest}"

    check(cli.build_parser())
    assert "fastweights data generate" in seen
    assert {f"fastweights {command.name}" for command in COMMANDS} <= set(seen)


def test_every_command_has_json():
    parser = cli.build_parser()
    for command in COMMANDS:
        required = [
            name for argument in command.arguments if argument.options.get("required") for name in argument.names
        ]
        words = [
            argument.options.get("choices", ("x",))[0]
            for argument in command.arguments
            if "-" not in argument.names[0]
            and argument.options.get("nargs") != "?"
            and argument.options.get("type") is not int
        ]
        given = [*command.name.split(), *words, *(f"{name}=x" for name in required), "--json"]
        namespace = parser.parse_args(given)
        assert namespace.json is True and namespace.run is command.run


def test_the_command_and_the_package_are_the_same():
    finished = subprocess.run(
        [sys.executable, "-m", "fastweights", "recipes", "--json"], capture_output=True, text=True, check=True
    )
    assert json.loads(finished.stdout) == recipes.names()
    assert finished.stderr == ""


def test_recipes_lists_names(json_of):
    assert json_of("recipes") == recipes.names()


def test_recipes_shows_one_recipe(json_of, capsys):
    assert json_of("recipes", "catbabi-qa/fwm") == recipes.load("catbabi-qa/fwm").to_dict()
    assert cli.main(["recipes", "catbabi-qa/fwm"]) == 0
    printed = capsys.readouterr().out
    assert "write_scale: 0.03125" in printed and "  clip_norm: Gradient clipping" in printed


def test_the_table_of_recipes_tells_weights_and_memory(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert cli.main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (line,) = [line for line in lines if line.startswith("catbabi-qa/fwm ")]
    assert "683,745" in line and "33,280" in line
    assert all(any(line.startswith(f"{name} ") for line in lines) for name in recipes.names())


def test_train_prints_its_metrics(json_of, tmp_path):
    found = json_of("train", "catbabi-qa/fwm", *TINY, "--babi-tasks", "1", "--seed", "5", "--out", tmp_path / "run")
    assert found["run"] == str(tmp_path / "run")
    assert found["step"] == 3
    assert set(found["groups"]) == {"1"}
    assert found["questions"] == 10
    again = json_of("train", "--resume", "--out", tmp_path / "run")
    assert again == found


def test_seed_and_tasks_are_recorded(tmp_path):
    from fastweights.training.runs import RunFolder

    arguments = [*TINY, "--training.batch_size", "3", "catbabi-qa/fwm", "--seed", "5", "--babi-tasks", "1-3"]
    assert cli.main(["train", *arguments, "--out", str(tmp_path / "run")]) == 0
    recipe = RunFolder.open(tmp_path / "run").read_config()["recipe"]
    assert recipe["training"]["batch_size"] == 3
    assert recipe["training"]["seed"] == 5
    assert recipe["task"]["babi_tasks"] == "1-3"


def test_the_default_run_folder_bears_the_recipes_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "catbabi-qa/fwm", *TINY, "--babi-tasks=1"]) == 0
    assert (tmp_path / "runs" / "catbabi-qa" / "fwm" / "last.safetensors").exists()
    assert "fastweights evaluate runs/catbabi-qa/fwm" in " ".join(capsys.readouterr().out.split())
    assert cli.main(["train", "catbabi-qa/fwm", "--resume"]) == 0


def test_evaluate(json_of, run):
    found = json_of("evaluate", run)
    expected = {
        "split",
        "stories",
        "step",
        "loss",
        "answer_accuracy",
        "answer_perplexity",
        "questions",
        "tokens",
        "groups",
    }
    assert expected <= set(found)
    assert (found["split"], found["stories"], found["questions"]) == ("valid", 4, 20)
    assert found["answer_perplexity"] > 1 and 0 <= found["answer_accuracy"] <= 1
    assert set(found["groups"]) == {"1", "2"}
    assert all(set(row) == {"accuracy", "questions"} and row["questions"] == 10 for row in found["groups"].values())


def test_evaluate_asks_what_it_is_told_to(json_of, run):
    found = json_of("evaluate", run)
    assert json_of("evaluate", run / "best.safetensors") == found
    assert json_of("evaluate", run, "--generated") == found
    assert set(json_of("evaluate", run, "--babi-tasks", "2")["groups"]) == {"2"}
    test = json_of("evaluate", run, "--split", "test")
    assert test["split"] == "test" and test["tokens"] != found["tokens"]
    initial = json_of("evaluate", run, "--initial-state")
    assert initial["answer_perplexity"] != found["answer_perplexity"]
    batched = json_of("evaluate", run, "--batch-size", "3")
    assert (batched["questions"], batched["tokens"]) == (found["questions"], found["tokens"])


def test_evaluate_on_files(json_of, run, tmp_path):
    (tmp_path / "qa1_test.txt").write_text(STORY * 4)
    found = json_of("evaluate", run, "--data", tmp_path, "--babi-tasks", "1", "--split", "test")
    assert (found["stories"], found["questions"], found["tokens"]) == (4, 4, 48)


def test_a_run_on_files_is_evaluated_on_its_files(json_of, tmp_path):
    for split in ("train", "valid"):
        (tmp_path / f"qa1_{split}.txt").write_text(STORY * 4)
    out = tmp_path / "run"
    json_of("train", "catbabi-qa/fwm", *TINY, "--babi-tasks=1", "--data", tmp_path, "--out", out)
    assert json_of("evaluate", out)["stories"] == 4
    assert json_of("evaluate", out / "last.safetensors")["stories"] == 4
    assert json_of("evaluate", out, "--generated")["stories"] == 2


def test_evaluate_prints_a_table(run, capsys):
    capsys.readouterr()
    assert cli.main(["evaluate", str(run)]) == 0
    printed = capsys.readouterr().out
    assert "1 one supporting fact" in printed and "perplexity" in printed


def test_data_stats(json_of, tmp_path, capsys):
    for split, count in (("train", 5), ("valid", 2)):
        (tmp_path / f"qa1_{split}.txt").write_text(STORY * count)
    found = json_of("data", "stats", tmp_path)
    assert set(found) == {"train", "valid"}
    counts = {key: found["train"][key] for key in ("stories", "questions", "tokens")}
    assert counts == {"stories": 5, "questions": 5, "tokens": 55}
    assert set(found["train"]["babi_tasks"]) == {"1"} and len(found["train"]["missing"]) == 19
    published = json_of("data", "stats", tmp_path, "--as-published")
    assert published["train"]["stories"] == 4
    assert cli.main(["data", "stats", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "55" in printed and "missing in train: qa2_train.txt" in printed


def test_without_a_command_the_commands_are_listed(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main([])
    assert ended.value.code == 2
    assert "COMMAND" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    [
        ["evaluate", "run", "--rowz", "3"],
        ["recipes", "--babi-tasks", "3"],
        ["doctor", "more"],
        ["train", "art/fwm", "--rows=3"],
    ],
)
def test_unknown_options_end_with_exit_code_2(command, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(command)
    assert ended.value.code == 2
    assert "unrecognized arguments" in capsys.readouterr().err


def test_threads_are_set(tmp_path):
    threads = torch.get_num_threads()
    try:
        arguments = [*TINY, "--babi-tasks=1", f"--out={tmp_path / 'run'}", "--threads=2"]
        assert cli.main(["train", "catbabi-qa/fwm", *arguments]) == 0
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_ctrl_c_before_training_ends_with_130(monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(recipes, "names", interrupt)
    assert cli.main(["recipes", "--json"]) == 130


def test_evaluate_on_harder_data(json_of, run, tmp_path):
    """Settings of the task and of the objective change what a trained model is evaluated on."""
    found = json_of("evaluate", run)
    harder = json_of("evaluate", run, "--task.distractors", "2", "--babi-tasks=1")
    assert harder["groups"]["1"]["questions"] == 10
    assert harder["tokens"] > found["tokens"] / 2 + 10
    assert json_of("evaluate", run, "--task.validation_stories=3", "--task.questions=2")["questions"] == 2 * 3 * 2
    assert "perplexity" in json_of("evaluate", run, "--objective=language-model")
    out = tmp_path / "sequences"
    sizes = ("--task.examples=9", "--task.validation_examples=5", "--task.test_examples=7", "--training.batch_size=4")
    json_of("train", "art/fwm", "--task.pairs=3", *sizes, "--training.steps=2", "--out", out)
    assert json_of("evaluate", out)["tokens"] == 5 * 9
    more = json_of("evaluate", out, "--task.pairs=10", "--task.test_examples=4", "--split=test")
    assert (more["sequences"], more["questions"], more["tokens"]) == (4, 4, 4 * 23)


def test_a_recipe_may_be_mixed_from_types_alone(json_of, tmp_path):
    sizes = ("--task.examples=9", "--task.validation_examples=5", "--training.batch_size=4", "--training.steps=2")
    options = ("--model.core.slow=lstm", "--training.optimizer=sgd", "--objective=language-model")
    found = json_of("train", "art/fwm", *sizes, *options, "--model.core.memory_size=4", "--out", tmp_path / "run")
    assert found["perplexity"] > 1 and found["step"] == 2
    assert json_of("evaluate", tmp_path / "run")["perplexity"] == found["perplexity"]
    assert json_of("train", "--resume", "--out", tmp_path / "run") == found


def test_a_value_may_be_apart_from_its_setting(json_of, tmp_path):
    sizes = ["--task.examples", "9", "--task.validation_examples", "5", "--training.batch_size", "4"]
    found = json_of("train", *sizes, "art/fwm", "--training.learning_rate", "1e-3", "--training.steps", "1", "--out",
                    tmp_path / "run")  # fmt: skip
    assert found["step"] == 1


def test_sequences_are_trained_on_and_asked(json_of, tmp_path):
    out = tmp_path / "run"
    sizes = ("--task.examples=9", "--task.validation_examples=5", "--task.test_examples=7", "--training.batch_size=4")
    json_of("train", "multi-query-art/fw-lstm", "--task.pairs=3", *sizes, "--training.steps=3", "--out", out)
    found = json_of("evaluate", out, "--split", "test")
    assert (found["sequences"], found["questions"], found["tokens"]) == (7, 21, 7 * 11)
    assert {group: row["questions"] for group, row in found["groups"].items()} == {"1": 7, "2": 7, "3": 7}
    assert (
        json_of("evaluate", out, "--split", "test", "--batch-size", "2")["answer_accuracy"] == found["answer_accuracy"]
    )
