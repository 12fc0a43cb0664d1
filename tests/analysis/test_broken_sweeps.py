"""A run that cannot be read is named and left out of a report; the others are shown."""

import json
import shutil

import pytest

from fastweights import cli

TINY = (
    "--training.steps=2", "--training.evaluate_every=1", "--training.report_every=1", "--training.batch_size=2",
    "--training.eval_batch_size=2", "--task.examples=6", "--task.validation_examples=4", "--task.test_examples=4",
    "--model.core.hidden_size=8",
)  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep") / "sweep"
    arguments = ["sweep", "art/lstm", *TINY, "--over", "training.seed=0,1", "--test", f"--out={folder}"]
    assert cli.main(arguments) == 0
    return folder


BREAKS = {
    "an empty test": ("test.json", ""),
    "a torn test": ("test.json", '{"answer_accu'),
    "a test of something else": ("test.json", '{"perplexity": 3}'),
    "a test that is a list": ("test.json", "[1]"),
    "a test that is no number": ("test.json", '{"answer_accuracy": "much"}'),
    "a test that is not finite": ("test.json", '{"answer_accuracy": NaN}'),
    "bytes that are no text": ("test.json", b"\xff\xfe\x00"),
    "records of something else": ("metrics.jsonl", '{"step": 1, "valid": {"perplexity": 2}}\n'),
    "records that are lists": ("metrics.jsonl", "[1]\n"),
    "records without a number": ("metrics.jsonl", '{"step": 1, "valid": {"answer_accuracy": null}}\n'),
    "records whose validation is a list": ("metrics.jsonl", '{"step": 1, "valid": [1]}\n'),
    "timings without seconds": ("timing.jsonl", '{"step": 1}\n'),
    "a configuration that is a list": ("config.yaml", "[1]"),
    "a sweep that is a number": ("config.yaml", "sweep: 3\nheadline: 4\n"),
    "a headline whose label is a list": (
        "config.yaml",
        "sweep: {recipe: a, settings: {}}\nheadline: {name: answer_accuracy, label: [a], format: '{}'}\n",
    ),
    "a headline whose bound is a list": (
        "config.yaml",
        "sweep: {recipe: a, settings: {}}\nheadline: {name: answer_accuracy, label: a, format: '{}', least: [1]}\n",
    ),
    "a configuration that is nested without an end": ("config.yaml", "[" * 50_000),
    "a test that is nested without an end": ("test.json", "[" * 50_000),
    "a step beyond all numbers": ("metrics.jsonl", '{"step": 1' + "0" * 400 + ', "valid": {"answer_accuracy": 1}}\n'),
    "a step that is negative": ("metrics.jsonl", '{"step": -1, "valid": {"answer_accuracy": 1}}\n'),
    "a headline that is a number": ("config.yaml", "sweep: {recipe: a, settings: {}}\nheadline: 4\n"),
    "a format that reaches into objects": (
        "config.yaml",
        "sweep: {recipe: a, settings: {}}\nheadline: {name: x, label: x, format: '{0.__class__.a}'}\n",
    ),
}


@pytest.mark.parametrize("kind", BREAKS)
def test_a_broken_run_is_named_and_left_out(kind, made, tmp_path, capsys):
    folder = tmp_path / "sweep"
    shutil.copytree(made, folder)
    name, content = BREAKS[kind]
    path = folder / "art" / "lstm" / "seed=1" / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    capsys.readouterr()
    assert cli.main(["report", str(folder), "--json"]) == 0
    printed = capsys.readouterr()
    (row,) = json.loads(printed.out)
    assert row["seeds"] == ["0"]
    assert printed.err.count("\n") == 1 and "seed=1 is left out" in printed.err
