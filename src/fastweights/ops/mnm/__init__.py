"""The plastic Metalearned Neural Memory, MNM-p, as a function on tensors (Munkhdalai et al. 2019).

The memory is a network f of L matrices W_l `[m, m]`: z_0 = k, z_l = tanh(W_l z_{l−1}), and W_L z_{L−1} is what it
returns. At each step a controller writes with it, by one step of gradient descent towards targets z' of all its layers,
and reads from it, with N heads:

    h_t, c_t = LSTM([x_t; v_{t−1}])             x_t: projected beforehand for all steps at once
    k_w, v_w, k_r, u_β = tanh(W_int h_t + b_int)       k_w, v_w and k_r for each head
    β = σ(w·u_β + b_β)
    z'_1, …, z'_L = W_z v_w + b_z
    W_l ← W_l − 2/(N·m) Σ_heads (z_l − z'_l) ⊗ β z_{l−1}      z: of k_w, all by the old W
    v_t = mean over heads f(k_r; W)             by the new W
    meta loss = mean over heads and m of (f(k_w; W) − v_w)²

`reference.py` is the definition, `plain.py` runs it with one pass through the memory a step and its gradient written
out, `cpu.py` the same compiled. A backend is one entry of `BACKENDS`.
"""

from __future__ import annotations

from torch import Tensor

from fastweights.ops.backends import Backend, run
from fastweights.ops.checks import check_masks, check_shapes
from fastweights.ops.cpu import unsupported_reason
from fastweights.ops.mnm.cpu import compiled
from fastweights.ops.mnm.plain import plain
from fastweights.ops.mnm.reference import num_heads, reference

BACKENDS = {"reference": Backend(reference), "plain": Backend(plain), "cpu": Backend(compiled, unsupported_reason)}


def metalearned_memory(
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
    *,
    mask: Tensor | None = None,
    resets: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Run the plastic Metalearned Neural Memory over T steps.

    >>> import torch
    >>> B, T, H, m, N, L = 2, 10, 16, 8, 3, 3
    >>> x, recurrent_weight, initial = torch.randn(B, T, 4 * H), torch.randn(4 * H, H + m), torch.randn(L, m, m) / 4
    >>> layers = torch.nn.Linear(H, (3 * N + 1) * m), torch.nn.Linear(m, 1), torch.nn.Linear(m, L * m)
    >>> slow = [recurrent_weight, *(y for layer in layers for y in layer.parameters())]
    >>> state = [torch.zeros(B, H), torch.zeros(B, H), torch.zeros(B, m), initial.repeat(B, 1, 1, 1)]
    >>> y, meta_losses, *state = metalearned_memory(x, *slow, *state, initial)
    >>> y.shape, meta_losses.shape
    (torch.Size([2, 10, 24]), torch.Size([2, 10]))

    Args:
        gate_inputs: the projected input of the gates i, f, g, o in this order, with the biases, `[B, T, 4·H]`.
        recurrent_weight: of the LSTM, for `[h; v]`, `[4·H, H + m]`.
        interaction_weight, interaction_bias: W_int `[(3·N + 1)·m, H]` and b_int, for k_w of all heads, v_w, k_r, u_β.
        strength_weight, strength_bias: w `[1, m]` and b_β `[1]`.
        target_weight, target_bias: W_z `[L·m, m]` and b_z.
        hidden: h_0 `[B, H]`.
        cell: c_0 `[B, H]`.
        read: v_0 `[B, m]`.
        memory: W_1 … W_L before the first step `[B, L, m, m]`.
        initial_memory: W_1 … W_L after a reset `[L, m, m]`.
        mask: `[B, T]` bool, False at padding: no update, state unchanged, meta loss 0.
        resets: `[B, T]` bool, where a row starts from zeros and `initial_memory`, before that step.
        backend: "auto", or a name from `BACKENDS`.

    Returns:
        h_t and v_t beside each other `[B, T, H + m]`, the meta losses `[B, T]`, and h_T, c_T, v_T and W_1 … W_L.

    Raises:
        ValueError: if shapes do not fit each other, or the backend is unknown.
    """
    (B, T), (L, m) = gate_inputs.shape[:2], memory.shape[1:3]
    H, N = hidden.shape[-1], max(1, num_heads(interaction_weight, m))
    check_shapes(
        {
            "gate_inputs": (gate_inputs, (B, T, 4 * H)),
            "recurrent_weight": (recurrent_weight, (4 * H, H + m)),
            "interaction_weight": (interaction_weight, ((3 * N + 1) * m, H)),
            "interaction_bias": (interaction_bias, ((3 * N + 1) * m,)),
            "strength_weight": (strength_weight, (1, m)),
            "strength_bias": (strength_bias, (1,)),
            "target_weight": (target_weight, (L * m, m)),
            "target_bias": (target_bias, (L * m,)),
            "hidden": (hidden, (B, H)),
            "cell": (cell, (B, H)),
            "read": (read, (B, m)),
            "memory": (memory, (B, L, m, m)),
            "initial_memory": (initial_memory, (L, m, m)),
        }
    )
    check_masks((B, T), mask=mask, resets=resets)
    tensors = (
        gate_inputs, recurrent_weight, interaction_weight, interaction_bias, strength_weight, strength_bias,
        target_weight, target_bias, hidden, cell, read, memory, initial_memory,
    )  # fmt: skip
    y, meta_losses, *state = run("mnm", BACKENDS, backend, tensors, mask, resets)
    return y.to(gate_inputs.dtype), meta_losses, *state
