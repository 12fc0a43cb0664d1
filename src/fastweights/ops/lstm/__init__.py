"""The LSTM's recurrent part as a function on tensors (Hochreiter & Schmidhuber 1997; Gers et al. 2000).

    (i, f, g, o) = x_t + W h_{t−1}             x_t: the gates' input, projected beforehand for all steps at once
    c_t = σ(f) ⊙ c_{t−1} + σ(i) ⊙ tanh(g)
    h_t = σ(o) ⊙ tanh(c_t)

`reference.py` is the definition, `plain.py` runs it in whole gates with its gradient written out, `cpu.py` compiled. A
backend is one entry of `BACKENDS`.
"""

import torch
from torch import Tensor

from fastweights.ops.backends import Backend, run
from fastweights.ops.checks import bfloat16_products, check_masks, check_shapes
from fastweights.ops.lstm.cpu import compiled, unsupported_reason
from fastweights.ops.lstm.plain import plain
from fastweights.ops.lstm.reference import reference

BACKENDS = {"reference": Backend(reference), "plain": Backend(plain), "cpu": Backend(compiled, unsupported_reason)}


def lstm(
    gate_inputs: Tensor,
    recurrent_weight: Tensor,
    hidden: Tensor,
    cell: Tensor,
    *,
    mask: Tensor | None = None,
    resets: Tensor | None = None,
    tokens: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """Run the recurrent part of an LSTM over T steps.

    >>> x, weight = torch.randn(2, 10, 4 * 16), torch.randn(4 * 16, 16)
    >>> y, hidden, cell = lstm(x, weight, torch.zeros(2, 16), torch.zeros(2, 16))
    >>> y.shape
    torch.Size([2, 10, 16])

    Args:
        gate_inputs: the projected input of the gates i, f, g, o in this order, with the bias, `[B, T, 4·H]`; or, with
            `tokens`, a table `[V, 4·H]` with a row for each token of a vocabulary.
        recurrent_weight: W `[4·H, H]`.
        hidden: h_0 `[B, H]`.
        cell: c_0 `[B, H]`.
        mask: `[B, T]` bool, False at padding: no update, state unchanged.
        resets: `[B, T]` bool, where a row starts from zeros, before that step.
        tokens: `[B, T]` int64, row indices into `gate_inputs`.
        backend: "auto", or a name from `BACKENDS`.

    Under autocast in bfloat16 on the CPU, the products with W may take their operands in bfloat16; sums and states stay
    float32.

    Returns:
        h_1 … h_T `[B, T, H]`, h_T and c_T.

    Raises:
        IndexError: if a token is not in the vocabulary.
        ValueError: if shapes do not fit each other, or the backend is unknown.
    """
    H = recurrent_weight.shape[-1]
    if tokens is None and gate_inputs.ndim == 3:
        B, T, _ = expected = (*gate_inputs.shape[:2], 4 * H)
    elif tokens is not None and tokens.ndim == 2 and gate_inputs.ndim == 2:
        (B, T), expected = tokens.shape, (gate_inputs.shape[0], 4 * H)
        _check_tokens(tokens, gate_inputs.shape[0])
    else:
        raise ValueError(
            f"gate_inputs have shape {list(gate_inputs.shape)}; "
            "they must be [B, T, 4·H], or [V, 4·H] with tokens [B, T]"
        )
    check_shapes(
        {
            "recurrent_weight": (recurrent_weight, (4 * H, H)),
            "gate_inputs": (gate_inputs, expected),
            "hidden": (hidden, (B, H)),
            "cell": (cell, (B, H)),
        }
    )
    check_masks((B, T), mask=mask, resets=resets)
    tensors = (gate_inputs, recurrent_weight, hidden, cell)
    half = bfloat16_products(gate_inputs.device.type)
    y, hidden, cell = run("lstm", BACKENDS, backend, tensors, mask, resets, tokens, half)
    return y.to(gate_inputs.dtype), hidden, cell


def _check_tokens(tokens: Tensor, vocabulary_size: int) -> None:
    if tokens.dtype != torch.int64:
        raise ValueError(f"tokens are {tokens.dtype}; they must be torch.int64")
    looking_is_cheap = tokens.device.type == "cpu" and not torch.compiler.is_compiling()
    if looking_is_cheap and tokens.numel():
        least, most = (int(x) for x in torch.aminmax(tokens))
        if least < 0 or most >= vocabulary_size:
            raise IndexError(f"tokens lie between {least} and {most}; the vocabulary has {vocabulary_size}")
