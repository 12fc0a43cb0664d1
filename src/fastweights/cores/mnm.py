"""The plastic Metalearned Neural Memory, MNM-p (Munkhdalai et al. 2019), as the FWM paper's catbAbI baseline has it."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastweights.cores.contract import Core, Losses, ProjectedTokens, apply_where
from fastweights.ops.lstm.reference import look_up
from fastweights.ops.mnm import metalearned_memory
from fastweights.ops.mnm.plain import KEPT
from fastweights.ops.products import Linear, linear
from fastweights.specs import Depth, NonNegative, Width


class MNMState(NamedTuple):
    """hidden and cell `[B, H]`, the last read-out `[B, m]`, and the memory's matrices `[B, L, m, m]`."""

    hidden: Tensor
    cell: Tensor
    read: Tensor
    memory: Tensor


class MetalearnedMemory(Core):
    """An LSTM that learns to train a small network, its memory, and to read it (equations: `ops.mnm`).

    >>> y, state = MetalearnedMemory(10, hidden_size=16, memory_size=8)(torch.randn(2, 5, 10))
    >>> y.shape, state.memory.shape
    (torch.Size([2, 5, 16]), torch.Size([2, 3, 8, 8]))

    y is a linear layer on h_t and the read-out v_t. The mean of the meta losses over all steps is the term "meta" of
    the loss. All weights begin as those of torch's layers do, and the initial memory in U(±1/√m); it is not trained.

    Args:
        input_size: size of x.
        hidden_size: H, size of y, of the hidden and of the cell state.
        memory_size: m, size of keys, values and the memory's layers.
        num_layers: L, layers of the memory.
        num_heads: N, keys written and keys read at each step.
        meta_loss_weight: weight of the term "meta" of the loss.
        backend: which implementation of the recurrence runs; see `fastweights doctor`.
    """

    input_weight: nn.Parameter
    recurrent_weight: nn.Parameter
    input_bias: nn.Parameter
    recurrent_bias: nn.Parameter
    initial_memory: Tensor

    def __init__(
        self,
        input_size: int,
        hidden_size: Width = 256,
        memory_size: Width = 100,
        num_layers: Depth = 3,
        num_heads: Depth = 3,
        *,
        meta_loss_weight: NonNegative = 1.0,
        backend: str = "auto",
    ):
        super().__init__()
        self.input_size, self.output_size, self.memory_size = input_size, hidden_size, memory_size
        self.meta_loss_weight, self.backend = meta_loss_weight, backend
        gates, bound = 4 * hidden_size, 1 / math.sqrt(hidden_size)
        shapes = {
            "input_weight": (gates, input_size),
            "recurrent_weight": (gates, hidden_size + memory_size),  # of h and the read-out
            "input_bias": (gates,),
            "recurrent_bias": (gates,),
        }
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.empty(shape).uniform_(-bound, bound)))
        self.interaction = Linear(hidden_size, (3 * num_heads + 1) * memory_size)  # k_w, v_w, k_r, u_β
        self.strength = Linear(memory_size, 1)
        self.targets = Linear(memory_size, num_layers * memory_size)
        self.output = Linear(hidden_size + memory_size, hidden_size)
        bound = 1 / math.sqrt(memory_size)
        initial = torch.empty(num_layers, memory_size, memory_size).uniform_(-bound, bound)
        self.register_buffer("initial_memory", initial)

    def initial_state(self, batch_size: int) -> MNMState:
        zeros = self.initial_memory.new_zeros(batch_size, self.output_size)
        memory = self.initial_memory.repeat(batch_size, 1, 1, 1)
        return MNMState(zeros, zeros.clone(), zeros.new_zeros(batch_size, self.memory_size), memory)

    def kept_elements(self, steps: int) -> int:
        """With the memory: the first, every few, the last, that of the step and its gradient."""
        return super().kept_elements(steps) + (steps // KEPT + 3) * self.initial_memory.numel()

    def input_projection(self, x: Tensor) -> Tensor:
        """The gates' input `[…, 4·H]` from x `[…, input_size]` and the biases."""
        return linear(x, self.input_weight, self.input_bias + self.recurrent_bias)

    def forward(
        self,
        x: Tensor | ProjectedTokens,
        state: MNMState | None = None,
        *,
        output_mask: Tensor | None = None,
        mask: Tensor | None = None,
        resets: Tensor | None = None,
        losses: Losses | None = None,
    ) -> tuple[Tensor, MNMState]:
        """Map x `[B, T, input_size]` to y `[B, T, output_size]`; arguments as in `fastweights.cores.contract`."""
        gates = look_up(*x) if isinstance(x, ProjectedTokens) else self.input_projection(x)
        state = self.initial_state(gates.shape[0]) if state is None else state
        interaction, strength, targets = self.interaction, self.strength, self.targets
        h_and_v, meta_losses, *last = metalearned_memory(
            gates,
            self.recurrent_weight,
            *(interaction.weight, interaction.bias, strength.weight, strength.bias, targets.weight, targets.bias),
            *state,
            self.initial_memory,
            mask=mask,
            resets=resets,
            backend=self.backend,
        )
        if losses is not None:
            steps = meta_losses.numel() if mask is None else mask.sum().clamp_min(1)
            losses.add("meta", self.meta_loss_weight * meta_losses.sum() / steps)
        return apply_where(output_mask, self.output, h_and_v), MNMState(*last)
