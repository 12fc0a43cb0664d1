"""The recurrent part of the fast weight LSTM as a function on tensors (Keller, Sridhar & Wang 2018).

    (i f o ĝ) = LN[W h_{t−1} + x_t]             x_t: the gates' input, projected beforehand for all steps at once
    g   = ReLU(ĝ)
    A_t = λ A_{t−1} + η g gᵀ
    c_t = LN[σ(f) ⊙ c_{t−1} + σ(i) ⊙ ReLU(ĝ + A_t g)]
    h_t = σ(o) ⊙ ReLU(c_t)

Without A_t g it is the layer-normalised LSTM. `reference.py` is the definition, `plain.py` runs it without forming A_t
at each step, its gradient written out, `cpu.py` compiled. A backend is one entry of `BACKENDS`.
"""

from __future__ import annotations

from torch import Tensor

from fastweights.ops.backends import Backend, run
from fastweights.ops.checks import check_masks, check_shapes
from fastweights.ops.cpu import unsupported_reason
from fastweights.ops.fw_lstm.cpu import compiled
from fastweights.ops.fw_lstm.plain import plain
from fastweights.ops.fw_lstm.reference import reference
from fastweights.ops.outer_product import chunk_length

BACKENDS = {"reference": Backend(reference), "plain": Backend(plain), "cpu": Backend(compiled, unsupported_reason)}


def fast_weight_lstm(
    gate_inputs: Tensor,
    recurrent_weight: Tensor,
    gates_gain: Tensor,
    gates_bias: Tensor,
    cell_gain: Tensor,
    cell_bias: Tensor,
    hidden: Tensor,
    cell: Tensor,
    memory: Tensor | None = None,
    *,
    decay: float = 1.0,
    rate: float = 1.0,
    mask: Tensor | None = None,
    resets: Tensor | None = None,
    chunk: int | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Run the recurrent part of a fast weight LSTM, or without memory of a layer-normalised one, over T steps.

    >>> import torch
    >>> x, weight, gain, bias = torch.randn(2, 10, 64), torch.randn(64, 16), torch.ones(64), torch.zeros(64)
    >>> zeros = torch.zeros(2, 16)
    >>> y, *state = fast_weight_lstm(
    ...     x, weight, gain, bias, gain[:16], bias[:16], zeros, zeros, torch.zeros(2, 16, 16)
    ... )
    >>> y.shape
    torch.Size([2, 10, 16])

    Args:
        gate_inputs: the projected input of the gates i, f, o, g in this order, with the biases, `[B, T, 4·H]`.
        recurrent_weight: W `[4·H, H]`.
        gates_gain, gates_bias: of the layer norm over all gates, `[4·H]`.
        cell_gain, cell_bias: of the layer norm of the cell, `[H]`.
        hidden: h_0 `[B, H]`.
        cell: c_0 `[B, H]`.
        memory: A_0 `[B, H, H]`, or None for no fast weights.
        decay: λ.
        rate: η.
        mask: `[B, T]` bool, False at padding: no update, state unchanged.
        resets: `[B, T]` bool, where a row starts from zeros, before that step.
        chunk: after how many steps A is formed (by the backends plain and cpu); None chooses by length
            (`fastweights.ops.outer_product.chunk_length`). The result is the same.
        backend: "auto", or a name from `BACKENDS`.

    Returns:
        h_1 … h_T `[B, T, H]`, h_T, c_T and A_T (or None).

    Raises:
        ValueError: if shapes do not fit each other, or the backend is unknown.
    """
    H = recurrent_weight.shape[-1]
    B, T = gate_inputs.shape[:2]
    check_shapes(
        {
            "recurrent_weight": (recurrent_weight, (4 * H, H)),
            "gate_inputs": (gate_inputs, (B, T, 4 * H)),
            "gates_gain": (gates_gain, (4 * H,)),
            "gates_bias": (gates_bias, (4 * H,)),
            "cell_gain": (cell_gain, (H,)),
            "cell_bias": (cell_bias, (H,)),
            "hidden": (hidden, (B, H)),
            "cell": (cell, (B, H)),
            "memory": (memory, (B, H, H)),
        }
    )
    check_masks((B, T), mask=mask, resets=resets)
    tensors = (gate_inputs, recurrent_weight, gates_gain, gates_bias, cell_gain, cell_bias, hidden, cell, memory)
    others = (mask, resets, decay, rate, chunk or chunk_length(T, H))
    y, hidden, cell, last = run("fw_lstm", BACKENDS, backend, tensors, *others)
    return y.to(gate_inputs.dtype), hidden, cell, None if memory is None else last
