"""Loading trained models: the one that was trained, its state, its vocabulary, and what is refused."""

import pytest
import torch

from fastweights import load_model
from fastweights.cores import map_state
from fastweights.cores.contract import tensors_of
from fastweights.errors import UserError
from fastweights.training import checkpoint
from trainings import GRAPHS, SEQUENCES, STORIES


@pytest.fixture
def begin(trainings):
    """Begins the training of a tiny model on stories."""
    return lambda *overrides: trainings.begin("catbabi-qa/fwm", *STORIES, *overrides)


@pytest.mark.parametrize("recipe_options", [[], ["--task.mode=lm"], ["--task.as_published=true"]])
def test_a_loaded_model_is_the_one_that_was_trained(begin, recipe_options):
    trainer = begin(*recipe_options)
    trainer.train()
    trained = load_model(trainer.run.last)
    model, state, metadata, assembly = trained
    assert metadata["recipe"] == trainer.recipe.to_dict()
    assert metadata["step"] == 6
    assert not model.training
    first_row = map_state(lambda tensor: tensor[:1], trainer.state)
    assert all(map(torch.equal, tensors_of(state), tensors_of(first_row)))
    assert trained.vocabulary == trainer.interface == assembly.interface
    tokens = torch.randint(len(trained.vocabulary), (1, 30))
    trainer.model.eval()
    expected, expected_state = trainer.model(tokens, first_row)
    logits, new_state = model(tokens, state)
    assert torch.equal(logits, expected)
    assert all(map(torch.equal, tensors_of(new_state), tensors_of(expected_state)))


def test_a_run_folder_stands_for_its_best_checkpoint(begin):
    trainer = begin("--training.steps=4")
    trainer.train()
    tensors, metadata = checkpoint.load(trainer.run.best)
    checkpoint.save(trainer.run.best, tensors, metadata | {"step": 123})
    assert load_model(trainer.run.path).metadata["step"] == 123
    trainer.run.best.unlink()
    assert load_model(str(trainer.run.path)).metadata["step"] == 4


def test_text_can_be_read_by_a_loaded_model(begin):
    trainer = begin("--training.steps=2")
    trainer.train()
    trained = load_model(trainer.run.path)
    tokens = torch.as_tensor(trained.vocabulary.encode("mary went to the kitchen. where is mary?"))
    logits, state = trained.model(tokens.unsqueeze(0), trained.state)
    assert logits.shape == (1, len(tokens), len(trained.vocabulary))
    assert state.memory.shape == (1, 4, 4, 4)


def test_what_starts_from_the_initial_state_has_no_state(trainings):
    for recipe, tiny in (("graph-rl/fwm", GRAPHS), ("art/lstm", SEQUENCES)):
        trainer = trainings.begin(recipe, *tiny)
        trainer.train()
        assert trainer.state is None
        for path in (trainer.run.best, trainer.run.last):
            assert load_model(path).state is None
            assert not any(name.startswith("state") for name in checkpoint.load(path)[0])


def test_an_agent_has_no_vocabulary(trainings):
    trainer = trainings.begin("graph-rl/fwm", *GRAPHS)
    trainer.train()
    with pytest.raises(UserError, match="The model is an agent, which has no vocabulary; load a token model"):
        _ = load_model(trainer.run.path).vocabulary


def test_other_settings_of_the_task_are_taken_and_others_refused(begin):
    trainer = begin("--training.steps=2")
    trainer.train()
    assert load_model(trainer.run.path, ["--task.distractors=2"]).assembly.task.sizes.distractors == 2
    with pytest.raises(UserError, match=r"leave --training\.steps=9 out"):
        load_model(trainer.run.path, ["--training.steps=9"])
    with pytest.raises(UserError, match="with a vocabulary of 180 tokens, and the task has a vocabulary of 200"):
        load_model(trainer.run.path, ["--task.as_published=true"])


def test_code_outside_the_package_is_imported_with_trust_alone(trainings):
    core = {"type": "training_cores:MetaLSTM", "hidden_size": 8}
    trainer = trainings.begin("art/lstm", *SEQUENCES, f"--model.core={core}", "--training.steps=2")
    trainer.train()
    with pytest.raises(UserError, match=r"names code outside the package \(training_cores:MetaLSTM\).*trust=True"):
        load_model(trainer.run.path)
    model = load_model(trainer.run.path, trust=True).model
    assert type(model.core).__name__ == "MetaLSTM"


def test_another_models_weights_are_refused(begin):
    trainer = begin("--training.steps=2")
    trainer.train()
    tensors, metadata = checkpoint.load(trainer.run.best)
    metadata["recipe"]["model"]["embedding_size"] = 9
    checkpoint.save(trainer.run.best, tensors, metadata)
    with pytest.raises(UserError, match=r"best\.safetensors holds another model than its recipe says \(") as caught:
        load_model(trainer.run.best)
    assert "\n" not in str(caught.value)
    checkpoint.save(trainer.run.best, tensors, {"step": 1})
    with pytest.raises(UserError, match="does not say which model it holds"):
        load_model(trainer.run.best)
    checkpoint.save(trainer.run.best, tensors, {"recipe": metadata["recipe"], "interface": metadata["interface"]})
    with pytest.raises(UserError, match="does not say which model it holds"):  # nor its step
        load_model(trainer.run.best)


@pytest.mark.parametrize(
    ("key", "odd"),
    [("words", 1.5), ("words", None), ("unit", "lines"), ("unit", []), ("odd", 1), ("observation_size", "x")],
)
def test_an_odd_interface_is_refused(key, odd, begin):
    trainer = begin()
    trainer.save()
    tensors, metadata = checkpoint.load(trainer.run.last)
    metadata["interface"][key] = odd
    checkpoint.save(trainer.run.last, tensors, metadata)
    with pytest.raises(UserError, match=key):
        load_model(trainer.run.path)


def test_a_state_of_another_shape_is_refused(begin):
    trainer = begin("--training.steps=2")
    trainer.train()
    tensors, metadata = checkpoint.load(trainer.run.best)
    name = next(name for name in tensors if name.startswith("state/"))
    for odd in (tensors[name].flatten(), tensors[name][..., :1], tensors[name].to(torch.int64)):
        checkpoint.save(trainer.run.best, tensors | {name: odd}, metadata)
        with pytest.raises(UserError, match="of the state is of another shape or kind"):
            load_model(trainer.run.best)
