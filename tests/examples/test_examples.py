"""The examples of an own core, task and objective; own optimizers and cores in packages; what is refused."""

import ast
import os
import shlex
import shutil
import signal
from pathlib import Path

import pytest
import torch
import yaml

import fastweights
from fastweights import cli, recipes
from fastweights.distributed import join
from fastweights.training import checkpoint
from fastweights.training.display import ProgressObserver
from fastweights.training.runs import RunFolder
from trainings import assert_same_run

EXAMPLES = Path(__file__).parents[2] / "examples"
LOOP = (
    "--model.embedding_size=8",
    "--model.core.hidden_size=8",
    "--training.steps=4",
    "--training.batch_size=2",
    "--training.eval_batch_size=2",
    "--training.report_every=1",
    "--training.evaluate_every=2",
)
STORIES = (*LOOP, "--task.babi_tasks=1", "--task.segment_length=20", "--task.validation_stories=1")
LETTERS = (*LOOP, "--task.examples=4", "--task.length=2")
TINY = {"own_core": STORIES, "own_task": LETTERS, "own_objective": STORIES}
HEADLINES = {"own_core": "answer_accuracy", "own_task": "answer_accuracy", "own_objective": "top_five"}
NAMES = {"own_core": "GRU", "own_task": "Copy", "own_objective": "TopFive"}

SIGN_DESCENT = '''
import torch

class SignDescent(torch.optim.Optimizer):
    """Steps in the direction of the sign of the mean gradient."""

    def __init__(self, parameters, lr: float = 1e-3, momentum: float = 0.9):
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                mean = self.state[parameter].setdefault("mean", torch.zeros_like(parameter))
                mean.lerp_(parameter.grad, 1 - group["momentum"])
                parameter.sub_(mean.sign(), alpha=group["lr"])
'''
WITHOUT_MASK = """
import torch
from torch import nn
from fastweights.cores import Core

class WithoutMask(Core):
    def __init__(self, input_size: int, hidden_size: int = 8):
        super().__init__()
        self.input_size, self.output_size = input_size, hidden_size
        self.rnn = nn.GRU(input_size, hidden_size, batch_first=True)

    def initial_state(self, batch_size):
        return torch.zeros(batch_size, self.output_size)

    def forward(self, x, state=None):
        state = self.initial_state(len(x)) if state is None else state
        y, state = self.rnn(x, state[None])
        return y, state[0]
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A working directory in which the examples are, as the commands of their docstrings want it."""
    monkeypatch.chdir(tmp_path)
    os.symlink(EXAMPLES, "examples")
    return tmp_path


@pytest.fixture(params=TINY)
def example(request):
    """The name of an example."""
    return request.param


@pytest.fixture
def refused(capsys):
    """Return a function that runs a command, expects it to be refused, and gives the sentence."""

    def refused(*arguments):
        capsys.readouterr()
        assert cli.main([*map(str, arguments)]) == 2
        captured = capsys.readouterr()
        assert captured.err.startswith("fastweights: ") and captured.err.endswith("\n")
        assert captured.err.count("\n") == 1 and "Traceback" not in captured.err + captured.out
        return captured.err

    return refused


def run(*arguments):
    assert cli.main([*map(str, arguments)]) == 0


def commands(example):
    """The two commands of an example's docstring: train and evaluate."""
    text = ast.get_docstring(ast.parse((EXAMPLES / f"{example}.py").read_text()))
    found = [shlex.split(line)[1:] for line in text.splitlines() if line.startswith("fastweights ")]
    assert [command[0] for command in found] == ["train", "evaluate"]
    return found


def training(example):
    """A training of an example by its import path: the recipe and the settings."""
    _, recipe, *settings = commands(example)[0]
    assert settings[-2] == "--out"
    return [recipe, *settings[:-2], *TINY[example]]


def own_recipe(example):
    """The same in a YAML file of one's own."""
    recipe, key, spec, *settings = training(example)
    values = recipes.load(recipe, [f"{key}={spec}", *settings]).to_dict()
    Path(f"{example}.yaml").write_text(yaml.safe_dump(values))
    return [f"{example}.yaml"]


SOURCES = [training, own_recipe]
BOTH_SOURCES = pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.__name__)


def train_cut(monkeypatch, *arguments):
    """A training that gets Ctrl-C in its third step."""
    step = ProgressObserver.step

    def cut(self, progress):
        step(self, progress)
        if progress.step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(ProgressObserver, "step", cut)
        assert cli.main(["train", *map(str, arguments)]) == 130


def test_an_example_is_short(example):
    assert {path.stem for path in EXAMPLES.glob("*.py")} == TINY.keys()
    assert len((EXAMPLES / f"{example}.py").read_text().splitlines()) < 60


def test_the_commands_of_the_docstring(example, capsys):
    train, evaluate = commands(example)
    run(*train, *TINY[example])
    assert evaluate[1] == train[train.index("--out") + 1]
    capsys.readouterr()
    run(*evaluate)
    printed = capsys.readouterr().out
    assert "top five" in printed if example == "own_objective" else "all" in printed


@BOTH_SOURCES
def test_it_trains_evaluates_and_loads(example, source):
    run("train", *source(example), "--out=whole")
    records = RunFolder("whole").records()
    assert [record["step"] for record in records if "train" in record] == [1, 2, 3, 4]
    validations = [record["valid"] for record in records if "valid" in record]
    assert len(validations) == 2 and all(0 <= metrics[HEADLINES[example]] <= 1 for metrics in validations)

    run("evaluate", "whole", "--trust", "--split=test")
    run("evaluate", "whole/last.safetensors", "--trust", "--generated")
    trained = fastweights.load_model("whole", trust=True)
    parts = {"own_core": trained.model.core, "own_task": trained.assembly.task}
    part = parts.get(example, trained.assembly.objective)
    assert type(part).__name__ == NAMES[example]
    best, _ = checkpoint.load("whole/best.safetensors")
    assert all(torch.equal(value, best[f"model/{key}"]) for key, value in trained.model.state_dict().items())
    logits, _ = trained.model(torch.zeros((1, 3), dtype=torch.int64), trained.state)
    assert logits.isfinite().all()


@BOTH_SOURCES
def test_it_resumes_bit_for_bit(example, source, monkeypatch):
    arguments = source(example)
    run("train", *arguments, "--out=whole")
    train_cut(monkeypatch, *arguments, "--out=cut")
    assert checkpoint.read_metadata("cut/last.safetensors")["step"] == 3
    run("train", "--resume", "--out=cut", "--trust")
    assert_same_run(RunFolder("cut"), RunFolder("whole"))


@BOTH_SOURCES
def test_it_is_swept(example, source, capsys):
    sweep = ["sweep", *source(example), "--over=training.seed=0,1", "--test", "--out=sweep"]
    run(*sweep)
    assert len(list(Path("sweep").rglob("test.json"))) == 2
    capsys.readouterr()
    run(*sweep)
    assert "2 done" in capsys.readouterr().out
    run("report", "sweep", "--out=report")
    assert HEADLINES[example].replace("_", " ").split()[0] in capsys.readouterr().out
    assert {"report.md", "report.png", "report.svg"} <= {*os.listdir()}


def test_its_own_options_are_swept(example):
    recipe, key, spec, *settings = training(example)
    kind, option, values = {
        "own_core": ("model.core", "hidden_size", (8, 12)),
        "own_task": ("task", "length", (2, 3)),
        "own_objective": ("objective", "smoothing", (0.0, 0.2)),
    }[example]
    over = f"{kind}.{option}={values[0]},{values[1]}"
    settings = [setting for setting in settings if not setting.startswith(f"--{kind}.{option}=")]  # else it is fixed
    run("sweep", recipe, key, spec, *settings, f"--over={over}", "--out=sweep", "--training.steps=2")
    configs = [yaml.safe_load(path.read_text()) for path in Path("sweep").rglob("config.yaml")]
    specs = [
        config["recipe"]["model"]["core"] if kind == "model.core" else config["recipe"][kind] for config in configs
    ]
    assert sorted(spec[option] for spec in specs) == list(values)


def test_own_and_shipped_cores_are_compared_in_one_sweep(capsys):
    over = "--over=model.core.type=examples/own_core.py:GRU,lstm"
    recipe = recipes.load("catbabi-qa/lstm", [*STORIES, "--training.steps=2"]).to_dict()
    recipe["model"] = {"embedding_size": 8, "core": {"type": "lstm", "hidden_size": 8}}
    Path("mine.yaml").write_text(yaml.safe_dump(recipe))
    run("sweep", "mine.yaml", over, "--test", "--out=sweep")
    capsys.readouterr()
    run("report", "sweep")
    printed = capsys.readouterr().out
    assert "GRU" in printed and "lstm" in printed
    assert {path.parent.parent.name for path in Path("sweep").rglob("config.yaml")} == {"mine"}


def test_without_consent_it_is_refused(example, refused, monkeypatch):
    train_cut(monkeypatch, *training(example), "--out=run")
    path = f"examples/{example}.py:{NAMES[example]}"

    def check(sentence):
        assert path in sentence and "--trust" in sentence and "trust=True" in sentence

    check(refused("evaluate", "run"))
    check(refused("evaluate", "run/last.safetensors"))
    check(refused("train", "--resume", "--out=run"))
    with pytest.raises(fastweights.UserError) as error:
        fastweights.load_model("run")
    check(str(error.value))
    check(refused("train", training(example)[0], "--resume", "--out=run"))  # a recipe that does not name it
    train_cut(monkeypatch, *own_recipe(example), "--out=mine")
    check(refused("train", "--resume", "--out=mine"))
    run("train", *own_recipe(example), "--resume", "--out=mine")  # one that does is consent
    assert checkpoint.read_metadata("mine/last.safetensors")["step"] == 4


def test_without_consent_no_line_of_it_runs(refused):
    shutil.copy(EXAMPLES / "own_core.py", "mine.py")
    run("train", "catbabi-qa/fwm-quick", "--model.core={type: mine.py:GRU}", *STORIES, "--out=run")
    os.mkdir("elsewhere")
    Path("elsewhere/mine.py").write_text("raise SystemExit('it ran')")
    os.rename("run", "elsewhere/run")
    os.chdir("elsewhere")
    refused("evaluate", "run")
    refused("train", "--resume", "--out=run")


@pytest.mark.parametrize("spec", ["own.py:SignDescent", "{type: own.py:SignDescent, momentum: 0.5}"])
def test_an_own_optimizer(spec, refused, monkeypatch):
    Path("own.py").write_text(SIGN_DESCENT)
    arguments = ["catbabi-qa/fwm-quick", *STORIES, f"--training.optimizer={spec}"]
    run("train", *arguments, "--out=whole")
    train_cut(monkeypatch, *arguments, "--out=cut")
    assert "own.py:SignDescent" in refused("train", "--resume", "--out=cut")
    assert "own.py:SignDescent" in refused("evaluate", "whole")
    run("train", "--resume", "--out=cut", "--trust")
    assert_same_run(RunFolder("cut"), RunFolder("whole"))
    assert any(name.endswith("/mean") for name in checkpoint.load("whole/last.safetensors")[0])
    run("evaluate", "whole", "--trust")
    run("sweep", *arguments, "--over=training.learning_rate=0.01,0.02", "--test", "--out=sweep")


def test_options_of_an_own_part_are_checked(refused):
    Path("own.py").write_text(SIGN_DESCENT)
    train = ("train", "catbabi-qa/fwm-quick", *STORIES, "--out=run")
    sentence = refused(*train, "--training.optimizer={type: own.py:SignDescent, momentun: 0.5}")
    assert 'no option "momentun"; did you mean "momentum"' in sentence
    sentence = refused(*train, "--training.optimizer={type: own.py:SignDescent, momentum: much}")
    assert "momentum" in sentence and "'much'" in sentence
    sentence = refused(*train, "--model.core={type: examples/own_core.py:GRU, hidden_sise: 8}")
    assert 'no option "hidden_sise"; did you mean "hidden_size"' in sentence
    assert "'big'" in refused("train", "art/fwm", "--task={type: examples/own_task.py:Copy, length: big}", "--out=run")
    sentence = refused(*train, "--objective={type: examples/own_objective.py:TopFive, smoothing: much}")
    assert "'much'" in sentence
    assert not os.path.exists("run")


def test_a_core_in_a_package(folder, monkeypatch, refused):
    (folder / "mine_of_test_examples").mkdir()
    shutil.copy(EXAMPLES / "own_core.py", folder / "mine_of_test_examples" / "cores.py")
    monkeypatch.syspath_prepend(folder)
    path = "mine_of_test_examples.cores:GRU"
    arguments = ["catbabi-qa/fwm-quick", f"--model.core={{type: {path}}}", *STORIES]
    run("train", *arguments, "--out=run")
    assert path in refused("evaluate", "run")
    run("evaluate", "run", "--trust")
    assert type(fastweights.load_model("run", trust=True).model.core).__module__ == "mine_of_test_examples.cores"
    train = ("train", "catbabi-qa/fwm-quick", *STORIES, "--out=other")
    sentence = refused(*train, "--model.core={type: mine_of_test_examples.cores:GRUU}")
    assert 'no "GRUU"; did you mean "GRU"' in sentence
    assert "nowhere_at_all" in refused(*train, "--model.core={type: nowhere_at_all.cores:GRU}")
    assert not os.path.exists("other")


KINDS = {
    "model.core": ("core", "Core"),
    "task": ("task", "Task"),
    "objective": ("objective", "Objective"),
    "training.optimizer": ("optimizer", "Optimizer"),
}


@pytest.mark.parametrize("key", KINDS)
def test_what_is_no_class_of_the_kind(key, refused, folder):
    kind, base = KINDS[key]
    (folder / "broken.py").write_text("class Broken(:\n    pass\n")
    (folder / "raising.py").write_text("raise RuntimeError('first line.\\nsecond line')\n")
    (folder / "other.py").write_text("class Other: pass\n\nfunction = print\n")

    def sentence(path):
        settings = STORIES if key in ("training.optimizer", "objective") else LOOP
        sentence = refused("train", "catbabi-qa/fwm-quick", *settings, f"--{key}={{type: '{path}'}}", "--out=run")
        assert path.partition(":")[0] in sentence
        assert not os.path.exists("run")
        return sentence

    assert "no file nowhere.py" in sentence("nowhere.py:Mine") and "check the path" in sentence("nowhere.py:Mine")
    for _ in range(2):  # a module that failed is not taken for a good one
        assert "SyntaxError" in sentence("broken.py:Broken") and "broken.py, line 1" in sentence("broken.py:Broken")
        assert "RuntimeError: first line. second line)" in sentence("raising.py:Mine")
    assert 'no "Othr"; did you mean "Other"' in sentence("other.py:Othr")
    assert 'no ""' in sentence("other.py:")
    for path in ("other.py:Other", "other.py:function"):
        assert f"is no {kind}; it must be a class that extends {base}" in sentence(path)
    assert "cannot be imported" in sentence(":Mine")


def test_a_class_of_another_kind(refused):
    train = ("train", "catbabi-qa/fwm-quick", *STORIES, "--out=run")
    assert "is no core" in refused(*train, "--model.core={type: examples/own_task.py:Copy}")
    assert "is no objective" in refused(*train, "--objective={type: examples/own_core.py:GRU}")
    assert "is no optimizer" in refused(*train, "--training.optimizer=examples/own_core.py:GRU")
    assert "is no task" in refused("train", "art/fwm", "--task={type: examples/own_objective.py:TopFive}", "--out=run")
    assert not os.path.exists("run")


def test_an_abstract_class_is_refused(refused, folder):
    (folder / "half.py").write_text("from fastweights.cores import Core\n\nclass Half(Core):\n    pass\n")
    sentence = refused("train", "catbabi-qa/fwm-quick", "--model.core={type: half.py:Half}", "--out=run")
    assert "half.py:Half" in sentence and "forward" in sentence


def test_an_own_core_that_ignores_the_mask_is_refused_on_stories(refused):
    Path("own.py").write_text(WITHOUT_MASK)
    core = "--model.core={type: own.py:WithoutMask}"
    sentence = refused("train", "catbabi-qa/fwm-quick", core, *STORIES, "--out=run")
    assert "CatBabi needs a core that supports mask" in sentence and "WithoutMask does not" in sentence
    assert not os.path.exists("run")


def test_the_learned_initial_state_gets_a_gradient():
    recipe, key, spec, *settings = training("own_core")
    _, task, objective, _, model = recipes.assemble(recipes.load(recipe, [f"{key}={spec}", *settings]))
    batch = next(objective.source(task, None, 2, 0))
    with join("cpu") as group:
        objective.step(model, task, batch, None, group).loss.backward()
    gradient = model.core.first_state.grad
    assert gradient.shape == (8,) and gradient.isfinite().all() and (gradient != 0).any()


def test_resets_and_padding_of_the_gru():
    GRU = fastweights.specs.import_object("examples/own_core.py:GRU")
    core = GRU(3, hidden_size=4)
    with torch.no_grad():
        core.first_state.uniform_(-1, 1)
    x, other = torch.randn(2, 5, 3), torch.randn(2, 4)
    resets = torch.zeros(2, 5, dtype=torch.bool)
    resets[:, 2] = True
    y, state = core(x, other, resets=resets)
    again, last = core(x[:, 2:])
    torch.testing.assert_close(y[:, 2:], again)
    torch.testing.assert_close(state, last)
    mask = torch.tensor([True, True, False, False, False]).expand(2, -1)
    torch.testing.assert_close(core(x, mask=mask)[1], core(x[:, :2])[1])
