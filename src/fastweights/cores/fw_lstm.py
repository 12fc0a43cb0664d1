"""The LSTM with layer normalisation, and with fast weights inside its gated cell (Keller, Sridhar & Wang 2018)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from fastweights.cores.contract import Core
from fastweights.cores.lstm import LSTMState
from fastweights.ops.fw_lstm import fast_weight_lstm
from fastweights.ops.lstm.reference import look_up


class FWLSTMState(NamedTuple):
    """hidden and cell `[B, H]`, and the fast weights A `[B, H, H]`."""

    hidden: Tensor
    cell: Tensor
    memory: Tensor


class LayerNormLSTM(Core):
    """An LSTM whose gates and cell are layer-normalised: FW-LSTM's cell without what its fast weights give.

    >>> y, state = LayerNormLSTM(10, hidden_size=16)(torch.randn(2, 5, 10))
    >>> y.shape, state.cell.shape
    (torch.Size([2, 5, 16]), torch.Size([2, 16]))

    The paper does not print its equations; candidate and output are activated by ReLU, as in FW-LSTM, so that the two
    differ in the fast weights alone. There are two biases, as in torch's cells: the paper's counts have them. Weights
    and biases begin in U(±1/√H), the layer norms as the identity.

    Args:
        input_size: size of x.
        hidden_size: H, size of y, of the hidden and of the cell state.
        backend: which implementation of the recurrence runs; see `fastweights doctor`.
    """

    def __init__(self, input_size: int, hidden_size: int = 50, *, backend: str = "auto"):
        super().__init__()
        self.input_size, self.output_size, self.backend = input_size, hidden_size, backend
        gates, bound = 4 * hidden_size, 1 / math.sqrt(hidden_size)
        shapes = {
            "input_weight": (gates, input_size),
            "recurrent_weight": (gates, hidden_size),
            "input_bias": (gates,),
            "recurrent_bias": (gates,),
        }
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.empty(shape).uniform_(-bound, bound)))
        self.gates_norm, self.cell_norm = nn.LayerNorm(gates), nn.LayerNorm(hidden_size)

    def initial_state(self, batch_size: int) -> LSTMState:
        zeros = self.input_bias.new_zeros(batch_size, self.output_size)
        return LSTMState(zeros, zeros.clone())

    def input_projection(self, x: Tensor) -> Tensor:
        """What x `[…, input_size]` and the biases give the gates, `[…, 4·H]`."""
        return linear(x, self.input_weight, self.input_bias + self.recurrent_bias)

    def forward(
        self,
        x: Tensor,
        state: LSTMState | None = None,
        *,
        reads: Tensor | None = None,
        valid: Tensor | None = None,
        resets: Tensor | None = None,
        tokens: Tensor | None = None,
    ) -> tuple[Tensor, LSTMState]:
        """Read x `[B, T, input_size]`; see `fastweights.cores.contract`."""
        y, hidden, cell, _ = self.recurrence(x, state, tokens, valid=valid, resets=resets)
        return y, LSTMState(hidden, cell)

    def recurrence(
        self, x: Tensor, state: tuple[Tensor, ...] | None, tokens: Tensor | None, **options
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Project x and run the recurrent part, with fast weights where the state has them."""
        gates = look_up(self.input_projection(x) if tokens is None else x, tokens)
        state = self.initial_state(gates.shape[0]) if state is None else state
        norms = (self.gates_norm.weight, self.gates_norm.bias, self.cell_norm.weight, self.cell_norm.bias)
        return fast_weight_lstm(gates, self.recurrent_weight, *norms, *state, backend=self.backend, **options)


class FastWeightLSTM(LayerNormLSTM):
    """An LSTM whose candidate also hears what the fast weights A associate with it (equations: `ops.fw_lstm`).

    >>> y, state = FastWeightLSTM(10, hidden_size=16)(torch.randn(2, 5, 10))
    >>> y.shape, state.memory.shape
    (torch.Size([2, 5, 16]), torch.Size([2, 16, 16]))

    Args:
        input_size: size of x.
        hidden_size: H, size of y, of the hidden and of the cell state; the fast weights are H × H.
        decay: λ, the part of the fast weights that a step leaves.
        rate: η, the fast weights' learning rate.
        backend: which implementation of the recurrence runs; see `fastweights doctor`.
    """

    def __init__(
        self, input_size: int, hidden_size: int = 50, *, decay: float = 1.0, rate: float = 1.0, backend: str = "auto"
    ):
        super().__init__(input_size, hidden_size, backend=backend)
        self.decay, self.rate = decay, rate

    def initial_state(self, batch_size: int) -> FWLSTMState:
        H = self.output_size
        return FWLSTMState(*super().initial_state(batch_size), self.input_bias.new_zeros(batch_size, H, H))

    def forward(
        self,
        x: Tensor,
        state: FWLSTMState | None = None,
        *,
        reads: Tensor | None = None,
        valid: Tensor | None = None,
        resets: Tensor | None = None,
        tokens: Tensor | None = None,
    ) -> tuple[Tensor, FWLSTMState]:
        """Read x `[B, T, input_size]`; see `fastweights.cores.contract`."""
        options = {"decay": self.decay, "rate": self.rate, "valid": valid, "resets": resets}
        y, *state = self.recurrence(x, state, tokens, **options)
        return y, FWLSTMState(*state)
