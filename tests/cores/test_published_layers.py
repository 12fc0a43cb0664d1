"""The fast weight memory layers of the authors' language model and agent, against their numbers."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fastweights.cores import LSTM, FastWeightMemory
from fastweights.cores.fwm import FWMState
from fastweights.cores.lstm import LSTMState
from fastweights.ops import cpu
from tolerances import assert_near

GOLDEN = Path(__file__).parents[1] / "golden"
FILES = {  # the prefix of the slow LSTM's weights, and the options that give the published layer
    "lm_fwm_layer": ("rnn.module", {"write_scale": 1.0, "tanh_first_query": True, "tanh_queries": True}),
    "metarl_fwm_layer": ("rnn", {"write_scale": 1 / 16, "tanh_first_query": False, "tanh_queries": False}),
}


@pytest.mark.parametrize("lstm_backend", ["reference", "plain"])
@pytest.mark.parametrize("fwm_backend", ["reference", "plain"])
@pytest.mark.parametrize("file", FILES)
def test_matches_the_published_layer(file, fwm_backend, lstm_backend):
    check(load(file), file, fwm_backend, lstm_backend)


@pytest.mark.skipif(cpu.PROBLEM is not None, reason=str(cpu.PROBLEM))
@pytest.mark.parametrize("file", FILES)
def test_the_compiled_kernel_matches_the_published_layer(file):
    check({name: x.float() for name, x in load(file).items()}, file, "cpu", "auto")


def load(file):
    return {name: torch.from_numpy(array) for name, array in np.load(GOLDEN / f"{file}.npz").items()}


def check(golden, file, fwm_backend, lstm_backend):
    rnn, options = FILES[file]
    memory_size = golden["F0"].shape[-1]
    slow = LSTM(golden["x"].shape[-1], golden["out"].shape[-1], forget_bias=0.0, backend=lstm_backend)
    core = FastWeightMemory(
        slow.input_size, memory_size=memory_size, slow=slow, residual=True, backend=fwm_backend, **options
    ).to(golden["x"].dtype)
    names = {
        "slow.input_weight": f"{rnn}.weight_ih_l0",
        "slow.recurrent_weight": f"{rnn}.weight_hh_l0",
        "write.weight": "fwm.W_write.weight",
        "write.bias": "fwm.W_write.bias",
        "read.weight": "fwm.W_read.weight",
        "read.bias": "fwm.W_read.bias",
        "output.weight": "linear.weight",
        "output.bias": "linear.bias",
    }
    weights = {ours: golden[f"param/{theirs}"] for ours, theirs in names.items()}
    # torch.nn.LSTM has two biases that are added: each gets the gradient of our one
    weights["slow.bias"] = golden[f"param/{rnn}.bias_ih_l0"] + golden[f"param/{rnn}.bias_hh_l0"]
    core.load_state_dict(weights)

    x = golden["x"].transpose(0, 1).requires_grad_()  # the files are time-first
    y, state = core(x, FWMState(LSTMState(golden["h0"][0], golden["c0"][0]), golden["F0"]))
    loss = (y.transpose(0, 1) * golden["loss_weight"]).sum()
    loss.backward()

    compared = {
        "output": (y.transpose(0, 1), golden["out"]),
        "loss": (loss, golden["loss"]),
        "h": (state.slow.hidden, golden["h"][0]),
        "c": (state.slow.cell, golden["c"][0]),
        "F": (state.memory, golden["F"]),
        "gradient of x": (x.grad.transpose(0, 1), golden["grad_x"]),
    }
    for bias in ("bias_ih_l0", "bias_hh_l0"):
        compared[f"gradient of {bias}"] = (core.slow.bias.grad, golden[f"grad/{rnn}.{bias}"])
    for ours, theirs in names.items():
        compared[f"gradient of {ours}"] = (core.get_parameter(ours).grad, golden[f"grad/{theirs}"])
    for what, (result, expected) in compared.items():
        assert_near(result, expected, what)


def test_keys_and_queries_begin_as_in_the_published_code():
    core = FastWeightMemory(5, hidden_size=96, memory_size=32)
    for layer in (core.write, core.read):
        largest = layer.weight.abs().max().item()
        assert 0.99 * (6 / 128) ** 0.5 < largest <= (6 / 128) ** 0.5
