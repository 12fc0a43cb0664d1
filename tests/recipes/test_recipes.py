"""Every shipped recipe loads, builds and trains; what may be changed, and what is said where it may not."""

import json
import math

import pytest
import torch

from fastweights import cli, recipes, tasks, training
from fastweights.cores import CORES
from fastweights.errors import UserError
from fastweights.training.runs import RunFolder

SIZES = {
    "catbabi-qa/fwm": (683_745, 33_280),
    "catbabi-qa/fwm-as-published": (693_985, 33_280),
    "catbabi-lm/fwm": (683_745, 33_280),
    "catbabi-qa/fw-rnn": (547_840, 262_656),
    "art/fw-lstm": (43_437, 2_600),
    "art/ln-lstm": (43_437, 100),
    "art/fw-rnn": (20_237, 2_550),
    "graph-rl/fwm": (10_933, 4_160),
    "graph-rl/lstm-4096": (67_436_548, 8_192),
}
QUICK = (
    "--training.steps=2",
    "--training.rows=2",
    "--training.evaluation_rows=2",
    "--training.report_every=1",
)
QUICK_TASKS = {
    "catbabi": ("--task.segment_length=12", "--task.validation_stories=1", "--task.tasks=1"),
    "retrieval": ("--task.examples=5", "--task.validation_examples=3"),
    "graph-rl": ("--task.steps=3", "--task.graphs=10"),
    "gymnasium": ("--task.steps=3",),
}


def quick(name):
    """Options with which a recipe trains in a moment; of the large agents, smaller ones."""
    smaller = ("--model.core.hidden_size=32",) if name.startswith("graph-rl/lstm") else ()
    return [*QUICK, *QUICK_TASKS[recipes.load(name).task["type"]], *smaller]


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_trains(name, tmp_path, capsys):
    out = tmp_path / "run"
    assert cli.main(["train", name, *quick(name), f"--out={out}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["step"] == 2
    run = RunFolder.open(out)
    assert [record["step"] for record in run.records()] == [1, 2, 2]
    saved = recipes.load(None, run.read_config()["recipe"])
    assert saved == recipes.load(name, quick(name))


@pytest.mark.parametrize("name", [name for name in recipes.names() if name.startswith("graph-rl/lstm")])
def test_the_large_agents_make_two_steps(name, tmp_path):
    recipe = recipes.load(name, ["--training.rows=2", "--task.steps=3", "--task.graphs=10"])
    with RunFolder.create(tmp_path / "run", {}) as run:
        trained = training.begin(recipe, run)
        assert all(math.isfinite(trained.update().figures["reward"]) for _ in range(2))


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_says_what_it_is(name):
    recipe = recipes.load(name)
    assert len(recipe.description) > 20
    if recipe.task["type"] in ("catbabi", "retrieval"):
        assert name.partition("/")[0].rpartition("-")[2] == tasks.build(recipe.task).mode
    recipes.check(recipe, None)
    shown = recipes.explain(recipe)
    for key in ("training.learning_rate", "Adam's learning rate", "hidden_size"):
        assert key in shown


@pytest.mark.parametrize("name", recipes.names())
def test_sizes(name):
    weights, memory = recipes.size(recipes.load(name))
    assert weights > 0 and memory > 0
    if name in SIZES:
        assert (weights, memory) == SIZES[name]


def test_the_size_of_the_published_model_is_told_in_its_description():
    assert (
        f"{SIZES['catbabi-qa/fwm-as-published'][0]:,} weights"
        in recipes.load("catbabi-qa/fwm-as-published").description
    )


def test_asking_for_a_size_draws_no_random_number():
    state = torch.get_rng_state()
    recipes.size(recipes.load("catbabi-qa/fwm"))
    assert torch.equal(torch.get_rng_state(), state)


def test_overrides_of_every_kind():
    recipe = recipes.load(
        "catbabi-qa/fwm",
        [
            "--training.steps=7",
            "--training.learning_rate",
            "1e-2",
            "--training.clip_norm=null",
            "--model.core.memory_size=16",
            "--model.core.tanh_first_query=true",
            "--task.tasks=1,2,4-20",
        ],
    )
    plain = recipes.load("catbabi-qa/fwm")
    assert (recipe.training.steps, recipe.training.learning_rate, recipe.training.clip_norm) == (7, 0.01, None)
    assert recipe.model.core == plain.model.core | {"memory_size": 16, "tanh_first_query": True}
    assert recipe.task == plain.task | {"tasks": "1,2,4-20"}
    assert recipe.training.rows == plain.training.rows


def test_a_recipe_comes_back_from_its_own_words():
    recipe = recipes.load("catbabi-qa/lstm", ["--training.seed=3"])
    assert recipes.load(None, recipe.to_dict()) == recipe


def test_a_recipe_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(
        "description: mine\ntask: {type: catbabi, tasks: 1}\n"
        "model: {embedding_size: 8, core: {type: lstm, hidden_size: 8}}\ntraining: {steps: 3}\n"
    )
    recipe = recipes.load("mine.yaml", ["--training.rows=2"])
    assert (recipe.description, recipe.training.steps, recipe.training.rows) == ("mine", 3, 2)
    assert recipe.training.evaluate_every == recipes.TrainingOptions().evaluate_every
    assert cli.main(["train", "mine.yaml", *QUICK, *QUICK_TASKS["catbabi"], "--out=run"]) == 0
    with pytest.raises(UserError, match=r"no recipe file other\.yaml; check the path"):
        recipes.load("other.yaml")


@pytest.mark.parametrize(
    "content", ["training: {stepz: 3}", "training: {steps: many}", "training: [1]", "a: [", "stepz: 3", "\x00"]
)
def test_a_broken_recipe_of_ones_own(tmp_path, content):
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    with pytest.raises(UserError) as caught:
        recipes.check(recipes.load(str(path)), None)
    assert "\n" not in str(caught.value)
    assert "mine.yaml" in str(caught.value) or "stepz" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("catbabi-qa/fmw", "catbabi-qa/fwm"),
        ("catbabi-lm/lst", "catbabi-lm/lstm"),
        ("fwm-quick", "catbabi-qa/fwm-quick"),
    ],
)
def test_the_nearest_recipe_is_named(name, nearest):
    with pytest.raises(UserError, match=f'no recipe "{name}"; did you mean "{nearest}"'):
        recipes.load(name)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--training.stepz=3", r'no key "training\.stepz"; did you mean "training\.steps"'),
        ("--model.embeding_size=3", r'no key "model\.embeding_size"; did you mean "model\.embedding_size"'),
        ("--model.core.memry_size=3", r'no option "memry_size"; did you mean "memory_size"'),
        ("--task.taks=1", r'no option "taks"; did you mean "tasks"'),
        ("--model.core.type=fvm", r'no core "fvm"; did you mean "fwm"'),
        ("--task.type=catbaby", r'no task "catbaby"; did you mean "catbabi"'),
        ("--training.steps=many", r"training\.steps .*many"),
        ("--training.steps=1.5", r"training\.steps .*1\.5"),
        ("--training.schedule=linear", r"training\.schedule .*linear"),
        ("--model.core.memory_size=big", r"memory_size is 'big', but must be like 32"),
        ("--model.core.residual=3", r"residual is 3, but must be like True"),
        ("--task.as_published=maybe", r"as_published is 'maybe', but must be like False"),
    ],
)
def test_wrong_keys_and_values_are_named(override, message):
    with pytest.raises(UserError, match=message) as caught:
        recipes.check(recipes.load("catbabi-qa/fwm", [override]), None)
    assert "\n" not in str(caught.value)


def test_known_keys_can_all_be_named():
    keys = recipes.known_keys()
    assert {"training.steps", "model.core.type", "model.core.memory_size", "model.core.num_layers", "task.mode"} <= set(
        keys
    )
    assert len(keys) == len(set(keys))
    assert set(CORES) >= {recipes.load(name).model.core["type"] for name in recipes.names()}
