"""The benchmark: what it gives and how it fails; never how fast anything is."""

import io
import json

import pytest
import torch
from rich.console import Console

from fastweights import bench, cli
from fastweights.errors import UserError

COMPARED = {"reference_s", "plain_s", "auto_s", "ratio", "plain_ratio"}


@pytest.fixture(autouse=True)
def short_stream(monkeypatch):
    monkeypatch.setattr(bench, "STREAM_LENGTH", 20)


def run(rows=2, length=4, repeats=1):
    return bench.run(rows, length, repeats, Console(file=io.StringIO()))


def test_command_line(capsys):
    assert cli.main(["bench", "--json", "--rows", "2", "--length", "4", "--repeats", "1"]) == 0
    out, err = capsys.readouterr()
    assert "training step, qa" in err
    result = json.loads(out)
    assert set(result) == {"machine", "auto_backend", "step", "memory_op", "stream"}
    assert result["machine"]["rows"] == 2 and result["machine"]["torch"] == torch.__version__
    for part in ("step", "memory_op"):
        assert set(result[part]) == {"qa", "lm"}
        for found in result[part].values():
            assert set(found) >= COMPARED and all(found[key] > 0 for key in COMPARED)
            assert found["ratio"] == pytest.approx(found["reference_s"] / found["auto_s"])
            assert found["plain_ratio"] == pytest.approx(found["reference_s"] / found["plain_s"])
    assert set(result["auto_backend"]) == {"fwm", "lstm"}
    assert all(found["memory_gb"] >= 0 and found["reference_memory_gb"] >= 0 for found in result["step"].values())
    keys = ("tokens_per_s", "token_by_token_per_s")
    assert set(result["stream"]) == {*keys, *(f"reference_{key}" for key in keys)}
    assert all(value > 0 for value in result["stream"].values())
    console = Console(file=io.StringIO(), width=200)
    console.print(bench.table(result))
    assert "training step, lm" in console.file.getvalue()


@pytest.mark.parametrize("mode", bench.MODES)
@pytest.mark.parametrize("backend", ["reference", "plain", "auto"])
def test_every_measurement_can_be_repeated(mode, backend):
    with torch.random.fork_rng():
        for prepare in bench.MEASUREMENTS.values():
            measurement = prepare(mode, backend, 2, 3)
            measurement()
            measurement()


def test_the_reference_is_the_same_model():
    torch.manual_seed(0)
    reference, plain = bench._model("reference"), bench._model("plain")
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
        tokens = torch.randint(bench.VOCABULARY, (2, 5))
        reference_state = plain_state = None
        for _ in range(2):
            expected, reference_state = reference(tokens, reference_state)
            logits, plain_state = plain(tokens, plain_state)
            torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_auto_is_measured_on_its_own_where_it_is_not_plain(monkeypatch):
    asked = []

    class Worker(bench._Worker):
        def __init__(self, backend, *work):
            self.backend, self.memory_gb = backend, 0.5

        def __exit__(self, *error):
            pass

        def measure(self, measurement):
            asked.append(self.backend)
            return {"reference": 6.0, "plain": 3.0, "auto": 1.0}[self.backend]

    monkeypatch.setattr(bench, "_Worker", Worker)
    monkeypatch.setattr(bench, "choose", lambda op, available: "compiled")
    result = run()
    assert asked[:6] == ["reference", "plain", "auto"] * 2  # in turns, and once to warm up
    assert result["step"]["qa"]["ratio"] == 6 and result["step"]["qa"]["plain_ratio"] == 2
    assert result["stream"]["tokens_per_s"] == 20
    console = Console(file=io.StringIO(), width=200)
    console.print(bench.table(result))
    assert "6.0 × faster" in console.file.getvalue() and "2.0 × faster" in console.file.getvalue()


@pytest.mark.parametrize("wrong", ["rows", "length", "repeats"])
def test_sizes_are_checked(wrong):
    with pytest.raises(UserError, match=f"--{wrong} is 0"):
        run(**{wrong: 0})


def test_a_failing_process_is_one_sentence():
    with (
        bench._workers(["plain"], "lm", 2, 3, 1) as workers,
        pytest.raises(UserError, match="nonsense") as caught,
    ):
        workers["plain"].measure("nonsense")
    assert "\n" not in str(caught.value) and "KeyError" in str(caught.value)


def test_a_killed_process_is_one_sentence():
    with bench._workers(["plain"], "lm", 2, 3, 1) as workers:
        workers["plain"]._process.kill()
        with pytest.raises(UserError, match="signal 9 ended it; if memory ran out"):
            workers["plain"].measure("step")
