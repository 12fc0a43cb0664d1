"""Transformer-XL against the numbers of the authors' module, its sizes, and what its memory means over time."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

from fastweights import recipes
from fastweights.cores import TransformerXL, build, map_state, state_size
from fastweights.errors import UserError
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
    monkeypatch.setattr(Tensor, "masked_fill", lambda x, mask, value: masked_fill(x.float(), mask, value).to(x.dtype))
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


# Sizes


def weights(core: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in core.parameters())


def test_the_weights_of_the_paper():
    """10,523,136 with the authors' 200 tokens: embedding and softmax of V · (256 + 512), without bias."""
    as_published = recipes.load("catbabi-qa/transformer-xl", ["--task.as_published=true"])
    assert recipes.size(as_published)[0] == 10_523_136
    assert recipes.size(recipes.load("catbabi-qa/transformer-xl"))[0] == 10_523_136 - 20 * (256 + 512)


def test_the_weights_of_the_papers_language_model():
    """24,040,400 on Penn Treebank: 8 heads of 38, an inner size of 900, a tied softmax with bias, without u and v."""
    with torch.device("meta"):
        core = TransformerXL(380, 380, 16, num_heads=8, head_size=38, inner_size=900, memory_length=70)
    assert weights(core) + 10_000 * 380 + 10_000 - 2 * 8 * 38 == 24_040_400


def test_the_small_recipe_has_as_many_weights_as_the_table_allows():
    assert recipes.size(recipes.load("catbabi-qa/transformer-xl-small"))[0] <= 700_000


def test_the_state_holds_the_inputs_of_all_layers():
    assert state_size(TransformerXL(5, 6, 2, num_heads=2, memory_length=9)) == 2 * 9 * 6 + 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_size": 12, "num_heads": 5}, "hidden_size is 12 and num_heads 5, which does not divide it"),
        ({"hidden_size": 5, "num_heads": 5}, "hidden_size is 5; distances are sines and cosines"),
        ({"memory_length": 0}, "memory_length of the core .* is 0"),
        ({"memory_length": 1_000_000_000}, "each step attends to all of it"),
        ({"backend": "cpu"}, 'no backend "cpu"'),
    ],
)
def test_mistakes_are_explained(options, message):
    with pytest.raises(UserError, match=message) as caught:
        core = build({"type": "transformer-xl", "hidden_size": 8, "num_heads": 2, **options}, input_size=5)
        try:
            core(torch.zeros(1, 1, 5))
        except ValueError as error:
            raise UserError(str(error)) from error
    assert "\n" not in str(caught.value)


# Time


def some_core(memory_length: int, **options) -> TransformerXL:
    core = TransformerXL(6, 6, 3, num_heads=2, memory_length=memory_length, **options).double().eval()
    with torch.no_grad():
        for parameter in core.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return core


def outputs_in_segments(core: TransformerXL, x: Tensor, *lengths: int) -> Tensor:
    state, parts = None, []
    for part in x.split(list(lengths), 1):
        y, state = core(part, state)
        parts.append(y)
    return torch.cat(parts, 1)


@pytest.mark.parametrize("lengths", [(12,), (1,) * 12, (5, 7), (1, 10, 1)])
def test_any_cut_of_a_sequence_within_the_memory_gives_the_whole(lengths):
    """Values alone: no gradient crosses a cut."""
    core, x = some_core(memory_length=11), torch.randn(2, 12, 6, dtype=torch.float64)
    assert_near(outputs_in_segments(core, x, *lengths), core(x)[0])


def test_beyond_the_memory_a_step_sees_its_segment_and_the_memory():
    """Of one layer, the 4 steps of memory before a segment of 3, and the segment."""
    core, x = TransformerXL(6, 6, 1, num_heads=2, memory_length=4).double(), torch.randn(1, 12, 6, dtype=torch.float64)
    expected = outputs_in_segments(core, x, 3, 3, 3, 3)[0]
    for step in range(12):
        begin = step // 3 * 3
        seen = x[:, max(0, begin - 4) : begin + 3]
        assert_near(core(seen)[0][0, step - max(0, begin - 4)], expected[step], f"step {step}")


def test_what_layers_above_see_is_older():
    """Through the memory of three layers a step depends on steps three memories before its segment, and no further."""
    core, x = some_core(memory_length=4), torch.randn(1, 20, 6, dtype=torch.float64)
    expected = outputs_in_segments(core, x, *[4] * 5)
    for step, depends in ((0, False), (3, False), (4, True), (8, True)):
        changed = x.clone()
        changed[:, step] += 1
        y = outputs_in_segments(core, changed, *[4] * 5)
        assert bool((y[:, -1] - expected[:, -1]).abs().max() > 1e-12) == depends, step


def test_the_gradient_stays_in_its_segment_and_the_keys_of_the_memory_learn():
    core, x = some_core(memory_length=8), torch.randn(2, 8, 6, dtype=torch.float64)
    _, state = core(x)
    assert not any(memory.requires_grad for memory in state.memories)
    layer = core.layers[0].query_key_value.weight
    state = map_state(lambda tensor: tensor.clone().requires_grad_(), state)
    y, _ = core(x, state)
    gradients = torch.autograd.grad(y.square().sum(), [layer, *state.memories], allow_unused=True)
    assert gradients[0][6:].abs().min() > 0 and gradients[1:] == (None,) * 3


# Dropout


def test_dropout_is_for_training_alone():
    core, x = some_core(8, dropout=0.3, attention_dropout=0.3), torch.randn(2, 5, 6, dtype=torch.float64)
    assert torch.equal(core(x)[0], core(x)[0])
    core.train()
    one, other = (core(x)[0] for _ in range(2))
    assert not torch.equal(one, other)
    assert (one == 0).any() and one.isfinite().all()


@pytest.mark.parametrize("rate", ["dropout", "attention_dropout"])
def test_each_dropout_does_something(rate):
    core, x = some_core(8, **{rate: 0.5}).train(), torch.randn(2, 5, 6, dtype=torch.float64)
    assert not torch.equal(core(x)[0], core(x)[0])


# Outputs that are needed


@pytest.mark.parametrize("masked", [False, True])
def test_gradients_where_outputs_are_needed(masked):
    core, x = some_core(memory_length=5), torch.randn(3, 9, 6, dtype=torch.float64)
    masks = {"mask": torch.rand(3, 9) < 0.7, "resets": torch.rand(3, 9) < 0.2} if masked else {}
    output_mask = torch.rand(3, 9) < 0.4
    output_mask[0, 0] = True
    found = []
    for given in ({}, {"output_mask": output_mask}):
        y, _ = core(x, **masks, **given)
        found.append(torch.autograd.grad(y[output_mask].square().sum(), list(core.parameters())))
    for gradient, expected in zip(*found, strict=True):
        assert_near(gradient, expected)
