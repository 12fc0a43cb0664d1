"""The benchmark: its results and its failures; never how fast anything is."""

import io
import json

import pytest
import torch
from rich.console import Console

from fastweights import bench, cli, recipes
from fastweights.bench import agents, cores, episodes, growth, limits, measurements, profile, workers
from fastweights.bench.measurements import MODES, Work
from fastweights.errors import UserError
from fastweights.ops import cpu, products

COMPARED = {"reference_s", "plain_s", "auto_s", "ratio", "plain_ratio"}


@pytest.fixture(autouse=True)
def short_stream(monkeypatch):
    monkeypatch.setattr(bench, "STREAM_LENGTH", 20)


def run(batch_size=2, length=4, repeats=1):
    return bench.run(batch_size, length, repeats, Console(file=io.StringIO()))


def test_command_line(capsys):
    assert cli.main(["bench", "--json", "--batch-size", "2", "--length", "4", "--repeats", "1"]) == 0
    out, err = capsys.readouterr()
    assert "training step, qa" in err
    result = json.loads(out)
    assert set(result) == {
        "machine", "auto_backend", "step", "memory_op", "lstm_op", "fw_lstm_step", "fw_rnn_step", "stories", "roofline",
        "stream",
    }  # fmt: skip
    assert result["machine"]["batch_size"] == 2 and result["machine"]["torch"] == torch.__version__
    for part in ("step", "memory_op"):
        assert set(result[part]) == {"qa", "lm"}
        for found in result[part].values():
            assert set(found) >= COMPARED and all(found[key] > 0 for key in COMPARED)
            assert found["ratio"] == pytest.approx(found["reference_s"] / found["auto_s"])
            assert found["plain_ratio"] == pytest.approx(found["reference_s"] / found["plain_s"])
    assert all(set(result[part]) == COMPARED for part in ("lstm_op", "fw_lstm_step", "fw_rnn_step"))
    for mode, roofline in result["roofline"].items():
        assert roofline["roofline_s"] == pytest.approx(roofline["flops"] / roofline["gflop_per_s"] / 1e9)
        assert roofline["times_roofline"] == pytest.approx(result["step"][mode]["auto_s"] / roofline["roofline_s"])
    for mode, found in result["stories"].items():
        assert found["batch_s"] > 0
        assert found["of_a_step"] == pytest.approx(found["batch_s"] / result["step"][mode]["auto_s"])
    assert set(result["auto_backend"]) == {"fwm", "lstm", "fw_lstm", "fw_rnn", "mnm"}
    assert all(found["memory_gb"] >= 0 and found["reference_memory_gb"] >= 0 for found in result["step"].values())
    keys = ("tokens_per_s", "token_by_token_per_s")
    assert set(result["stream"]) == {*keys, *(f"reference_{key}" for key in keys)}
    assert all(value > 0 for value in result["stream"].values())
    console = Console(file=io.StringIO(), width=200)
    console.print(bench.table(result))
    assert "training step, lm" in console.file.getvalue() and "× roofline" in console.file.getvalue()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("backend", ["reference", "plain", "auto"])
def test_every_measurement_can_be_repeated(mode, backend, monkeypatch):
    monkeypatch.setattr(measurements, "MATRIX", 8)
    with torch.random.fork_rng():
        for prepare in measurements.MEASUREMENTS.values():
            measurement = prepare(Work(mode, 2, 3), backend)
            measurement()
            measurement()


def test_the_processors_limit_stands_beside_the_libraries_rates():
    found = limits.run(threads=1, repeats=1)
    assert found["limit"] in found["gflop_per_s"] and all(rate > 0 for rate in found["gflop_per_s"].values())
    assert {"mkl", "bfloat16"} < set(found["gflop_per_s"]) <= set(limits.LABELS)
    lines = limits.lines(found)
    assert "100% of the limit" in {share for _, _, share in lines}
    assert cpu.LIBRARY is None or lines[-1][0] == "reading memory"


@pytest.mark.skipif(cpu.LIBRARY is None, reason=str(cpu.PROBLEM))
@pytest.mark.parametrize("instruction_set", range(cpu.best() + 1))
@pytest.mark.parametrize("threads", [1, 3])
def test_multiply_adds_are_counted(instruction_set, threads, monkeypatch):
    monkeypatch.setattr(cpu, "INSTRUCTION_SET", instruction_set)
    sink, count = torch.full((threads,), 0.5), torch.zeros(1, dtype=torch.int64)
    cpu.call("multiply_adds", cpu.LimitArguments(threads=threads, repeats=200, bfloat16=0, sink=sink, count=count))
    width = (4, 8, 16, 16)[instruction_set]
    assert count == 2 * 200 * 12 * width * threads
    assert torch.allclose(sink, torch.full((threads,), 12.0 * width))  # x = x / 2 + 1 / 2 goes to 1


def test_the_parts_of_a_profile_add_up(capsys):
    assert cli.main(["bench", "--profile", "--batch-size", "4", "--length", "40", "--repeats", "2", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    for mode in MODES:
        *parts, whole = (part["seconds"] for part in result[mode].values())
        assert sum(parts) >= whole * 0.999 > 0  # the rest is never below 0
        *operations, all_of_them = (part["flops"] or 0 for part in result[mode].values())
        assert sum(operations) == pytest.approx(all_of_them)
    console = Console(file=io.StringIO(), width=200)
    console.print(profile.table(result))
    assert "everything else" in console.file.getvalue() and "of the limit" in console.file.getvalue()


@pytest.mark.parametrize("others", [("--profile", "--agent"), ("--core=fwm", "--agent"), ("--core=fwm", "--profile")])
def test_two_measurements_at_once_are_refused(others, capsys):
    assert cli.main(["bench", *others]) == 2
    assert "give one of them" in capsys.readouterr().err


def test_a_core_beside_its_reference_and_its_roofline(capsys):
    assert cli.main(["bench", "--core=fwm", "--batch-size=2", "--length=4", "--repeats=1", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["recipe"], result["weights"], result["state"]) == ("catbabi-qa/fwm", 683_745, 33_280)
    assert result["ratio"] == pytest.approx(result["seconds"]["reference"] / result["seconds"]["auto"])
    assert result["sequences"] == {"reference": 2, "auto": 2}
    assert result["times_roofline"] == pytest.approx(result["seconds"]["auto"] / result["roofline_s"])
    console = Console(file=io.StringIO(), width=200)
    console.print(cores.table(result))
    assert "× roofline" in console.file.getvalue() and "683,745 weights" in console.file.getvalue()


def test_a_reference_that_keeps_much_is_measured_on_fewer_sequences(monkeypatch):
    """And its time counts for each of them."""
    monkeypatch.setattr(cores, "REFERENCE_KEEPS", 1)
    monkeypatch.setattr(cores, "medians", lambda team, name, work, repeats: dict.fromkeys(team, work.batch_size + 1.0))
    monkeypatch.setattr(
        cores.limits, "run", lambda *_: {"gflop_per_s": {"mkl": 1.0}, "limit": "mkl", "memory_gb_per_s": 1}
    )
    result = cores.run("transformer-xl-small", 4, 5, 1, Console(file=io.StringIO()))
    assert result["sequences"] == {"reference": 1, "auto": 4} and result["ratio"] == pytest.approx(2 / 1.25)
    console = Console(file=io.StringIO(), width=200)
    console.print(cores.table(result))
    assert "1 sequences" in console.file.getvalue()


def test_large_products_are_counted_in_either_library(monkeypatch):
    """oneDNN's and torch's own, with the memory of Transformer-XL in each of them."""
    overrides = ["--model.core.num_layers=1", "--model.core.memory_length=40", "--model.core.backend=reference"]
    model = recipes.assemble(recipes.load("catbabi-qa/transformer-xl-small", overrides)).model
    counted = []
    for least in (1, 1 << 60):
        monkeypatch.setattr(products, "LEAST_MULTIPLICATIONS", least)
        monkeypatch.setattr(products, "prefers_onednn", products.has_onednn)
        counted.append(cores._flops(model, Work("qa", 2, 20)))
    d, inner, T, S, answers = 128, 432, 20, 60, 1
    attention = 3 * T * S * d
    projections = T * 256 * d + T * d * 3 * d + answers * (d * d + 2 * d * inner + d * 180)
    of_memory, of_distances = (
        (S - T) * d * 2 * d,
        S * d * d,
    )  # the latter once for both rows; no gradient of either input
    multiplications = 2 * 3 * (attention + projections) + 2 * 2 * of_memory + 2 * of_distances
    assert counted == [2 * multiplications] * 2


def test_a_core_without_a_recipe_is_one_sentence(capsys):
    assert cli.main(["bench", "--core=fmw"]) == 2
    assert 'There is no recipe "catbabi-qa/fmw"; did you mean "catbabi-qa/fwm"' in capsys.readouterr().err


@pytest.mark.parametrize("batch_size", [2, 5])
def test_the_counted_flops_are_those_of_the_products(batch_size, tmp_path):
    """Of an LSTM: its input and its recurrent products forwards and twice backwards, the softmax at one position."""
    recipe = tmp_path / "lstm.yaml"
    recipe.write_text("model: {embedding_size: 6, core: {type: lstm, hidden_size: 8}}")
    steps = batch_size * 12  # fewer than words: each token is projected for itself
    multiplications = steps * (6 * 32 + 8 * 32) + batch_size * 8 * 180
    model = recipes.assemble(recipes.load(str(recipe), ["--model.core.backend=reference"])).model
    assert cores._flops(model, Work("qa", batch_size, 12)) == 2 * 3 * multiplications - 2 * batch_size * 8 * 32


def test_the_flops_are_those_of_the_papers_step():
    """By hand, in GFLOP: LSTM 10.1, its vocabulary 0.3, keys 1.0, memory 2.5; and answers, few or all."""
    assert measurements.flops(Work("qa")) / 1e9 == pytest.approx(14.10, abs=0.01)
    assert measurements.flops(Work("lm")) / 1e9 == pytest.approx(20.94, abs=0.01)


def test_the_reference_is_the_same_model():
    torch.manual_seed(0)
    reference, plain = measurements.catbabi_model("reference"), measurements.catbabi_model("plain")
    weights = reference.state_dict()
    for part in ("embedding.weight", "softmax.weight"):
        plain.state_dict()[part].copy_(weights[part])
    for name in ("write", "read", "output"):
        getattr(plain.core, name).load_state_dict(getattr(reference.core, name).state_dict())
    ours, torchs = plain.core.slow, reference.core.slow.lstm
    ours.forget_bias = 0.0
    with torch.no_grad():
        ours.input_weight.copy_(torchs.weight_ih_l0)
        ours.recurrent_weight.copy_(torchs.weight_hh_l0)
        ours.bias.copy_(torchs.bias_ih_l0 + torchs.bias_hh_l0)
        tokens = torch.randint(measurements.VOCABULARY, (2, 5))
        reference_state = plain_state = None
        for _ in range(2):
            expected, reference_state = reference(tokens, reference_state)
            logits, plain_state = plain(tokens, plain_state)
            torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_auto_is_measured_on_its_own_where_it_is_not_plain(monkeypatch):
    asked = []

    class Worker:
        memory_gb = 0.5

        def __init__(self, backend, threads):
            self.backend = backend

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def measure(self, measurement, work):
            asked.append(self.backend)
            return {"reference": 6.0, "plain": 3.0, "auto": 1.0}[self.backend]

    monkeypatch.setattr(workers, "Worker", Worker)
    monkeypatch.setattr(measurements, "backends", lambda: {"fwm": "compiled", "lstm": "compiled"})
    result = run()
    assert asked[:6] == ["reference", "plain", "auto"] * 2  # in turns, and once to warm up
    assert result["step"]["qa"]["ratio"] == 6 and result["step"]["qa"]["plain_ratio"] == 2
    assert result["stream"]["tokens_per_s"] == 20
    console = Console(file=io.StringIO(), width=250)
    console.print(bench.table(result))
    assert "6.0 × faster" in console.file.getvalue() and "2.0 × faster" in console.file.getvalue()


def test_growth_is_measured_and_drawn(tmp_path):
    axes = {"length": ("T", (2, 4)), "memory_size": ("d", (4, 8))}
    found = growth.run(1, Console(file=io.StringIO()), axes)
    assert found["length"]["values"] == [2, 4]
    assert all(len(line) == 2 and min(line) > 0 for axis in found.values() for line in axis.values())
    for ending in ("png", "svg"):
        growth.draw(found, tmp_path / f"growth.{ending}")
        assert (tmp_path / f"growth.{ending}").stat().st_size > 5000
    with pytest.raises(UserError, match="cannot be written"):
        growth.draw(found, tmp_path / "growth.rubbish")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--growth=growth"], "must end in .png, .svg or .pdf"),
        (["--growth=nowhere/growth.png"], "cannot write nowhere/growth.png"),
        (["--growth=growth.png", "--repeats=0"], "--repeats is 0"),
        (["--growth=growth.png", "--agent"], "leave --core, --agent, --profile, --batch-size and --length out"),
        (["--growth=growth.png", "--length=3"], "leave --core, --agent, --profile, --batch-size and --length out"),
        (["--batch-size=1000000000"], "give at most 100,000"),
        (["--agent", "--length=1000000000"], "give at most 100,000"),
        (["--repeats=1000000000"], "--repeats is 1000000000; the median needs at most 1,000"),
    ],
)
def test_what_cannot_be_measured_or_drawn_is_refused_first(arguments, sentence, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(workers, "Worker", None)
    assert cli.main(["bench", *arguments]) == 2
    printed = capsys.readouterr().err
    assert sentence in printed and printed.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("wrong", ["batch_size", "length", "repeats"])
def test_sizes_are_checked(wrong):
    with pytest.raises(UserError, match=f"--{wrong.replace('_', '-')} is 0"):
        run(**{wrong: 0})


def test_a_failing_process_is_one_sentence():
    with (
        workers.team_of(["plain"], 1) as team,
        pytest.raises(UserError, match="nonsense") as caught,
    ):
        team["plain"].measure("nonsense", Work())
    assert "\n" not in str(caught.value) and "KeyError" in str(caught.value)


def test_a_killed_process_is_one_sentence():
    with workers.team_of(["plain"], 1) as team:
        team["plain"]._process.kill()
        with pytest.raises(UserError, match="signal 9 ended it; if memory ran out"):
            team["plain"].measure("step", Work())


def test_the_agents_episode_on_the_command_line(capsys):
    assert cli.main(["bench", "--agent", "--json", "--batch-size", "3", "--length", "2", "--repeats", "1"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["machine"]["batch_size"] == 3 and result["machine"]["length"] == 2
    assert set(result["seconds"]) >= {"reference", "plain"}
    for name, seconds in result["seconds"].items():
        assert result["ratio"][name] == pytest.approx(result["seconds"]["reference"] / seconds)
    console = Console(file=io.StringIO(), width=200)
    console.print(agents.table(result))
    assert "one by one" in console.file.getvalue()
    with pytest.raises(UserError, match="--length is 0"):
        agents.run(1, 0, 1, console)


def test_the_reference_agent_plays_the_same_game():
    """Under a uniform policy, the loss of an episode of objects is that of an episode of arrays."""
    model, task, objective = episodes.agent("reference")
    for layer in (model.policy, model.value):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    environments = task.environments("train", 600)
    with torch.no_grad():
        alone = episodes.loss_one_by_one(model, episodes.reference_episodes(environments), 30, objective)
        together = episodes.loss_of_rollout(model, environments, 30, objective)
    assert alone.item() == pytest.approx(together.item(), rel=0.1)


def test_the_published_settings_are_those_of_the_recipes():
    core, (agent, task, _) = measurements.catbabi_model("auto").core, episodes.agent("auto", steps=7)
    assert (core.options["write_scale"], core.options["tanh_first_query"], core.residual) == (1 / 32, False, False)
    options = agent.core.options
    assert (options["write_scale"], options["tanh_first_query"], options["tanh_queries"]) == (1 / 16, False, False)
    assert agent.core.slow.forget_bias == 0 and agent.core.slow.second_bias is not None
    assert (task.rules.variant, task.steps) == ("as-published", 7)
    assert all(slow.backend == "auto" for slow in (core.slow, agent.core.slow))
