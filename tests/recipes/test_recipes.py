"""Every shipped recipe loads, builds and trains; what may be changed, and what is said where it may not."""

import json
import math
from dataclasses import replace

import pytest
import torch

from fastweights import cli, recipes, tasks
from fastweights.cores import CORES, LSTM, LSTMStack
from fastweights.errors import UserError
from fastweights.objectives import LanguageModel
from fastweights.training.loop import Trainer
from fastweights.training.runs import RunFolder

SIZES = {
    "catbabi-qa/fwm": (683_745, 33_280),
    "catbabi-qa/fwm-as-published": (693_985, 33_280),
    "catbabi-lm/fwm": (683_745, 33_280),
    "catbabi-qa/fw-rnn": (547_840, 262_656),
    "catbabi-qa/mnm": (1_099_689, 30_612),
    "catbabi-qa/mnm-small": (679_673, 19_648),
    "catbabi-qa/lstm-small": (684_192, 552),
    "catbabi-qa/lstm-stack-small": (677_880, 1_040),
    "catbabi-qa/fw-rnn-small": (682_048, 370_272),
    "catbabi-qa/fw-lstm-small": (688_056, 76_728),
    "catbabi-qa/transformer-xl": (10_507_776, 1_843_201),
    "catbabi-qa/transformer-xl-small": (682_896, 230_401),
    "art/fw-lstm": (43_437, 2_600),
    "art/ln-lstm": (43_437, 100),
    "art/fw-rnn": (20_237, 2_550),
    "graph-rl/fwm": (10_933, 4_160),
    "graph-rl/lstm-4096": (67_436_548, 8_192),
}
QUICK = (
    "--training.steps=2",
    "--training.batch_size=2",
    "--training.eval_batch_size=2",
    "--training.report_every=1",
)
QUICK_TASKS = {
    "catbabi": ("--task.segment_length=12", "--task.validation_stories=1", "--task.babi_tasks=1"),
    "retrieval": ("--task.examples=5", "--task.validation_examples=3"),
    "mqar": ("--task.examples=5", "--task.validation_examples=3", "--task.vocabulary_size=65"),
    "graph-rl": ("--task.steps=3", "--task.graphs=10"),
    "gymnasium": ("--task.steps=3",),
    "text": ("--task.segment_length=12",),
}


def quick(name):
    """Options with which a recipe trains in a moment; of the large agents, smaller ones."""
    smaller = ("--model.core.hidden_size=32",) if name.startswith("graph-rl/lstm") else ()
    return [*QUICK, *QUICK_TASKS[recipes.load(name).task["type"]], *smaller]


@pytest.fixture
def data(name, tmp_path):
    """The data of a recipe: a text file where it reads one."""
    if recipes.load(name).task["type"] != "text":
        return None
    (tmp_path / "text.txt").write_text("a rose is a rose\n" * 20)
    return str(tmp_path / "text.txt")


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_trains(name, data, tmp_path, capsys):
    out = tmp_path / "run"
    files = [] if data is None else [f"--data={data}"]
    assert cli.main(["train", name, *quick(name), *files, f"--out={out}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["step"] == 2
    run = RunFolder.open(out)
    assert [record["step"] for record in run.records()] == [1, 2, 2]
    saved = recipes.load(run.read_config()["recipe"])
    assert saved == recipes.load(name, quick(name))


@pytest.mark.parametrize("name", [name for name in recipes.names() if name.startswith("graph-rl/lstm")])
def test_the_large_agents_make_two_steps(name, tmp_path):
    recipe = recipes.load(name, ["--training.batch_size=2", "--task.steps=3", "--task.graphs=10"])
    with RunFolder.create(tmp_path / "run", {}) as run:
        trainer = Trainer(recipes.assemble(recipe), run)
        for trainer.step in range(2):
            trainer.optimizer_step()
            assert math.isfinite(trainer.objective.metrics(trainer.sums)["return"])


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_says_what_it_is(name, data):
    recipe = recipes.load(name)
    assert len(recipe.description) > 20
    if recipe.task["type"] in ("catbabi", "retrieval"):
        assert name.partition("/")[0].removeprefix("catbabi-") == tasks.build(recipe.task).mode
    if "4096" not in name:
        assert recipes.assemble(recipe, data).recipe is recipe
    shown = recipes.explain(recipe)
    for key in ("learning_rate: Learning rate, at its highest", "hidden_size", "target: ", "training:", "task ("):
        assert key in shown
    assert f"core ({CORES.find(recipe.model['core']['type']).__name__}):" in shown


@pytest.mark.parametrize("name", recipes.names())
def test_sizes(name):
    weights, memory = recipes.size(recipes.load(name))
    assert weights > 0 and memory > 0
    if name in SIZES:
        assert (weights, memory) == SIZES[name]


@pytest.mark.parametrize("name", [name for name in SIZES if name.endswith("-small")])
def test_the_models_of_equal_weights_differ_in_their_core_alone_and_say_their_sizes(name):
    recipe, fwm = recipes.load(name), recipes.load("catbabi-qa/fwm", ["--training.steps=10000"])
    weights, memory = SIZES[name]
    assert weights <= 700_000 and abs(weights / SIZES["catbabi-qa/fwm"][0] - 1) < 0.01
    assert f"{weights:,} weights" in recipe.description and f"a state of {memory:,}:" in recipe.description
    without_warmup = replace(recipe.training, warmup_steps=0)  # which a transformer needs
    assert (recipe.task, without_warmup) == (fwm.task, fwm.training)
    assert recipe.model["embedding_size"] == fwm.model["embedding_size"]


@pytest.mark.parametrize("mode", ["qa", "lm"])
def test_the_four_layer_lstm_is_the_papers(mode):
    """Its weights are counted with the authors' vocabulary; dropout is on tokens, embeddings, weights and layers."""
    recipe = recipes.load(f"catbabi-{mode}/lstm")
    assert recipes.size(recipes.load(recipe.to_dict(), ["--task.as_published=true"])) == (8_026_112, 4_096)
    model = recipes.assemble(recipe).model
    assert type(model.core) is LSTMStack and model.core.residual and model.core.layer_dropout > 0
    assert [layer.hidden_size for layer in model.core.layers] == [512] * 4
    assert all(layer.recurrent_dropout > 0 for layer in model.core.layers)
    assert model.token_dropout > 0 and model.embedding_dropout > 0


def test_the_size_of_the_published_model_is_told_in_its_description():
    assert (
        f"{SIZES['catbabi-qa/fwm-as-published'][0]:,} weights"
        in recipes.load("catbabi-qa/fwm-as-published").description
    )
    assert f"{SIZES['catbabi-qa/mnm-small'][0]:,}" in recipes.load("catbabi-qa/mnm-small").description


def test_asking_for_a_size_draws_no_random_number():
    state = torch.get_rng_state()
    recipes.size(recipes.load("catbabi-qa/fwm"))
    assert torch.equal(torch.get_rng_state(), state)


def test_overrides_of_every_kind():
    recipe = recipes.load(
        "catbabi-qa/fwm",
        [
            "--training.steps=7",
            "--training.learning_rate=1e-2",
            "--training.clip_norm=null",
            "--model.core.memory_size=16",
            "--model.core.tanh_first_query=true",
            "--task.babi_tasks=1,2,4-20",
        ],
    )
    plain = recipes.load("catbabi-qa/fwm")
    assert (recipe.training.steps, recipe.training.learning_rate, recipe.training.clip_norm) == (7, 0.01, None)
    assert recipe.model["core"] == plain.model["core"] | {"memory_size": 16, "tanh_first_query": True}
    assert recipe.task == plain.task | {"babi_tasks": "1,2,4-20"}
    assert recipe.training.batch_size == plain.training.batch_size


def test_a_part_may_be_its_type_alone():
    recipe = recipes.load(
        "catbabi-qa/fwm",
        ["--task=retrieval", "--model.core=lstm", "--training.optimizer=sgd", "--objective=language-model"],
    )
    assert (recipe.task, recipe.model["core"], recipe.objective) == ("retrieval", "lstm", "language-model")
    task, objective, core = recipes.assembly.parts_of(recipe)
    assert (task, objective, core) == (tasks.Retrieval, LanguageModel, LSTM)
    assert type(recipes.assemble(recipe).model.core) is LSTM
    longer = recipes.load(
        recipe.to_dict(), ["--task.pairs=3", "--model.core.hidden_size=8", "--objective.type=answers"]
    )
    assert longer.task == {"type": "retrieval", "pairs": 3}
    assert longer.model["core"] == {"type": "lstm", "hidden_size": 8}
    assert longer.objective == {"type": "answers"}
    assert recipe.task == "retrieval"  # left as it was


def test_a_slow_core_by_its_type_alone():
    for spec in ("lstm", "{type: lstm}"):
        model = recipes.assemble(recipes.load("art/fwm", [f"--model.core.slow={spec}"])).model
        assert type(model.core.slow) is LSTM


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 1e-3), ("1E3", 1e3), ("2.5e-4", 2.5e-4), (".5", 0.5), ("1.", 1.0), ("7", 7.0), ("-1e-3", None)],
)
def test_a_number_may_have_an_exponent(text, value):
    """As in YAML 1.2 and everywhere but in YAML 1.1, where 1e-3 is a word."""
    if value is None:
        with pytest.raises(UserError, match=r"training.learning_rate is -0.001; it must be greater than 0"):
            recipes.load("art/fwm", [f"--training.learning_rate={text}"])
        return
    assert recipes.load("art/fwm", [f"--training.learning_rate={text}"]).training.learning_rate == value
    assert recipes.yaml.parse(f"a: [{text}]", "here") == {"a": [value]}


def test_an_option_of_a_file_may_be_overridden_by_null_and_by_a_mapping():
    recipe = recipes.load(
        "art/fwm", ["--training.optimizer={type: adamw, weight_decay: 1e-2}", "--training.average={}"]
    )
    assert recipe.training.optimizer == {"type": "adamw", "weight_decay": 0.01}
    assert recipe.training.average == recipes.WeightAverage()
    assert recipes.load(recipe.to_dict(), ["--training.average=null"]).training.average is None
    assert recipes.load(recipe.to_dict(), ["--training.average.decay=0.9"]).training.average.decay == 0.9


def test_a_recipe_comes_back_from_its_own_words():
    recipe = recipes.load("catbabi-qa/lstm", ["--training.seed=3"])
    assert recipes.load(recipe.to_dict()) == recipe


def test_a_recipe_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(
        "description: mine\ntask: {type: catbabi, babi_tasks: 1}\n"
        "model: {embedding_size: 8, core: {type: lstm, hidden_size: 8}}\ntraining: {steps: 3}\n"
    )
    recipe = recipes.load("mine.yaml", ["--training.batch_size=2"])
    assert (recipe.description, recipe.training.steps, recipe.training.batch_size) == ("mine", 3, 2)
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
        recipes.assemble(recipes.load(str(path)))
    assert "\n" not in str(caught.value)
    assert any(part in str(caught.value) for part in ("mine.yaml", "stepz", "training"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("training: {steps: 3, steps: 4}", r'mine.yaml cannot be read: the key "steps" is there twice .*line 1'),
        ("training: {steps: 3}\ntask: art\ntraining: {}", r'the key "training" is there twice .*line 3'),
        ("a: &a {steps: 3}\ntraining: *a", r"mine.yaml cannot be read: anchors are not for recipes .*line 2"),
        ("training: {steps: 3}\n---\ntask: art", r"mine.yaml cannot be read: expected a single document"),
        ("training: !!python/object:os.system {}", r"mine.yaml cannot be read: .*python/object"),
        ("- 1", r"mine.yaml holds no recipe; it must be a mapping"),
        ("", r"mine.yaml holds no recipe; it must be a mapping"),
        ("training: [1]", r"training is \[1\]; it must be a mapping"),
        ("training: {steps: many}", r"training.steps is 'many'; it must be a valid integer"),
        ("model: [1]", r"model is \[1\]; it must be"),
        ("task: 5", r"task is 5; it must be"),
        ("{1: 2}", r'no key "1"'),
    ],
)
def test_what_a_recipe_file_must_not_hold(tmp_path, content, message):
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        recipes.load(str(path))
    assert "\n" not in str(caught.value)


def test_a_recipe_file_that_is_no_text(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"\x89PNG\xff")
    with pytest.raises(UserError, match=r"mine.yaml cannot be read, as it is not in UTF-8"):
        recipes.load(str(path))


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-16-le"])
def test_a_recipe_file_in_another_encoding(tmp_path, encoding):
    path = tmp_path / "mine.yaml"
    path.write_bytes("description: Gedächtnis\ntraining: {steps: 3}".encode(encoding))
    with pytest.raises(UserError, match=r"mine.yaml cannot be read") as caught:
        recipes.load(str(path))
    assert "codec" not in str(caught.value) and "\n" not in str(caught.value)


def test_a_recipe_file_may_begin_with_a_byte_order_mark(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_bytes("training: {steps: 3}".encode("utf-8-sig"))
    assert recipes.load(str(path)).training.steps == 3


def test_a_recipe_file_that_is_too_large_a_directory_or_empty(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("description: " + "x" * 200_000)
    with pytest.raises(UserError, match=r"mine.yaml has more than 100,000 bytes"):
        recipes.load(str(path))
    path.write_text("")
    with pytest.raises(UserError, match=r"mine.yaml holds no recipe"):
        recipes.load(str(path))
    (tmp_path / "folder.yaml").mkdir()
    for other in (tmp_path / "folder.yaml", tmp_path):
        with pytest.raises(UserError, match="There is no recipe"):
            recipes.load(str(other))


@pytest.mark.parametrize(
    "text",
    ["!!bool x", "!!int ''", "!x y", "[" * 3000, "0x" + "f" * 5000, "9" * 5000, "2024-13-45", '"\\UFFFFFFFF"', "0x_",
     "[&a [x, x], &b [*a, *a], &c [*b, *b]]", "? [a]\n: 1", "\x00", "<<: 3", "=", "{{a: 1}: 2}"],
)  # fmt: skip
def test_odd_yaml_is_refused_in_one_sentence(text):
    with pytest.raises(UserError, match=r"^here cannot be read: .*\.$") as caught:
        recipes.yaml.parse(text, "here")
    assert "unicode string" not in str(caught.value)


@pytest.mark.parametrize("key", ["1", "null", "2024-01-01", "1.5", "true"])
@pytest.mark.parametrize("part", ["task", "model", "model.core", "training", "training.optimizer", "objective"])
def test_keys_that_are_no_words(part, key):
    with pytest.raises(UserError, match=r"keys are words|no key|no option"):
        Trainer(recipes.assemble(recipes.load("art/fwm", [f"--{part}={{{key}: 2}}"])), None)


def test_an_override_may_have_no_anchors_or_duplicate_keys():
    for text, message in (
        ("{a: 1, a: 2}", 'the key "a" is there twice'),
        ("[&a 1, *a]", "anchors are not for recipes"),
    ):
        with pytest.raises(UserError, match=f"--task cannot be read: {message}"):
            recipes.load("art/fwm", [f"--task={text}"])


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
        ("--model.embeding_size=3", r'The model has no option "embeding_size"; did you mean "embedding_size"'),
        ("--model.core.memry_size=3", r'no option "memry_size"; did you mean "memory_size"'),
        ("--task.babi_taks=1", r'no option "babi_taks"; did you mean "babi_tasks"'),
        ("--model.core.type=fvm", r'no core "fvm"; did you mean "fwm"'),
        ("--task.type=catbaby", r'no task "catbaby"; did you mean "catbabi"'),
        ("--training.steps=many", r"training\.steps .*many"),
        ("--training.steps=1.5", r"training\.steps .*1\.5"),
        ("--training.schedule=linaer", r"training\.schedule .*linaer.*'constant', 'cosine' or 'linear'"),
        ("--model.core.memory_size=big", r"memory_size of the core \"fwm\" is 'big'; it must be a valid integer"),
        ("--model.core.residual=3", r"residual of the core \"fwm\" is 3; it must be a valid boolean"),
        ("--task.as_published=maybe", r"as_published of the task \"catbabi\" is 'maybe'; it must be a valid boolean"),
        ("--model.head_size=big", r"head_size of the model is 'big'; it must be a valid integer"),
        ("--model.head_size=1.5", r"head_size of the model is 1\.5"),
        ("--model.head_size=true", r"head_size of the model is True"),
        ("--model.core.second_key_size=big", r"second_key_size of the core \"fwm\" is 'big'"),
        ("--model.core.hidden_size=1000000000", r"it must be less than or equal to 100000 \(a wider layer fits no"),
        ("--training.accumulate=1000000000", r"less than or equal to 10000 \(a step waits for all its batches\)"),
        ("--model.core.num_reads=1000000000", r"less than or equal to 1000 \(they run one after another at every"),
        ("--model.core={type: lstm-stack, num_layers: 1000000000}", r"less than or equal to 1000 \(they run one after"),
        ("--model.core={type: fw-rnn, inner_steps: 1000000000}", r"less than or equal to 1000 \(they run one after"),
        (
            "--model.core={type: fw-rnn, decay: 5}",
            r"decay of the core \"fw-rnn\" is 5; it must be less than or equal to 1",
        ),
        ("--model.core={type: fw-lstm, decay: 5}", r"decay of the core \"fw-lstm\" is 5"),
        ("--model.core={type: fw-lstm, rate: -1}", r"rate of the core \"fw-lstm\" is -1"),
        ("--model.core.write_scale=0", r"write_scale of the core \"fwm\" is 0; it must be greater than 0"),
        ("--model.core={type: lstm-stack, num_layers: 0}", r"num_layers of the core \"lstm-stack\" is 0"),
        ("--model.token_dropout=1", r"token_dropout of the model is 1; it must be less than 1"),
        ("--training.optimizer={type: sgd, maximize: true}", r"training.optimizer has maximize"),
        ("--training.optimizer={type: adam, differentiable: true}", r"training.optimizer cannot make a step"),
        (
            "--training.optimizer={type: adam, betas: [1]}",
            r"betas of the optimizer .* a list of 2 values",
        ),
        ("--task.held_out=1", r"held_out of the task \"catbabi\" is 1; it must be less than 1"),
        ("--task.questions=100000", r"A story would have 300,000 lines or more"),
        ("--task.validation_stories=1000000000", r"validation would have 300,000,000,000 lines or more"),
        ("--model.core.slow=5", r"slow of the core \"fwm\" is 5"),
        ("--model.core.slow=gru", r'no core "gru"'),
        ("--model.core=5", r"core of the model is 5"),
        ("--task.people=many", r"people of the task \"catbabi\" is 'many'"),
        ("--training.clip_norm=big", r"training\.clip_norm is 'big'"),
        ("--training.save_every=0", r"training\.save_every is 0"),
        ("--training.average=3", r"training\.average is 3"),
        ("--training.average.decay=2", r"training\.average\.decay is 2"),
        ("--training.early_stopping.patience=0", r"training\.early_stopping\.patience is 0"),
        ("--training.learning_rate=.nan", r"training\.learning_rate is nan"),
        ("--training.learning_rate=.inf", r"training\.learning_rate is inf"),
        ("--training.early_stopping.target=.nan", r"training\.early_stopping\.target is nan"),
        ("--model.core.write_scale=.nan", r"write_scale of the core \"fwm\" is nan"),
        ("--model.core.write_scale=-.inf", r"write_scale of the core \"fwm\" is -inf"),
        ("--model.token_dropout=.nan", r"token_dropout of the model is nan"),
        ("--training.optimizer=adm", r'no optimizer "adm"; did you mean "adam"'),
        (
            "--training.optimizer={type: adam, lr: 1}",
            r"training\.optimizer has lr; set training\.learning_rate",
        ),
        ("--training.optimizer={type: adam, epz: 1}", r'The optimizer "adam" has no option "epz"; did you mean "eps"'),
        ("--training.optimizer={epz: 1}", r'optimizer "adam" has no option "epz"'),
        ("--objective=answer", r'no objective "answer"; did you mean "answers"'),
        ("--objective.discount=1", r'The objective "answers" has no option "discount"'),
        ("--task.type={a: 1}", r"There is no task \"{'a': 1}\""),
        ("--objective=a2c", r"A2C is for tasks that extend EnvironmentTask, and CatBabi does not"),
    ],
)
def test_wrong_keys_and_values_are_named(override, message):
    with pytest.raises(UserError, match=message) as caught:
        Trainer(recipes.assemble(recipes.load("catbabi-qa/fwm", [override])), None)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--model.head_size=5", r'The model has no option "head_size"\. It has: core'),
        ("--model.embedding_size=5", r'The model has no option "embedding_size"'),
        ("--objective={type: a2c, value_weight: -1}", r"value_weight of the objective \"a2c\" is -1"),
        ("--objective={type: a2c, entropy_weight: -1}", r"entropy_weight of the objective \"a2c\" is -1"),
        ("--task.states=1000000000", r"less than or equal to 32 \(all graphs are sampled before the first step\)"),
        ("--task.graphs=1000000000", r"less than or equal to 10000 \(all graphs are sampled before the first step\)"),
        ("--objective={type: a2c, discount: 2}", r'discount of the objective "a2c" is 2'),
        ("--objective={type: a2c, entropy_weight: high}", r"entropy_weight of the objective \"a2c\" is 'high'"),
        ("--task.observation_size=4", r'no option "observation_size"'),
    ],
)
def test_an_agents_options(override, message):
    with pytest.raises(UserError, match=message) as caught:
        recipes.assemble(recipes.load("graph-rl/fwm", [override]))
    assert "\n" not in str(caught.value)


def test_an_override_that_is_none():
    for text in ("training.steps=3", "--training.steps", "--=3"):
        with pytest.raises(UserError, match=r"is no setting; write for example --training\.steps=1000"):
            recipes.load("catbabi-qa/fwm", [text])


def test_known_keys_can_all_be_named():
    keys = recipes.known_keys()
    assert {"training.steps", "model.core.type", "model.core.memory_size", "model.core.num_layers", "task.mode"} <= set(
        keys
    )
    assert {
        "training.early_stopping.target",
        "training.optimizer.type",
        "objective.discount",
        "model.head_size",
    } <= set(keys)
    assert not {"model.vocabulary_size", "model.observation_size", "model.num_actions", "model.core.input_size"} & set(
        keys
    )
    assert len(keys) == len(set(keys))
    assert set(CORES) >= {recipes.load(name).model["core"]["type"] for name in recipes.names()}


def test_a_part_of_a_part_that_is_none():
    with pytest.raises(UserError, match=r"task is 0\.001, which has no pairs; it must be a mapping"):
        recipes.load("art/fwm", ["--task=1e-3", "--task.pairs=3"])
