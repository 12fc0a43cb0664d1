"""The recurrent part of the fast weight RNN as a function on tensors (Ba et al. 2016, eq. 1 and 2, and its layer norm).

    A_t = λ A_{t−1} + η h_{t−1} h_{t−1}ᵀ
    z_t = W h_{t−1} + x_t                        x_t: the input, projected beforehand for all steps at once
    h_{t,0} = ReLU(z_t)
    h_{t,s+1} = ReLU(LN[z_t + A_t h_{t,s}])      s = 0 … S−1
    h_t = h_{t,S}

`reference.py` is the definition, `plain.py` runs it without forming A_t at each step, its gradient written out, and
`cpu.py` compiled. A backend is one entry of `BACKENDS`.
"""

from __future__ import annotations

from torch import Tensor

from fastweights.ops.backends import Backend, run
from fastweights.ops.checks import check_masks, check_shapes
from fastweights.ops.cpu import unsupported_reason
from fastweights.ops.fw_rnn.cpu import compiled
from fastweights.ops.fw_rnn.plain import plain
from fastweights.ops.fw_rnn.reference import reference
from fastweights.ops.outer_product import chunk_length

BACKENDS = {"reference": Backend(reference), "plain": Backend(plain), "cpu": Backend(compiled, unsupported_reason)}


def fast_weight_rnn(
    inputs: Tensor,
    recurrent_weight: Tensor,
    gain: Tensor,
    bias: Tensor,
    hidden: Tensor,
    memory: Tensor,
    *,
    decay: float = 0.95,
    rate: float = 0.5,
    inner_steps: int = 1,
    mask: Tensor | None = None,
    resets: Tensor | None = None,
    chunk: int | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """Run the recurrent part of a fast weight RNN over T steps.

    >>> import torch
    >>> x, gain, bias = torch.randn(2, 10, 16), torch.ones(16), torch.zeros(16)
    >>> y, *state = fast_weight_rnn(x, 0.05 * torch.eye(16), gain, bias, torch.zeros(2, 16), torch.zeros(2, 16, 16))
    >>> y.shape
    torch.Size([2, 10, 16])

    Args:
        inputs: the projected input with the biases, `[B, T, H]`.
        recurrent_weight: W `[H, H]`.
        gain, bias: of the layer norm, `[H]`.
        hidden: h_0 `[B, H]`.
        memory: the fast weights before h_0 is written to them, `[B, H, H]`.
        decay: λ.
        rate: η.
        inner_steps: S, at least 1.
        mask: `[B, T]` bool, False at padding: no update, state unchanged.
        resets: `[B, T]` bool, where a row starts from zeros, before that step.
        chunk: after how many steps A is formed (by the backends plain and cpu); None chooses by length
            (`fastweights.ops.outer_product.chunk_length`). The result is the same.
        backend: "auto", or a name from `BACKENDS`.

    Returns:
        h_1 … h_T `[B, T, H]`, h_T, and the fast weights before h_T is written to them.

    Raises:
        ValueError: if shapes do not fit each other, S is below 1, or the backend is unknown.
    """
    B, T, H = inputs.shape
    if inner_steps < 1:
        raise ValueError(f"inner_steps is {inner_steps}; the fast weights must be read at least once a step")
    check_shapes(
        {
            "recurrent_weight": (recurrent_weight, (H, H)),
            "gain": (gain, (H,)),
            "bias": (bias, (H,)),
            "hidden": (hidden, (B, H)),
            "memory": (memory, (B, H, H)),
        }
    )
    check_masks((B, T), mask=mask, resets=resets)
    tensors = (inputs, recurrent_weight, gain, bias, hidden, memory)
    others = (mask, resets, decay, rate, inner_steps, chunk or chunk_length(T, H))
    y, *state = run("fw_rnn", BACKENDS, backend, tensors, *others)
    return y.to(inputs.dtype), *state
