"""The RNN with fast weights that attend to its recent past (Ba et al. 2016)."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastweights.cores.contract import Core, ProjectedTokens
from fastweights.ops.fw_rnn import fast_weight_rnn
from fastweights.ops.lstm.reference import look_up
from fastweights.ops.products import linear
from fastweights.specs import Decay, Depth, NonNegative, Width


class FWRNNState(NamedTuple):
    """hidden `[B, H]`, and the fast weights A `[B, H, H]` before hidden is written to them."""

    hidden: Tensor
    memory: Tensor


class FastWeightRNN(Core):
    """A ReLU RNN that runs S inner iterations with its fast weights A at each step (Ba et al. 2016, eq. 1 and 2).

    >>> y, state = FastWeightRNN(10, hidden_size=16)(torch.randn(2, 5, 10))
    >>> y.shape, state.memory.shape
    (torch.Size([2, 5, 16]), torch.Size([2, 16, 16]))

    As in the paper, A(t) holds the hidden states before step t (public re-implementations also write the preliminary
    one of step t itself). W begins as 0.05·I, the other weights and the biases in U(±1/√H).

    Args:
        input_size: size of x.
        hidden_size: H, size of y and of the hidden state; the fast weights are H × H.
        decay: λ, the decay of the fast weights at each step.
        rate: η, the fast weights' learning rate.
        inner_steps: S, inner iterations at each step.
        bias: add two biases, as torch's cells have (Keller et al.'s counts).
        backend: which implementation of the recurrence runs; see `fastweights doctor`.
    """

    input_bias: nn.Parameter | None
    recurrent_bias: nn.Parameter | None

    def __init__(
        self,
        input_size: int,
        hidden_size: Width = 50,
        *,
        decay: Decay = 0.95,
        rate: NonNegative = 0.5,
        inner_steps: Depth = 1,
        bias: bool = True,
        backend: str = "auto",
    ):
        super().__init__()
        self.input_size, self.output_size = input_size, hidden_size
        self.options: dict[str, Any] = {"decay": decay, "rate": rate, "inner_steps": inner_steps, "backend": backend}
        bound = 1 / math.sqrt(hidden_size)
        self.input_weight = nn.Parameter(torch.empty(hidden_size, input_size).uniform_(-bound, bound))
        self.recurrent_weight = nn.Parameter(0.05 * torch.eye(hidden_size))
        for name in ("input_bias", "recurrent_bias"):
            drawn = nn.Parameter(torch.empty(hidden_size).uniform_(-bound, bound)) if bias else None
            self.register_parameter(name, drawn)
        self.norm = nn.LayerNorm(hidden_size)

    def initial_state(self, batch_size: int) -> FWRNNState:
        H = self.output_size
        return FWRNNState(self.norm.bias.new_zeros(batch_size, H), self.norm.bias.new_zeros(batch_size, H, H))

    def input_projection(self, x: Tensor) -> Tensor:
        """The input `[…, H]` of the recurrent part from x `[…, input_size]` and the biases."""
        bias = None
        if self.input_bias is not None and self.recurrent_bias is not None:
            bias = self.input_bias + self.recurrent_bias
        return linear(x, self.input_weight, bias)

    def forward(
        self,
        x: Tensor | ProjectedTokens,
        state: FWRNNState | None = None,
        *,
        output_mask: Tensor | None = None,
        mask: Tensor | None = None,
        resets: Tensor | None = None,
    ) -> tuple[Tensor, FWRNNState]:
        """Map x `[B, T, input_size]` to y `[B, T, output_size]`; arguments as in `fastweights.cores.contract`."""
        inputs = look_up(*x) if isinstance(x, ProjectedTokens) else self.input_projection(x)
        if state is None:  # its H² zeros a row need not be made
            zeros = self.norm.bias.new_zeros(())
            B, H = inputs.shape[0], self.output_size
            state = FWRNNState(zeros.expand(B, H), zeros.expand(B, H, H))
        weights = (self.recurrent_weight, self.norm.weight, self.norm.bias)
        y, hidden, memory = fast_weight_rnn(inputs, *weights, *state, mask=mask, resets=resets, **self.options)
        return y, FWRNNState(hidden, memory)
