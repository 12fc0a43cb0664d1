"""Transformer-XL against the numbers of the authors' module, its sizes, and what its memory means over time."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear
from torch.utils.flop_counter import FlopCounterMode

from fastweights import recipes
from fastweights.cores import TransformerXL, map_state
from fastweights.cores.transformer_xl import TransformerXLState
from tolerances import assert_near

GOLDEN = Path(__file__).parents[1] / "golden" / "transformer_xl.npz"
AUTHORS_NAMES = {  # of a layer
    "query_key_value.weight": "dec_attn.qkv_net.0.weight",
    "position.weight": "dec_attn.r_net.weight",
    "output.weight": "dec_attn.o_net.weight",
    "attention_norm.weight": "dec_attn.layer_norm.weight",
    "attention_norm.bias": "dec_attn.layer_norm.bias",
    "inner.weight": "pos_ff.CoreNet.0.weight",
    "inner.bias": "pos_ff.CoreNet.0.bias",
    "outer.weight": "pos_ff.CoreNet.3.weight",
    "outer.bias": "pos_ff.CoreNet.3.bias",
    "norm.weight": "pos_ff.layer_norm.weight",
    "norm.bias": "pos_ff.layer_norm.bias",
}


def test_matches_the_published_code(monkeypatch):
    """Which rounds the scores to float32 before they are masked, also in float64."""
    masked_fill = Tensor.masked_fill
    monkeypatch.setattr(
        Tensor, "masked_fill", lambda x, mask, value: masked_fill(x.float(), mask, value).to(x.dtype)
    )
    check("reference", 1e-12, 1e-12)


@pytest.mark.parametrize("backend", ["reference", "plain"])
def test_matches_the_published_code_but_for_its_rounding(backend):
    check(backend, 1e-9, 1e-6)


def check(backend, loss_tolerance, tolerance):
    """Two layers, three segments: losses per token, memories, gradients."""
    golden = {name: torch.from_numpy(array) for name, array in np.load(GOLDEN).items()}
    size, memory_length, layers = 16, 10, range(2)
    core = TransformerXL(
        size, size, len(layers), num_heads=2, inner_size=32, memory_length=memory_length, backend=backend
    ).double()
    names = {"content_bias": "r_w_bias", "position_bias": "r_r_bias"}
    for layer in layers:
        names |= {f"layers.{layer}.{ours}": f"layers.{layer}.{theirs}" for ours, theirs in AUTHORS_NAMES.items()}
    core.load_state_dict({ours: golden[f"param/{theirs}"] for ours, theirs in names.items()})
    embedding = golden["param/word_emb.emb_layers.0.weight"].requires_grad_()
    softmax = [golden[f"param/crit.out_layers.0.{name}"].requires_grad_() for name in ("weight", "bias")]
    learned = [*core.parameters(), embedding, *softmax]
    theirs = [names[ours] for ours, _ in core.named_parameters()]
    theirs += ["word_emb.emb_layers.0.weight", "crit.out_layers.0.weight", "crit.out_layers.0.bias"]

    state, outputs = None, torch.zeros(3, 0, size, dtype=torch.float64)
    for segment in range(3):
        tokens, targets = golden[f"x{segment}"].T, golden[f"y{segment}"].T  # the file is time-first
        y, state = core(embedding[tokens] * size**0.5, state)
        losses = cross_entropy(linear(y, *softmax).mT, targets, reduction="none")
        assert_near(losses, golden[f"nll{segment}"].T, f"losses of segment {segment}", loss_tolerance)
        outputs = torch.cat([outputs, y.detach()], 1)
        memories = [*state.memories, outputs[:, -memory_length:]]  # theirs has the last layer's output, too
        for layer, memory in enumerate(memories):
            expected = golden[f"mem{segment}_{layer}"].transpose(0, 1)
            assert_near(memory[:, -expected.shape[1] :], expected, f"memory {layer} of segment {segment}", tolerance)
        for name, gradient in zip(theirs, torch.autograd.grad(losses.mean(), learned), strict=True):
            assert_near(gradient, golden[f"grad{segment}/{name}"], f"gradient of {name}, {segment}", tolerance)
    assert state.length.tolist() == [memory_length] * 3
