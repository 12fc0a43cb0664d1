"""MNM-p as a core: its equations written out in NumPy, its sizes, and its initial memory."""

import numpy as np
import pytest
import torch

from fastweights.cores import Losses, MetalearnedMemory, state_size
from fastweights.models import TokenModel
from tolerances import assert_near


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def recall(W, k):
    """z_0 … z_L of the memory for one key."""
    z = [k]
    for layer, matrix in enumerate(W):
        z.append(matrix @ z[-1])
        if layer < len(W) - 1:
            z[-1] = np.tanh(z[-1])
    return z


def step_by_step(core, x, state, mask, resets):
    """y, the meta loss and the last state, row by row, step by step and head by head."""
    p = {name: value.detach().numpy() for name, value in core.state_dict().items()}
    (B, T, _), H, m = x.shape, core.output_size, core.memory_size
    N = p["interaction.weight"].shape[0] // m // 3
    y, meta_losses, last = np.zeros((B, T, H)), [], []
    for row in range(B):
        h, c, v, W = (part[row].numpy().copy() for part in state)
        for t in range(T):
            if resets[row, t]:
                h, c, v, W = np.zeros(H), np.zeros(H), np.zeros(m), p["initial_memory"].copy()
            if mask[row, t]:
                gates = p["input_weight"] @ x[row, t].numpy() + p["input_bias"] + p["recurrent_bias"]
                gates = gates + p["recurrent_weight"][:, :H] @ h + p["recurrent_weight"][:, H:] @ v
                i, f, g, o = np.split(gates, 4)
                c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
                h = sigmoid(o) * np.tanh(c)
                u = np.tanh(p["interaction.weight"] @ h + p["interaction.bias"]).reshape(3 * N + 1, m)
                writing, values, reading, u_beta = u[:N], u[N : 2 * N], u[2 * N : 3 * N], u[3 * N]
                beta = sigmoid(p["strength.weight"][0] @ u_beta + p["strength.bias"][0])
                new_W = W.copy()
                for k_w, v_w in zip(writing, values, strict=True):
                    z = recall(W, k_w)
                    targets = np.split(p["targets.weight"] @ v_w + p["targets.bias"], len(W))
                    for layer, target in enumerate(targets):
                        new_W[layer] -= 2 / (N * m) * np.outer(z[layer + 1] - target, beta * z[layer])
                W = new_W
                v = np.mean([recall(W, k_r)[-1] for k_r in reading], axis=0)
                errors = [recall(W, k_w)[-1] - v_w for k_w, v_w in zip(writing, values, strict=True)]
                meta_losses.append(np.mean(np.square(errors)))
            y[row, t] = p["output.weight"] @ np.concatenate([h, v]) + p["output.bias"]
        last.append((h, c, v, W))
    return y, np.mean(meta_losses), [np.stack(part) for part in zip(*last, strict=True)]


@pytest.mark.parametrize("backend", ["reference", "plain"])
@pytest.mark.parametrize(("layers", "heads"), [(3, 3), (1, 2), (2, 1)])
@pytest.mark.parametrize("masked", [False, True])
def test_the_equations_written_out(backend, layers, heads, masked):
    core = MetalearnedMemory(5, 7, 6, layers, heads, meta_loss_weight=2.0, backend=backend).double()
    x = torch.randn(3, 19, 5, dtype=torch.float64)
    mask = torch.rand(3, 19) < 0.8 if masked else torch.ones(3, 19, dtype=torch.bool)
    resets = torch.rand(3, 19) < (0.1 if masked else 0)
    state = type(core.initial_state(1))(*(torch.randn_like(part) / 3 for part in core.initial_state(3)))
    losses = Losses()
    y, last = core(x, state, mask=mask, resets=resets, losses=losses)
    expected, meta_loss, expected_last = step_by_step(core, x, state, mask, resets)
    assert_near(y[mask], torch.from_numpy(expected)[mask], tolerance=1e-9)
    assert losses["meta"].item() == pytest.approx(2 * meta_loss, rel=1e-9)
    for part, wanted in zip(last, expected_last, strict=True):
        assert_near(part, torch.from_numpy(wanted), tolerance=1e-9)


def test_as_many_weights_as_in_the_paper():
    """The paper's 30,512 activations are h, c and the memory; the read-out that is carried adds 100."""
    core = MetalearnedMemory(256)
    assert sum(parameter.numel() for parameter in TokenModel(200, core).parameters()) == 1_109_929
    assert state_size(core) == 30_512 + 100


def test_the_initial_memory_is_kept_and_not_trained():
    core, other = MetalearnedMemory(3, 4, 5), MetalearnedMemory(3, 4, 5)
    assert not torch.equal(core.initial_memory, other.initial_memory)
    other.load_state_dict(core.state_dict())
    assert torch.equal(other.initial_state(2).memory, core.initial_memory.expand(2, 3, 5, 5))
    assert "initial_memory" not in dict(core.named_parameters())


def test_without_steps_the_meta_loss_is_zero():
    core, losses = MetalearnedMemory(3, 4, 5), Losses()
    core(torch.randn(2, 3, 3), mask=torch.zeros(2, 3, dtype=torch.bool), losses=losses)
    assert losses["meta"].item() == 0
