"""The compiled kernel of the Metalearned Neural Memory (csrc/mnm.cpp), forward and backward, for float32 on the CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastweights.ops import cpu
from fastweights.ops.differentiable import Named, gradients_like, states_before, time_first
from fastweights.ops.mnm.plain import KEPT, sizes
from fastweights.ops.mnm.reference import DEFINITION
from fastweights.ops.products import weight_gradient


def _empty(x: Named, keep: bool) -> dict[str, Tensor]:
    """K steps of what the gradient needs, one where there will be none; each row padded but that of interactions."""
    (B, T, H, L, m, N), new = sizes(x), x.hidden.new_empty
    K, P, M = T if keep else 1, cpu.padded(H), cpu.padded(m)
    return {
        "outputs": time_first(x.hidden, B, T, H + m),
        "meta_losses": new(B, T),
        "last_hidden": new(B, H),
        "last_cell": new(B, H),
        "last_read": new(B, m),
        "last_memory": new(B, L, m, m),
        "gates": new(K, B, 4 * P),
        "cells": new(K, B, P),
        "interactions": new(K, B, 3 * N + 1, m),
        "strengths": new(K, B),
        "activations": new(K, B, L + 1, 3 * N, M),
        "errors": new(K, B, L, N, M),
        "memories": new((T - 1) // KEPT if keep else 0, B, L, m, m),
    }


def _arguments(x: Named, keep: bool) -> cpu.MNMArguments:
    B, T, H, L, m, N = sizes(x)
    arguments = cpu.MNMArguments(B=B, T=T, H=H, m=m, heads=N, layers=L, threads=torch.get_num_threads())
    arguments.set(keep=int(keep), interval=KEPT)
    arguments.set_contiguous(**{name: y for name, y in x._asdict().items() if name != "gate_inputs"})
    return arguments


def _forward(x: Named, keep: bool) -> dict[str, Tensor]:
    return cpu.forward("mnm_forward", _arguments(x, keep), _empty(x, keep), x.mask, gate_inputs=x.gate_inputs)


def _backward(x: Named, kept: Named, d: Named, wanted: Named) -> dict[str, Tensor | None]:
    (B, T, H, L, m, N), new = sizes(x), x.hidden.new_empty
    d_gates, d_u, d_targets, d_strengths = new(T, B, 4 * H), new(T, B, (3 * N + 1) * m), new(T, B, N, L * m), new(T, B)
    states = ("hidden", "cell", "read", "memory")
    d_states = {name: cpu.initial_gradient(getattr(d, f"last_{name}"), getattr(x, name)) for name in states}
    d_initial = torch.zeros_like(d_states["memory"]) if wanted.initial_memory else None  # of each row
    arguments = _arguments(x, True)
    arguments.set(**kept._asdict(), **{f"d_{name}": gradient for name, gradient in d_states.items()})
    arguments.set(d_gates=d_gates, d_interactions=d_u, d_strengths=d_strengths, d_targets=d_targets)
    arguments.set(d_initial_memories=d_initial)
    arguments.set_sequence("d_outputs", d.outputs)
    arguments.set_contiguous(d_meta_losses=d.meta_losses)
    cpu.call("mnm_backward", arguments)
    u, outputs = kept.interactions, kept.outputs.transpose(0, 1)
    before = states_before(torch.cat([x.hidden, x.read], 1), outputs, x.resets, time=0)
    flat_targets = d_targets.flatten(0, 2)
    return {
        "gate_inputs": d_gates.transpose(0, 1),
        "recurrent_weight": weight_gradient(d_gates, before),
        "interaction_weight": weight_gradient(d_u, outputs[..., :H]),
        "interaction_bias": d_u.sum((0, 1)),
        "strength_weight": weight_gradient(d_strengths.unsqueeze(-1), u[:, :, -1]),
        "strength_bias": d_strengths.sum().view(1),
        "target_weight": weight_gradient(flat_targets, u[:, :, N : 2 * N].flatten(0, 2)),
        "target_bias": flat_targets.sum(0),
        **d_states,
        "initial_memory": None if d_initial is None else d_initial.sum(0),
    }


_mnm = DEFINITION.implement(
    "mnm_cpu",
    _forward,
    _backward,
    saved="outputs gates cells interactions strengths activations errors memories",
    empty=_empty,
    empty_gradients=lambda x: gradients_like(x, "gate_inputs"),
)


def compiled(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Compiled for this processor: float32 on the CPU.

    Arguments as of `reference`.
    """
    return _mnm(*arguments)
