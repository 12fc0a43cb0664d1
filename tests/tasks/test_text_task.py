"""Texts as a task: batches, state at epochs, every core, resume, evaluation of whole splits, bad input."""

import json
import math

import pytest
import torch

from fastweights import cli, load_model, recipes, tasks
from fastweights.cores import CORES
from fastweights.data.vocabulary import Vocabulary
from fastweights.errors import UserError
from fastweights.objectives import LanguageModel
from fastweights.tasks import Spaces, Text
from fastweights.training import checkpoint
from fastweights.training.runs import RunFolder
from trainings import LOOP, Trainings, assert_resumes, records

TINY = (*LOOP, "--model.embedding_size=8", "--model.core.hidden_size=8", "--task.segment_length=10")
LINES = ("the cat sat on the mat", "the dog saw the cat", "a Rose is a rose is a rose", "where is the dog ?")


@pytest.fixture
def trainings(tmp_path):
    with Trainings(tmp_path) as trainings:
        yield trainings


@pytest.fixture
def folder(tmp_path):
    """A directory with a file for each split; the word "mouse" is in none of training."""
    path = tmp_path / "corpus"
    path.mkdir()
    for split, count in (("train", 12), ("valid", 3), ("test", 2)):
        (path / f"{split}.txt").write_text("".join(f"{line}\n" for line in LINES * count))
    with (path / "valid.txt").open("a") as file:
        file.write("the mouse sat\n")
    return str(path)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "my.txt"
    path.write_text("".join(f"{line}\n" for line in LINES * 20))
    return str(path)


# Batches


def test_what_a_batch_holds(folder):
    task = Text(segment_length=9)
    vocabulary = task.prepare(folder)
    batches = task.evaluation_batches(folder, "valid", 2)
    batch = next(batches)
    assert all(tensor.shape == (2, 9) for tensor in batch[:7])
    assert vocabulary.decode(batch.inputs[0].tolist()) == [
        "the",
        "cat",
        "sat",
        "on",
        "the",
        "mat",
        "<eos>",
        "the",
        "dog",
    ]
    assert vocabulary.decode(batch.targets[0].tolist()) == [
        "cat",
        "sat",
        "on",
        "the",
        "mat",
        "<eos>",
        "the",
        "dog",
        "saw",
    ]
    assert batch.loss_mask.all() and batch.mask.all() and batch.answer_mask.all() and not batch.groups.any()
    assert batch.resets[:, 0].all() and not batch.resets[:, 1:].any() and batch.lr_scale == 1.0
    *middle, last = batches
    assert all(batch.resets is None for batch in [*middle, last])
    assert last.lr_scale == last.inputs.shape[1] / 9 < 1
    assert vocabulary.decode(last.inputs[last.mask][-3:].tolist()) == ["the", "<unk>", "sat"]
    assert vocabulary.decode([int(last.targets[last.mask][-1])]) == ["<eos>"]


def test_evaluation_reads_whole_splits(folder):
    task = Text(segment_length=10)
    task.prepare(folder)
    for split in ("train", "valid", "test"):
        expected = task.evaluation_counts(folder, split)["tokens"]
        for batch_size in (1, 10):
            assert (
                sum(int(batch.mask.sum()) for batch in task.evaluation_batches(folder, split, batch_size)) == expected
            )


def test_random_lengths_scale_the_learning_rate(file):
    task = Text(segment_length=10, random_length=True)
    batches = task.training_batches(file, 2, seed=0)
    found = [next(batches) for _ in range(30)]
    assert len({batch.inputs.shape[1] for batch in found}) > 5
    assert all(batch.lr_scale == batch.inputs.shape[1] / 10 for batch in found)
    fixed = [next(task.evaluation_batches(file, "train", 2)) for _ in range(3)]
    assert {batch.inputs.shape[1] for batch in fixed} == {10}


def test_the_vocabulary(folder):
    vocabulary = Text().prepare(folder)
    assert vocabulary.words[:3] == ("<eos>", "<unk>", "the")
    assert {"Rose", "rose", "?"} <= {*vocabulary} and "mouse" not in {*vocabulary}
    assert vocabulary.encode("Rose MOUSE\n").tolist() == [vocabulary.words.index("Rose"), 1, 0]
    assert len(Text(vocabulary_size=5).prepare(folder)) == 5
    assert "Rose" not in {*Text(min_count=13).prepare(folder)}


def test_the_task_says_how_a_file_is_split(file, folder):
    said = Text(validation_share=0.1).describe(file)
    assert "my.txt: the first 85.0% (" in said and "the next 10.0% (" in said and "the last 5.0% for test" in said
    said = Text().describe(folder)
    assert "for test" not in said and "336 tokens for training, 88 tokens for validation" in said
    assert "a vocabulary of 15 words" in said


# Training


def test_training_learns_and_bits_are_reported(trainings, file):
    trainer = trainings.begin("text/lstm", *TINY, "--training.steps=40", "--training.learning_rate=0.02", data=file)
    assert isinstance(trainer.objective, LanguageModel)
    trainer.train()
    losses = [record["loss"] for record in records(trainer, "train")]
    assert losses[-1] < losses[0] * 0.8
    for record in records(trainer, "valid"):
        assert record["perplexity"] == pytest.approx(math.exp(record["loss"]))
        assert record["bits_per_token"] == pytest.approx(record["loss"] / math.log(2))


SIZES = {"fwm": {"memory_size": 4}, "mnm": {"memory_size": 4}, "lstm-stack": {"num_layers": 2}}


@pytest.mark.parametrize("core", [*CORES])
def test_every_core_trains(core, trainings, file):
    known = recipes.specs.options_of(CORES.find(core), skip=1)
    spec = {"type": core, **SIZES.get(core, {}), **({"hidden_size": 8} if "hidden_size" in known else {})}
    recipe = recipes.load("text/lstm", [*LOOP, "--task.segment_length=10", "--model.embedding_size=8"]).to_dict()
    recipe["model"] = recipe["model"] | {"core": spec}
    trainer = trainings.begin(recipe, "--training.steps=2", data=file)
    assert trainer.train()["perplexity"] > 1


@pytest.mark.parametrize("options", [(), ("--task.random_length=true", "--model.embedding_dropout=0.5")])
def test_resuming_is_bit_for_bit_across_epochs(options, trainings, file):
    options = (*TINY, *options, "--training.steps=14")
    whole = assert_resumes(trainings, "text/lstm", *options, "--task.segment_length=30", stop=9, data=file)
    assert whole.source.state_dict()["epoch"] > 0


def test_each_epoch_and_each_evaluation_begin_from_the_initial_state(trainings, file):
    trainer = trainings.begin("text/fwm", *TINY, "--model.core.memory_size=4", data=file)
    trainer.train()
    (first, *_) = trainer.task.evaluation_batches(file, "train", 2)
    trainer.model.eval()
    with torch.no_grad():
        fresh, _ = trainer.model(first.inputs)
        carried, _ = trainer.model(first.inputs, trainer.state)
        reset, _ = trainer.model(first.inputs, trainer.state, resets=first.resets)
    assert not torch.allclose(carried, fresh) and torch.allclose(reset, fresh, atol=1e-6)
    arguments = (trainer.model, trainer.task, file, "valid", 1)
    assert trainer.objective.evaluate(*arguments) == trainer.objective.evaluate(*arguments, trainer.state)


def test_the_loss_is_the_mean_over_the_split_whatever_the_segments(trainings, file):
    """By hand, from the logits of one call on the whole split."""
    trainer = trainings.begin("text/fwm", *TINY, "--model.core.memory_size=4", data=file)
    (whole,) = Text(segment_length=1000, min_count=2).evaluation_batches(file, "valid", 1)
    trainer.model.eval()
    with torch.no_grad():
        logits, _ = trainer.model(whole.inputs)
    expected = torch.nn.functional.cross_entropy(logits[0].double(), whole.targets[0]).item()
    found = trainer.objective.evaluate(trainer.model, trainer.task, file, "valid", 1)
    assert found["loss"] == pytest.approx(expected, rel=1e-5) and found["tokens"] == whole.targets.numel()


# The command line


def test_train_and_evaluate_a_folder_and_another_text(folder, file, tmp_path, capsys):
    out = tmp_path / "run"
    assert cli.main(["train", "text/lstm", *TINY, f"--data={folder}", f"--out={out}"]) == 0
    printed = capsys.readouterr().out
    assert "336 tokens for training" in printed and "perplexity" in printed and "bits per token" in printed
    trained = load_model(out)
    assert trained.vocabulary == Vocabulary.from_dict(RunFolder.open(out).read_config()["interface"])
    assert trained.vocabulary.encode("the mouse\n")[1] == 1
    found = {}
    for data in ((), (f"--data={file}",)):
        for split in ("valid", "test"):
            assert cli.main(["evaluate", str(out), *data, f"--split={split}", "--json"]) == 0
            found[(*data, split)] = json.loads(capsys.readouterr().out)
    assert found["valid",]["tokens"] == 87 and found["test",]["tokens"] == 55
    best = checkpoint.read_metadata(out / "best.safetensors")["valid"]
    assert found["valid",]["loss"] == pytest.approx(best["loss"], rel=0.2)  # at batch size 1, not 2
    words = sum(len(line.split()) + 1 for line in LINES * 20)
    assert found[f"--data={file}", "valid"]["tokens"] == round(0.05 * words) - 1


def test_a_run_on_another_text_is_refused(folder, file, tmp_path, capsys):
    out = tmp_path / "run"
    arguments = ["train", "text/lstm", *TINY, f"--out={out}"]
    assert cli.main([*arguments, f"--data={folder}"]) == 0
    capsys.readouterr()
    assert cli.main(["train", "--resume", f"--out={out}", f"--data={file}", "--training.steps=8"]) == 2
    assert "was trained on other data than the files in" in capsys.readouterr().err
    assert cli.main(["train", "--resume", f"--out={out}", "--training.steps=8"]) == 0


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("", (), "my.txt is empty"),
        ("a a b b\n", (), "the valid split has 0, and must have 2"),
        ("a rose is a rose\n" * 9, ("--task.min_count=1000",), "no word of the training text occurs 1,000 times"),
        ("a rose is a rose\n" * 9, ("--task.vocabulary_size=2",), "no word beside <eos> and <unk>; give at least 3"),
        ("a b\n", ("--task.test_share=0.5", "--task.validation_share=0.5"), "leave nothing for training"),
    ],
)
def test_bad_texts_leave_no_run(content, options, message, tmp_path, capsys):
    (tmp_path / "my.txt").write_text(content)
    out = tmp_path / "run"
    code = cli.main(["train", "text/lstm", *TINY, *options, f"--data={tmp_path / 'my.txt'}", f"--out={out}"])
    said = capsys.readouterr().err
    assert code == 2 and message in said and said.count("\n") == 1 and not out.exists()


def test_without_data_the_download_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for data in ((), ("--data=ptb",)):
        assert cli.main(["train", "text/lstm", *data]) == 2
        assert "`fastweights data download ptb`" in capsys.readouterr().err


@pytest.mark.parametrize("interface", [Spaces(3, 2), Vocabulary(("<pad>", "<eos>"))])
def test_a_model_that_is_of_no_text_is_refused(interface):
    with pytest.raises(UserError, match=r"The model was trained with .* which is of no text"):
        Text().restore(interface)


def test_sizes_are_those_of_the_largest_vocabulary():
    weights, _ = recipes.size(recipes.load("text/lstm", ["--task.vocabulary_size=100"]))
    more, _ = recipes.size(recipes.load("text/lstm", ["--task.vocabulary_size=101"]))
    assert more - weights == 128 + 256  # a row of the embedding and one of the softmax
    assert tasks.build("text").vocabulary_size == 50_000
