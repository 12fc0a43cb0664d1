"""What users get wrong: exit code 2 and one sentence that says what is wrong, where, and what to do."""

import errno
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

from fastweights import cli
from fastweights.training import checkpoint
from fastweights.training.runs import RunFolder

TINY = (
    "--model.embedding_size=8",
    "--model.core.hidden_size=8",
    "--model.core.memory_size=4",
    "--task.segment_length=20",
    "--task.validation_stories=1",
    "--training.batch_size=2",
    "--training.eval_batch_size=2",
    "--training.steps=2",
)
STORY = "1 Mary moved to the bathroom.\n2 Where is Mary? \tbathroom\t1\n"


@pytest.fixture
def refused(capsys, tmp_path, monkeypatch):
    """Return a function that runs a command, expects it to be refused, and gives the sentence."""
    monkeypatch.chdir(tmp_path)

    def refused(*arguments):
        capsys.readouterr()
        try:
            code = cli.main([*map(str, arguments)])
        except SystemExit as end:  # of argparse
            code = end.code
        assert code == 2
        captured = capsys.readouterr()
        message = captured.err
        assert message.startswith("fastweights: ") and message.endswith("\n") and message.count("\n") == 1
        assert "Traceback" not in captured.out
        return message

    return refused


@pytest.fixture
def train_refused(refused):
    """The same for a training, which must not leave a run folder behind."""

    def train_refused(*arguments, recipe="catbabi-qa/fwm"):
        message = refused("train", recipe, *TINY, "--out=out", *arguments)
        assert not os.path.exists("out")
        return message

    return train_refused


@pytest.fixture
def data(tmp_path):
    """A folder of files of tasks 1 and 2."""
    folder = tmp_path / "stories"
    folder.mkdir()
    for task in (1, 2):
        for split in ("train", "valid"):
            (folder / f"qa{task}_{split}.txt").write_text(STORY * 3)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a finished run."""
    out = tmp_path_factory.mktemp("trained") / "run"
    assert cli.main(["train", "catbabi-qa/fwm", *TINY, "--babi-tasks=1", f"--out={out}"]) == 0
    return out


@pytest.fixture
def run(trained, tmp_path):
    """A copy of it."""
    copy = tmp_path / "run"
    copy.mkdir()
    for file in trained.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


BROKEN_FILES = {
    "not bAbI": ("Call me Ishmael.\n", r"qa1_train.txt:1 has no index"),
    "binary": (b"\x89PNG\xff\xfe", r"qa1_train.txt:1 is not text"),
    "empty": ("", r"qa1_train.txt:1 is missing, the file is empty"),
    "no answer": (
        STORY + "1 Mary moved to the bathroom.\n2 Where is Mary?\n",
        r"Where is Mary\?.*qa1_train.txt:4 has no",
    ),
    "cut short": (STORY + "1 Mary moved to the bathroom.\n", r"qa1_train.txt:3 .*cut short"),
    "unknown word": (STORY.replace("bathroom", "bathrom"), r'"?bathrom"?.*qa1_train.txt:1.*did you mean "bathroom"'),
}


@pytest.mark.parametrize("kind", BROKEN_FILES)
def test_a_broken_file(train_refused, refused, data, kind):
    content, expected = BROKEN_FILES[kind]
    (data / "qa1_train.txt").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert re.search(expected, train_refused("--data", data, "--babi-tasks=1"))
    assert re.search(expected, refused("data", "stats", data))


def test_an_unknown_word_at_an_evaluation_is_named_with_its_file_and_line(refused, run, data):
    (data / "qa1_valid.txt").write_text(STORY * 2 + STORY.replace("Mary moved", "Gertrudis moved"))
    message = refused("evaluate", run, "--data", data, "--babi-tasks=1")
    assert "'gertrudis'" in message
    assert f"{data / 'qa1_valid.txt'}:5" in message


def test_a_missing_file_is_named_together_with_the_way_to_go_on_without(train_refused, refused, run, data):
    (data / "qa3_valid.txt").write_text(STORY)
    message = train_refused("--data", data, "--babi-tasks=1-3")
    assert "qa3_train.txt" in message and "--babi-tasks 1,2 " in message
    (data / "qa2_valid.txt").unlink()
    message = refused("evaluate", run, "--data", data, "--babi-tasks=1-3")
    assert "qa2_valid.txt" in message and "--babi-tasks 1,3 " in message
    assert "qa4_train.txt" in train_refused("--data", data)


def test_a_folder_of_data_that_is_none(train_refused, refused, run, tmp_path):
    for message in (
        train_refused("--data=nowhere"),
        refused("evaluate", run, "--data=nowhere"),
        refused("data", "stats", "nowhere"),
    ):
        assert "no directory nowhere" in message
    (tmp_path / "empty").mkdir()
    assert "empty holds no" in refused("data", "stats", "empty")
    assert "empty holds none of" in train_refused("--data=empty")


@pytest.mark.parametrize(
    ("recipe", "arguments", "expected"),
    [
        ("catbabi-qa/fmw", [], 'no recipe "catbabi-qa/fmw"; did you mean "catbabi-qa/fwm"'),
        ("mine.yaml", [], "no recipe file mine.yaml"),
        ("catbabi-qa/fwm", ["--training.stepz=3"], 'no key "training.stepz"; did you mean "training.steps"'),
        ("catbabi-qa/fwm", ["--training.stepz", "3"], 'no key "training.stepz"; did you mean "training.steps"'),
        ("catbabi-qa/fwm", ["--model.core.memory=3"], 'no option "memory"; did you mean "memory_size"'),
        ("catbabi-qa/fwm", ["--model.core.type=fvm"], 'no core "fvm"; did you mean "fwm"'),
        ("catbabi-qa/fwm", ["--sed=3"], '--sed=3; did you mean "--seed"'),
        ("catbabi-qa/fwm", ["more"], "unrecognized arguments: more"),
    ],
)
def test_names_that_do_not_exist(train_refused, recipe, arguments, expected):
    assert expected in train_refused(*arguments, recipe=recipe)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--babi-tasks=nonsense"], '"nonsense"'),
        (["--babi-tasks=1,,2"], "1,,2"),
        (["--babi-tasks=3-1"], "runs backwards"),
        (["--babi-tasks=21"], "no bAbI task 21"),
        (["--babi-tasks=0"], "no bAbI task 0"),
        (["--babi-tasks=1,1"], "more than once"),
        (["--training.steps=0"], "training.steps is 0"),
        (["--training.steps=-5"], "training.steps is -5"),
        (["--training.steps", "-5"], "training.steps is -5"),
        (["--training.batch_size=0"], "training.batch_size is 0"),
        (["--training.batch_size=-1"], "training.batch_size is -1"),
        (["--training.eval_batch_size=0"], "training.eval_batch_size is 0"),
        (["--training.evaluate_every=0"], "training.evaluate_every is 0"),
        (["--training.report_every=-1"], "training.report_every is -1"),
        (["--training.warmup_steps=-1"], "training.warmup_steps is -1"),
        (["--training.clip_norm=-1"], "training.clip_norm is -1"),
        (["--training.learning_rate=0"], "training.learning_rate is 0"),
        (["--training.learning_rate=.nan"], "training.learning_rate is nan"),
        (["--training.learning_rate=.inf"], "training.learning_rate is inf"),
        (["--training.clip_norm=0"], "training.clip_norm is 0"),
        (["--training.seed=-1"], "training.seed is -1"),
        (["--training.early_stopping.target=99"], "training.early_stopping.target is 99"),
        (["--model.head_size=0"], "head_size of the model is 0"),
        (["--seed=-1"], "training.seed is -1"),
        (["--seed", "-1"], "training.seed is -1"),
        (["--threads=0"], "--threads"),
        (["--threads=-1"], "--threads"),
        (["--task.segment_length=0"], 'segment_length of the task "catbabi" is 0'),
        (["--task.validation_stories=0"], 'validation_stories of the task "catbabi" is 0'),
        (["--task.mode=ml"], "must be 'qa' or 'lm'"),
        (["--model.embedding_size=0"], "embedding_size of the model is 0"),
        (["--model.core.hidden_size=0"], 'hidden_size of the core "fwm" is 0'),
        (["--model.core.memory_size=-1"], 'memory_size of the core "fwm" is -1'),
        (["--model.core.num_reads=0"], 'num_reads of the core "fwm" is 0'),
        (["--model.core.backend=fast"], 'no backend "fast"'),
        (["--model.token_dropout=1.5"], "1.5"),
        (["--training.early_stopping.target=-0.1"], "training.early_stopping.target is -0.1"),
        (["--training.steps=many"], "many"),
        (["--threads=many"], "many"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_values_that_make_no_sense(train_refused, arguments, expected):
    assert expected in train_refused(*arguments)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--task.pairs=27"], "27 pairs need 27 different keys, and there are 26"),
        (["--task.examples=0"], 'examples of the task "retrieval" is 0'),
        (["--task.delay=9", "--task.segment_length=20"], "do not fit into a segment_length of 20"),
        (["--model.core.inner_steps=0"], 'inner_steps of the core "fw-rnn" is 0'),
        (["--data=stories"], "leave --data out"),
        (["--babi-tasks=1"], 'no option "babi_tasks"'),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_sequences_that_make_no_sense(refused, arguments, expected):
    assert expected in refused("train", "art/fw-rnn", "--out=out", *arguments)
    assert not os.path.exists("out")


@pytest.mark.parametrize("rows", [0, -3, 10**20])
def test_rows_of_an_evaluation_that_make_no_sense(refused, run, rows):
    assert f"--batch-size is {rows}" in refused("evaluate", run, f"--batch-size={rows}")


@pytest.mark.parametrize("tasks", ["nonsense", "21", "0", "1-"])
def test_tasks_of_an_evaluation_that_make_no_sense(refused, run, tasks):
    assert tasks in refused("evaluate", run, f"--babi-tasks={tasks}")


def test_no_recipe_at_all(refused):
    assert "fastweights recipes" in refused("train")
    assert "fastweights recipes" in refused("train", "--resume")


def test_what_is_no_run(refused, tmp_path):
    assert "nowhere holds no run" in refused("train", "--resume", "--out=nowhere")
    assert "no checkpoint at nowhere" in refused("evaluate", "nowhere")
    assert "holds no run" in refused("evaluate", tmp_path)


def test_a_folder_that_holds_a_run_already(refused, run):
    before = {file.name: file.read_bytes() for file in run.iterdir()}
    message = refused("train", "catbabi-qa/fwm", *TINY, f"--out={run}")
    assert "already holds a run" in message and "--resume" in message and "--out" in message
    assert {file.name: file.read_bytes() for file in run.iterdir()} == before


def test_a_run_in_use_by_another_process(refused, run):
    code = (
        "import sys; from fastweights.training.runs import RunFolder\n"
        "with RunFolder.open(sys.argv[1]): print('locked', flush=True); sys.stdin.readline()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, run], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "locked\n"
        assert f"in use by process {holder.pid}" in refused("train", "--resume", f"--out={run}")
    finally:
        holder.communicate("\n")
    assert cli.main(["train", "--resume", f"--out={run}"]) == 0


def test_settings_given_to_a_resumed_run(refused, run):
    message = refused("train", "--resume", f"--out={run}", "--training.batch_size=9", "--training.steps=9", "--seed=3")
    assert "leave --seed, --training.batch_size=9 out" in message
    assert "another; leave them out" in refused("train", "--resume", f"--out={run}", "catbabi-qa/fwm", "another")


def test_a_resumed_run_that_cannot_have_another_end(refused, run, monkeypatch):
    assert "steps; give more than that, not 1, or" in refused("train", "--resume", f"--out={run}", "--training.steps=1")
    falling = {"training": {"steps": 5, "schedule": "cosine"}}
    monkeypatch.setattr(RunFolder, "read_config", lambda self: {"recipe": falling, "data": None})
    message = refused("train", "--resume", f"--out={run}", "--training.steps=9")
    assert "learning rate falls to 0 at step 5, so it cannot go on to step 9" in message


@pytest.mark.parametrize("length", [0, 7, 100, 5000])
def test_a_truncated_checkpoint(refused, run, length):
    for name, command in (("best", ["evaluate", run]), ("last", ["train", "--resume", "--out", run])):
        path = run / f"{name}.safetensors"
        path.write_bytes(path.read_bytes()[:length])
        message = refused(*command)
        assert str(path) in message and "no whole safetensors file" in message


def test_a_checkpoint_of_another_model(refused, run):
    tensors, metadata = checkpoint.load(run / "best.safetensors")
    metadata["recipe"]["model"]["embedding_size"] = 16
    checkpoint.save(run / "best.safetensors", tensors, metadata)
    assert "holds another model than its recipe says" in refused("evaluate", run)


def test_a_checkpoint_of_another_run(refused, run, tmp_path):
    assert cli.main(["train", "catbabi-qa/fwm", *TINY, "--babi-tasks=1", "--seed=1", "--out=other"]) == 0
    (run / "last.safetensors").write_bytes((tmp_path / "other" / "last.safetensors").read_bytes())
    assert "another recipe" in refused("train", "--resume", f"--out={run}")


def test_a_checkpoint_that_cannot_be_resumed(refused, run):
    (run / "last.safetensors").write_bytes((run / "best.safetensors").read_bytes())
    assert "last.safetensors" in refused("train", "--resume", f"--out={run}")


@pytest.mark.parametrize("metadata", [{}, {"recipe": 3}, {"recipe": {"task": {"type": "chess"}}}])
def test_a_checkpoint_that_tells_no_recipe(refused, run, metadata):
    tensors, _ = checkpoint.load(run / "best.safetensors")
    checkpoint.save(run / "best.safetensors", tensors, metadata)
    assert "best.safetensors does not say which model it holds" in refused("evaluate", run)


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        (3, "The recipe is 3"),
        ({"task": {"type": "chess"}}, 'no task "chess"'),
        ({"training": {"stepz": 3}}, 'no key "training.stepz"'),
    ],
)
def test_a_checkpoint_of_a_recipe_that_is_none(refused, run, recipe, expected):
    tensors, metadata = checkpoint.load(run / "best.safetensors")
    checkpoint.save(run / "best.safetensors", tensors, metadata | {"recipe": recipe})
    message = refused("evaluate", run)
    assert expected in message and "best.safetensors" in message


@pytest.mark.parametrize(
    "content", ["", "- 1", "a: [", "a: 1", "recipe: 3", "recipe: {training: {stepz: 3}}\ndata: null"]
)
def test_a_broken_configuration(refused, run, content):
    (run / "config.yaml").write_text(content)
    assert str(run / "config.yaml") in refused("train", "--resume", f"--out={run}")


def test_a_full_disk_while_saving_leaves_the_old_checkpoint(refused, run, monkeypatch):
    config = RunFolder.open(run).read_config()
    config["recipe"]["training"]["steps"] = 4
    tensors, metadata = checkpoint.load(run / "last.safetensors")
    checkpoint.save(run / "last.safetensors", tensors, metadata | {"recipe": config["recipe"]})
    checkpoint.write_atomically(run / "config.yaml", json.dumps(config).encode())
    before = (run / "last.safetensors").read_bytes()

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        message = refused("train", "--resume", f"--out={run}")
    assert "No space left on device" in message and "free some space" in message
    assert (run / "last.safetensors").read_bytes() == before
    assert not list(run.glob(".*.partial"))


def test_an_error_of_the_module_run_as_a_program(tmp_path):
    finished = subprocess.run(
        [sys.executable, "-m", "fastweights", "train", "catbabi-qa/fmw"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert finished.returncode == 2
    assert finished.stdout == ""
    assert finished.stderr.startswith('fastweights: There is no recipe "catbabi-qa/fmw"')
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("part", ["model: {core: 0.5}", "model: {core: [a]}", "objective: 3"])
def test_a_part_that_is_no_mapping_is_refused_where_a_recipe_is_shown(refused, part):
    pathlib.Path("mine.yaml").write_text(f"task: {{type: retrieval}}\n{part}\n")
    assert "There is no" in refused("recipes", "mine.yaml") or "must be" in refused("recipes", "mine.yaml")
