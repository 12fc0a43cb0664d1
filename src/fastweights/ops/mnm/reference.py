"""The definition: the equations of MNM-p (Munkhdalai et al. 2019), one step at a time."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

from fastweights.ops.differentiable import Definition


def num_heads(interaction_weight: Tensor, key_size: int) -> int:
    """N, from the weight of the interaction `[(3·N + 1)·m, H]` and m."""
    return interaction_weight.shape[0] // key_size // 3


def activations(keys: Tensor, memory: Tensor) -> list[Tensor]:
    """z_0 … z_L of the memory for keys z_0 `[B, N, m]`; z_L is what it returns."""
    *hidden_layers, last = memory.unbind(1)
    z = [keys]
    for W in hidden_layers:
        z.append((z[-1] @ W.mT).tanh())
    return [*z, z[-1] @ last.mT]


def reference(
    gate_inputs: Tensor,
    recurrent_weight: Tensor,
    interaction_weight: Tensor,
    interaction_bias: Tensor,
    strength_weight: Tensor,
    strength_bias: Tensor,
    target_weight: Tensor,
    target_bias: Tensor,
    hidden: Tensor,
    cell: Tensor,
    read: Tensor,
    memory: Tensor,
    initial_memory: Tensor,
    mask: Tensor | None,
    resets: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The equations step by step: slow, for tests and second derivatives."""
    h, c, v, W = hidden, cell, read, memory
    L, m = W.shape[1:3]
    N = num_heads(interaction_weight, m)
    outputs, meta_losses = [], []
    for t in range(gate_inputs.shape[1]):
        if resets is not None:
            h, c, v = (x.masked_fill(resets[:, t, None], 0) for x in (h, c, v))
            W = torch.where(resets[:, t, None, None, None], initial_memory, W)
        # the controller
        i, f, g, o = (gate_inputs[:, t] + torch.cat([h, v], 1) @ recurrent_weight.T).chunk(4, -1)
        new_c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        new_h = o.sigmoid() * new_c.tanh()
        u = linear(new_h, interaction_weight, interaction_bias).tanh().unflatten(1, (3 * N + 1, m))
        k_w, v_w, k_r, u_beta = u.split([N, N, N, 1], 1)
        beta = linear(u_beta, strength_weight, strength_bias).sigmoid()
        # the write, of all layers from the same forward pass
        z = activations(k_w, W)
        targets = linear(v_w, target_weight, target_bias).chunk(L, -1)
        errors = [z_l - target for z_l, target in zip(z[1:], targets, strict=True)]
        written = [(error.mT @ (beta * before)) for error, before in zip(errors, z[:-1], strict=True)]
        new_W = W - 2 / (N * m) * torch.stack(written, 1)
        # the read
        new_v = activations(k_r, new_W)[-1].mean(1)
        meta_loss = (activations(k_w, new_W)[-1] - v_w).square().mean((1, 2))
        if mask is not None:
            passes = mask[:, t, None]
            new_h, new_c, new_v = (torch.where(passes, *x) for x in ((new_h, h), (new_c, c), (new_v, v)))
            new_W = torch.where(passes[..., None, None], new_W, W)
            meta_loss = torch.where(mask[:, t], meta_loss, 0.0)
        h, c, v, W = new_h, new_c, new_v, new_W
        outputs.append(torch.cat([h, v], 1))
        meta_losses.append(meta_loss)
    return torch.stack(outputs, 1), torch.stack(meta_losses, 1), h, c, v, W


DEFINITION = Definition(
    reference,
    inputs="gate_inputs recurrent_weight interaction_weight interaction_bias strength_weight strength_bias "
    "target_weight target_bias hidden cell read memory initial_memory",
    results="outputs meta_losses last_hidden last_cell last_read last_memory",
)
