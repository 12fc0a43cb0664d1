"""The fast weight memory as a function on tensors (Learning Associative Inference Using Fast Weight Memory, eq. 3–7).

`reference.py` is the definition, `chunk.py` the fast form in plain torch, `cpu.py` the same compiled; README.md
beside them derives the fast form. A backend is one entry of `BACKENDS`. In terms of linear attention: the delta rule
(DeltaNet) on products of two keys, with a decay by the norm of the state.
"""

from torch import Tensor

from fastweights.ops.backends import Backend, choose
from fastweights.ops.checks import check_masks, check_shapes, in_one_dtype
from fastweights.ops.differentiable import without_autocast
from fastweights.ops.fwm.chunk import chunkwise
from fastweights.ops.fwm.cpu import compiled, unsupported_reason
from fastweights.ops.fwm.pairing import PAIRINGS
from fastweights.ops.fwm.reference import reference
from fastweights.ops.tanh import tanh

BACKENDS = {"reference": Backend(reference), "plain": Backend(chunkwise), "cpu": Backend(compiled, unsupported_reason)}


def fast_weight_memory(
    first_keys: Tensor,
    second_keys: Tensor,
    values: Tensor,
    write_strengths: Tensor,
    first_queries: Tensor,
    second_queries: Tensor,
    memory: Tensor | None = None,
    *,
    write_scale: float = 1.0,
    tanh_first_query: bool = False,
    tanh_queries: bool = False,
    pairing: str = "product",
    output_mask: Tensor | None = None,
    mask: Tensor | None = None,
    resets: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Write T facts into a fast weight memory, and read it with a chain of queries after each write.

    At each step the memory F is written, `F' = F + s·β·(k1 ⊗ k2) ⊗ (v − v_old)`, scaled, `F = F' / max(1, ‖F'‖)`, and
    read N times in a row, `n⁽ⁱ⁾ = LN(Fᵀ(n⁽ⁱ⁻¹⁾ ⊗ e⁽ⁱ⁾))` (eq. 3, 4, 7).

    >>> import torch
    >>> k1, k2, v, n = torch.randn(4, 2, 10, 8).tanh()  # B = 2, T = 10, S = R = V = 8
    >>> beta, e = torch.rand(2, 10), torch.randn(2, 10, 3, 8).tanh()  # N = 3 reads
    >>> y, memory = fast_weight_memory(k1, k2, v, beta, n, e)
    >>> y.shape, memory.shape
    (torch.Size([2, 10, 8]), torch.Size([2, 8, 8, 8]))

    Args:
        first_keys: k1 `[B, T, S]`.
        second_keys: k2 `[B, T, R]`.
        values: v `[B, T, V]`.
        write_strengths: β `[B, T]`, between 0 and 1.
        first_queries: n⁽⁰⁾ `[B, T, S]`.
        second_queries: e⁽¹⁾ … e⁽ᴺ⁾ `[B, T, N, R]`; more than one read needs V = S.
        memory: the initial memory, `[B, S, R, V]`, or `[B, S + R, V]` with concatenated keys; zeros if not given.
        write_scale: s, 1 in the paper, 1/d in the published catbAbI code.
        tanh_first_query: put tanh on n⁽⁰⁾ (eq. 5).
        tanh_queries: put tanh on e⁽ⁱ⁾ (eq. 6).
        pairing: "product" (k1 ⊗ k2), or "concatenation" ([k1; k2], the paper's ablation, appendix E).
        output_mask: `[B, T]` bool, where an output is needed; elsewhere it is zero and costs nothing.
        mask: `[B, T]` bool, False at padding: no update, memory unchanged.
        resets: `[B, T]` bool, where a row starts from an empty memory, before that step's write.
        backend: "auto", or a name from `BACKENDS`.

    Returns:
        The read-outs n⁽ᴺ⁾ `[B, T, V]` in the values' dtype, and the final memory (float32 or wider).

    Raises:
        ValueError: if shapes do not fit each other, or a name is unknown.
    """
    if pairing not in PAIRINGS:
        raise ValueError(f"pairing is {pairing!r}; it must be one of {', '.join(PAIRINGS)}")
    if values.ndim != 3:
        raise ValueError(f"values have shape {list(values.shape)}; they must be [B, T, V]")
    B, T, V = values.shape
    S, R, N = first_keys.shape[-1], second_keys.shape[-1], second_queries.shape[-2]
    shape = (B, S, R, V) if pairing == "product" else (B, S + R, V)
    expected = {
        "first_keys": (first_keys, (B, T, S)),
        "second_keys": (second_keys, (B, T, R)),
        "write_strengths": (write_strengths, (B, T)),
        "first_queries": (first_queries, (B, T, S)),
        "second_queries": (second_queries, (B, T, N, R)),
        "memory": (memory, shape),
    }
    check_shapes(expected)
    check_masks((B, T), output_mask=output_mask, mask=mask, resets=resets)
    if N < 1 or (N > 1 and V != S):
        raise ValueError(f"{N} reads with values of size {V} and first keys of size {S}: "
                         "a memory is read at least once, and a chain of reads needs equal sizes")  # fmt: skip
    if tanh_first_query:
        first_queries = tanh(first_queries)
    if tanh_queries:
        second_queries = tanh(second_queries)

    dtype = values.dtype
    memory = None if memory is None else memory.flatten(1, -2)
    tensors = in_one_dtype((first_keys, second_keys, values, write_strengths, first_queries, second_queries, memory))
    tensors[3] = tensors[3] * write_scale
    device = values.device.type
    run = BACKENDS[choose("fwm", BACKENDS, backend, tensors, pairing, device=device)].load()
    with without_autocast(device):
        outputs, memory = run(*tensors, output_mask, mask, resets, pairing)
    return outputs.to(dtype), memory.view(shape)
