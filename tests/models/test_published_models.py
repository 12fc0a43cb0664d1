"""Whole models against the numbers of the authors' published catbAbI code (tests/golden/README.md)."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from fastweights.cores import LSTM, FastWeightMemory, map_state
from fastweights.models import TokenModel
from fastweights.ops import cpu
from tolerances import assert_near

GOLDEN = Path(__file__).parents[1] / "golden"
PAD, QUESTION_MARK = 0, 3
FILES = {  # and what differs from the published code's usual settings
    "catbabi_fwm_qa_small": {},
    "catbabi_fwm_lm_small": {},
    "catbabi_fwm_lm_residual_small": {"residual": True},
    "catbabi_fwm_lm_strong_writes": {"num_reads": 2, "residual": True},
    "catbabi_fwm_qa_paper_dims": {},
}
AUTHORS_NAMES = {
    "embedding.weight": "embedding.weight",
    "core.slow.input_weight": "rnn.cells.0.lstm.W_ih",
    "core.slow.recurrent_weight": "rnn.cells.0.lstm.W_hh",
    "core.slow.bias": "rnn.cells.0.lstm.bias",
    "core.write.weight": "rnn.cells.0.W_write.weight",
    "core.write.bias": "rnn.cells.0.W_write.bias",
    "core.read.weight": "rnn.cells.0.W_read.weight",
    "core.read.bias": "rnn.cells.0.W_read.bias",
    "core.output.weight": "rnn.cells.0.linear.weight",
    "core.output.bias": "rnn.cells.0.linear.bias",
    "softmax.weight": "linear.weight",
}


@pytest.mark.parametrize("lstm_backend", ["reference", "plain"])
@pytest.mark.parametrize("fwm_backend", ["reference", "plain"])
@pytest.mark.parametrize("file", FILES)
def test_matches_the_published_code(file, fwm_backend, lstm_backend):
    check(load(file), file, fwm_backend, lstm_backend)


@pytest.mark.skipif(cpu.PROBLEM is not None, reason=str(cpu.PROBLEM))
@pytest.mark.parametrize("file", FILES)
def test_the_compiled_kernels_match_the_published_code(file):
    golden = {name: x.float() if x.is_floating_point() else x for name, x in load(file).items()}
    check(golden, file, "cpu", "cpu")


def load(file):
    return {name: torch.from_numpy(array) for name, array in np.load(GOLDEN / f"{file}.npz").items()}


def check(golden, file, fwm_backend, lstm_backend):
    vocabulary_size, embedding_size = golden["param/embedding.weight"].shape
    hidden_size, memory_size = golden["h0"].shape[1], golden["F0"].shape[1]
    published = {"write_scale": 1 / memory_size, "tanh_first_query": False, "residual": False}
    slow = LSTM(embedding_size, hidden_size, backend=lstm_backend)
    core = FastWeightMemory(
        embedding_size,
        memory_size=memory_size,
        slow=slow,
        backend=fwm_backend,
        **(published | FILES[file]),
    )
    model = TokenModel(vocabulary_size, core).to(golden["param/embedding.weight"].dtype)
    model.load_state_dict({ours: golden[f"param/{theirs}"] for ours, theirs in AUTHORS_NAMES.items()})

    state = None
    segments = itertools.takewhile(lambda segment: f"x{segment}" in golden, itertools.count())
    for segment in segments:
        tokens, targets = golden[f"x{segment}"], golden[f"y{segment}"]
        mask = tokens != PAD
        output_mask = tokens == QUESTION_MARK if "_qa_" in file else mask
        if state is not None:
            state = map_state(torch.Tensor.detach, state)
        logits, state = model(tokens, state, output_mask=output_mask, mask=mask)
        loss = torch.nn.functional.cross_entropy(logits, targets[output_mask])
        model.zero_grad()
        loss.backward()

        results = {
            "loss": loss,
            "h": state.slow.hidden,
            "c": state.slow.cell,
            "F": state.memory,
        }
        assert_near(logits, golden[f"logits{segment}"][output_mask], f"logits of segment {segment}")
        for name, result in results.items():
            assert_near(result, golden[f"{name}{segment}"], f"{name} of segment {segment}")
        for ours, theirs in AUTHORS_NAMES.items():
            gradient = model.get_parameter(ours).grad
            assert_near(gradient, golden[f"grad{segment}/{theirs}"], f"gradient of {ours}, {segment}")
    assert segment >= (0 if "paper_dims" in file else 1)
