"""A refused start leaves nothing behind; a run without its last checkpoint does not start again in silence."""

import json
import shutil

import pytest
import torch

from fastweights import cli, recipes
from fastweights.errors import UserError
from fastweights.training import checkpoint
from fastweights.training.loop import Observer, Trainer
from fastweights.training.runs import RunFolder
from trainings import SEQUENCES

TINY = (
    "--training.steps=4", "--training.evaluate_every=2", "--training.report_every=1", "--training.batch_size=2",
    "--training.eval_batch_size=2", "--task.examples=6", "--task.validation_examples=4", "--model.core.hidden_size=8",
)  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device=mps"], '--device is "mps"; give cpu or cuda'),
        (["--device=cuda:7"], "needs CUDA device 7"),
        (["--device=gpu"], '--device is "gpu"'),
        (["--threads=1000000"], "--threads is 1000000; give 1 to 1024"),
        (["--threads=0"], "--threads is 0"),
        (["--seed=18446744073709551616"], "training.seed is 18446744073709551616; it must be less than"),
        (["--seed=-1"], "training.seed is -1"),
        (["--training.learning_rate=.nan"], "training.learning_rate is nan; it must be a finite number"),
        (["--training.clip_norm=.inf"], "training.clip_norm is inf"),
        (["--training.optimizer={type: adam, eps: .nan}"], 'eps of the optimizer "adam" is nan'),
        (["--training.optimizer={type: sgd, momentum: -1}"], 'optimizer "sgd" cannot be built'),
    ],
)
def test_a_start_that_fails_leaves_no_folder(arguments, message, tmp_path, capsys):
    out = tmp_path / "run"
    assert cli.main(["train", "art/lstm", *TINY, *arguments, f"--out={out}"]) == 2
    printed = capsys.readouterr().err
    assert message in printed and printed.count("\n") == 1
    assert not out.exists()
    assert cli.main(["train", "art/lstm", *TINY, f"--out={out}"]) == 0  # the corrected command runs


def test_a_run_that_lost_its_last_checkpoint_is_refused(tmp_path, capsys):
    out = tmp_path / "run"
    assert cli.main(["train", "art/lstm", *TINY, f"--out={out}"]) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    (out / "last.safetensors").rename(out / "elsewhere")
    capsys.readouterr()
    assert cli.main(["train", "--resume", f"--out={out}"]) == 2
    assert "has lost last.safetensors" in capsys.readouterr().err
    after = {path.name: path.read_bytes() for path in out.iterdir() if path.name not in ("elsewhere", "lock")}
    assert after == {name: content for name, content in before.items() if name in after}
    assert {"metrics.jsonl", "best.safetensors", "config.yaml"} <= after.keys()


def test_a_damaged_last_checkpoint_is_refused_on_resume(tmp_path, capsys):
    out = tmp_path / "run"
    assert cli.main(["train", "art/lstm", *TINY, f"--out={out}"]) == 0
    last = out / "last.safetensors"
    content, metrics = last.read_bytes(), (out / "metrics.jsonl").read_bytes()
    for place in range(9, len(content), len(content) // 40):
        changed = bytearray(content)
        changed[place] ^= 4
        last.write_bytes(changed)
        capsys.readouterr()
        assert cli.main(["train", "--resume", f"--out={out}"]) == 2
        assert capsys.readouterr().err.count("\n") == 1
        assert last.read_bytes() == bytes(changed) and (out / "metrics.jsonl").read_bytes() == metrics


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("finished") / "run"
    assert cli.main(["train", "art/lstm", *TINY, f"--out={out}"]) == 0
    return out


MOMENT = "optimizer/core.bias/exp_avg"


@pytest.mark.parametrize(
    ("place", "odd"),
    [
        (("step",), -1), (("step",), "x"), (("step",), 10**18), (("best",), "x"), (("stopped_early",), 3),
        (("count",), -1), (("sums",), [1]), (("sums", "loss"), None), (("cursor",), {"next": 0}),
        (("cursor", "next"), -1), (("cursor", "next"), None), (("optimization",), {}), (("recipe",), None),
        (("optimization", "averages"), "yes"), (("optimization", "averages"), True),
        (("optimization", "averaged_steps"), None), (("optimization", "optimizer"), [1]),
        (MOMENT, torch.zeros(2)), (MOMENT, torch.zeros(8, 4)), (MOMENT, torch.zeros(32, dtype=torch.float64)),
        ("optimizer/core.bias", torch.zeros(32)), ("model/core.bias", torch.zeros(3)), ("random/torch", torch.zeros(9)),
    ],
)  # fmt: skip
def test_an_odd_state_in_a_whole_checkpoint_is_refused_and_nothing_written(place, odd, finished, tmp_path, capsys):
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    tensors, metadata = checkpoint.load(out / "last.safetensors")
    *folders, name = place if isinstance(place, tuple) else (place,)
    container = metadata if isinstance(place, tuple) else tensors
    for folder in folders:
        container = container[folder]
    container[name] = odd
    checkpoint.save(out / "last.safetensors", tensors, metadata)
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.name != "lock"}
    capsys.readouterr()
    assert cli.main(["train", "--resume", f"--out={out}"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.name != "lock"} == before


def test_square_brackets_in_paths_are_no_markup(tmp_path, capsys):
    out = tmp_path / "[red]run[/red]"
    assert cli.main(["train", "art/lstm", *TINY, f"--out={out}"]) == 0
    assert str(out) in capsys.readouterr().out.replace("\n", "")
    assert cli.main(["evaluate", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["split"] == "valid"


@pytest.mark.parametrize("command", [["data", "generate", "--out=made"], ["graphs", "walk", "run"]])
def test_negative_seeds_are_refused(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main([*command, "--seed=-1"]) == 2
    assert "--seed is -1; give 0 or more" in capsys.readouterr().err
    assert not (tmp_path / "made").exists()


def test_a_resumed_run_of_another_recipe_is_refused(tmp_path, capsys):
    out = tmp_path / "run"
    assert cli.main(["train", "art/lstm", *TINY, f"--out={out}"]) == 0
    assert cli.main(["train", "art/fwm", "--resume", f"--out={out}"]) == 2
    assert "is a run of art/lstm, not of art/fwm; leave the recipe out" in capsys.readouterr().err
    assert cli.main(["train", "art/lstm", "--resume", f"--out={out}"]) == 0


def test_an_empty_list_of_tasks_is_refused(tmp_path, capsys):
    assert cli.main(["train", "catbabi-qa/fwm", "--babi-tasks", "", f"--out={tmp_path / 'run'}"]) == 2
    assert "babi_tasks" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_figure_that_cannot_be_written_is_refused_before_measuring(tmp_path, monkeypatch, capsys):
    from fastweights.bench import growth

    monkeypatch.setattr(growth, "run", lambda *_: pytest.fail("it measured"))
    assert cli.main(["bench", "--growth", str(tmp_path / "nowhere" / "growth.png")]) == 2
    assert "cannot write" in capsys.readouterr().err


STORIES = (
    "catbabi-qa/fwm", "--training.steps=4", "--training.evaluate_every=2", "--training.batch_size=2",
    "--training.eval_batch_size=2", "--babi-tasks=1", "--task.segment_length=10", "--model.core.hidden_size=4",
    "--model.core.memory_size=4", "--model.embedding_size=4",
)  # fmt: skip
STORY = "1 Mary moved to the bathroom.\n2 Where is Mary? \tbathroom\t1\n"


@pytest.fixture
def trained_on_files(tmp_path, monkeypatch):
    """A folder with a run `run`, trained on the files in `stories`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stories").mkdir()
    for split in ("train", "valid"):
        (tmp_path / "stories" / f"qa1_{split}.txt").write_text(STORY * 3)
    assert cli.main(["train", *STORIES, "--data=stories", "--out=run"]) == 0
    return tmp_path


RESUME = ["train", "--resume", "--out=run"]


@pytest.mark.parametrize("split", ["train", "valid"])
def test_a_resumed_run_whose_files_changed_is_refused(trained_on_files, split, capsys):
    (trained_on_files / "stories" / f"qa1_{split}.txt").write_text(STORY.replace("bath", "bed") * 3)
    before = (trained_on_files / "run" / "last.safetensors").read_bytes()
    assert cli.main(RESUME) == 2
    assert "run was trained on other data than the files in stories as they are now" in capsys.readouterr().err
    assert (trained_on_files / "run" / "last.safetensors").read_bytes() == before


def test_a_resumed_run_takes_equal_files_in_another_directory(trained_on_files, capsys):
    (trained_on_files / "stories").rename("moved")
    assert cli.main(RESUME) == 2
    assert cli.main([*RESUME, "--data=moved", "--training.steps=6"]) == 0
    capsys.readouterr()
    assert cli.main(["evaluate", "run", "--json"]) == 0  # the run knows where they are now


def test_an_old_run_without_the_digest_of_its_files_resumes_with_a_note(trained_on_files, capsys):
    config = trained_on_files / "run" / "config.yaml"
    config.write_text("".join(line for line in config.read_text().splitlines(True) if "files_sha256" not in line))
    capsys.readouterr()
    assert cli.main(RESUME) == 0
    assert "note: run/config.yaml has no digest of the files in stories" in capsys.readouterr().out


def test_a_resumed_run_on_generated_data_takes_no_files(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "art/lstm", *TINY, "--out=run"]) == 0
    assert cli.main([*RESUME, "--data=stories"]) == 2
    assert "run was not trained on files; leave --data out" in capsys.readouterr().err


def test_a_run_on_files_does_not_go_on_with_generated_data(trained_on_files):
    with RunFolder.open("run") as run:
        trainer = Trainer(recipes.assemble(recipes.load(run.read_config()["recipe"])), run, None)
        with pytest.raises(UserError, match="run was trained on other data than generated data"):
            trainer.resume()


def test_a_recipe_file_with_a_number_that_is_none_is_refused(tmp_path, capsys):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("task: {type: retrieval}\nmodel: {core: {type: lstm}}\ntraining: {learning_rate: .nan}\n")
    assert cli.main(["train", str(recipe), f"--out={tmp_path / 'run'}"]) == 2
    assert "training.learning_rate is nan; it must be a finite number" in capsys.readouterr().err


def test_a_removed_configuration_is_restored_from_the_checkpoint(trained_on_files, capsys):
    config = trained_on_files / "run" / "config.yaml"
    before = config.read_text()
    config.unlink()
    assert cli.main(RESUME) == 2
    assert "run/config.yaml is missing, and the run was trained on files" in capsys.readouterr().err
    assert cli.main([*RESUME, "--data=stories"]) == 0
    assert "note: run/config.yaml was removed, and is restored from the last checkpoint" in capsys.readouterr().out
    assert config.read_text() == before.replace("name: catbabi-qa/fwm", "name: null")


class Remover(Observer):
    """Removes a file of the run after a step, and keeps the notes."""

    def __init__(self, name):
        self.name, self.notes, self.run = name, [], None

    def step(self, progress):
        if progress.step == 3:
            (self.run.path / self.name).unlink()

    def note(self, text):
        self.notes.append(text)


@pytest.mark.parametrize(
    ("name", "note"),
    [
        ("metrics.jsonl", "metrics.jsonl was removed: its records begin again at step 4"),
        ("config.yaml", "config.yaml was removed, and is written again"),
    ],
)
def test_what_is_removed_while_training_is_noted(trainings, name, note):
    remover = Remover(name)
    trainer = trainings.begin("art/fw-lstm", *SEQUENCES, observer=remover)
    remover.run = trainer.run
    trainer.train()
    assert [text.rpartition("/")[2] for text in remover.notes] == [note]
    assert trainer.run.read_config()["recipe"] == trainer.recipe.to_dict()
    assert [record["step"] for record in trainer.run.records()][-1] == 6
