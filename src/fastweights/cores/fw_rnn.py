"""The RNN with fast weights that attend to its recent past (Ba et al. 2016)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from fastweights.cores.contract import Core
from fastweights.ops.fw_rnn import fast_weight_rnn
from fastweights.ops.lstm.reference import look_up


class FWRNNState(NamedTuple):
    """hidden `[B, H]`, and the fast weights A `[B, H, H]` before it is written to them."""

    hidden: Tensor
    memory: Tensor


class FastWeightRNN(Core):
    """A ReLU RNN whose every step settles in S inner steps under its fast weights A (Ba et al. 2016, eq. 1 and 2).

    >>> y, state = FastWeightRNN(10, hidden_size=16)(torch.randn(2, 5, 10))
    >>> y.shape, state.memory.shape
    (torch.Size([2, 5, 16]), torch.Size([2, 16, 16]))

    As in the paper, A(t) holds the hidden states before step t (public re-implementations also write the preliminary
    one of step t itself). W begins as 0.05·I, the other weights and the biases in U(±1/√H).

    Args:
        input_size: size of x.
        hidden_size: H, size of y and of the hidden state; the fast weights are H × H.
        decay: λ, the part of the fast weights that a step leaves.
        rate: η, the fast weights' learning rate.
        inner_steps: S, how often the fast weights are read in a step.
        bias: have two biases beside the layer norm's own, as torch's cells do (Keller et al.'s counts).
        backend: which implementation of the recurrence runs; see `fastweights doctor`.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int = 50,
        *,
        decay: float = 0.95,
        rate: float = 0.5,
        inner_steps: int = 1,
        bias: bool = True,
        backend: str = "auto",
    ):
        super().__init__()
        self.input_size, self.output_size = input_size, hidden_size
        self.options = {"decay": decay, "rate": rate, "inner_steps": inner_steps, "backend": backend}
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
        """What x `[…, input_size]` and the biases give, `[…, H]`."""
        bias = None if self.input_bias is None else self.input_bias + self.recurrent_bias
        return linear(x, self.input_weight, bias)

    def forward(
        self,
        x: Tensor,
        state: FWRNNState | None = None,
        *,
        reads: Tensor | None = None,
        valid: Tensor | None = None,
        resets: Tensor | None = None,
        tokens: Tensor | None = None,
    ) -> tuple[Tensor, FWRNNState]:
        """Read x `[B, T, input_size]`; see `fastweights.cores.contract`."""
        inputs = look_up(self.input_projection(x) if tokens is None else x, tokens)
        state = self.initial_state(inputs.shape[0]) if state is None else state
        weights = (self.recurrent_weight, self.norm.weight, self.norm.bias)
        y, *state = fast_weight_rnn(inputs, *weights, *state, valid=valid, resets=resets, **self.options)
        return y, FWRNNState(*state)
