"""The LSTM with layer normalisation, and with fast weights inside its gated cell (Keller, Sridhar & Wang 2018)."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastweights.cores.contract import Core, ProjectedTokens
from fastweights.cores.lstm import LSTMState
from fastweights.ops.fw_lstm import fast_weight_lstm
from fastweights.ops.lstm.reference import look_up
from fastweights.ops.products import linear
from fastweights.specs import Decay, NonNegative, Width


class FWLSTMState(NamedTuple):
    """hidden and cell `[B, H]`, and the fast weights A `[B, H, H]`."""

    hidden: Tensor
    cell: Tensor
    memory: Tensor


class _LayerNormCell(Core):
    """Weights and recurrence of the LSTM with layer-normalised gates and cell; a subclass has the state."""

    input_weight: nn.Parameter
    recurrent_weight: nn.Parameter
    input_bias: nn.Parameter
    recurrent_bias: nn.Parameter

    def __init__(self, input_size: int, hidden_size: Width = 50, *, backend: str = "auto"):
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

    def input_projection(self, x: Tensor) -> Tensor:
        """The gates' input `[…, 4·H]` from x `[…, input_size]` and the biases."""
        return linear(x, self.input_weight, self.input_bias + self.recurrent_bias)

    def _recurrence(
        self, x: Tensor | ProjectedTokens, state: tuple[Tensor, ...] | None, **options: Any
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Project x and run the recurrent part, with fast weights where the state has them."""
        gates = look_up(*x) if isinstance(x, ProjectedTokens) else self.input_projection(x)
        hidden, cell, *memory = self.initial_state(gates.shape[0]) if state is None else state
        norms = (self.gates_norm.weight, self.gates_norm.bias, self.cell_norm.weight, self.cell_norm.bias)
        return fast_weight_lstm(
            gates, self.recurrent_weight, *norms, hidden, cell, *memory, backend=self.backend, **options
        )


class LayerNormLSTM(_LayerNormCell):
    """An LSTM with layer-normalised gates and cell: FW-LSTM's cell without the fast weights.

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

    def initial_state(self, batch_size: int) -> LSTMState:
        zeros = self.input_bias.new_zeros(batch_size, self.output_size)
        return LSTMState(zeros, zeros.clone())

    def forward(
        self,
        x: Tensor | ProjectedTokens,
        state: LSTMState | None = None,
        *,
        output_mask: Tensor | None = None,
        mask: Tensor | None = None,
        resets: Tensor | None = None,
    ) -> tuple[Tensor, LSTMState]:
        """Map x `[B, T, input_size]` to y `[B, T, output_size]`; arguments as in `fastweights.cores.contract`."""
        y, hidden, cell, _ = self._recurrence(x, state, mask=mask, resets=resets)
        return y, LSTMState(hidden, cell)


class FastWeightLSTM(_LayerNormCell):
    """An LSTM whose candidate adds the read-out A_t g_t of the fast weights (equations: `ops.fw_lstm`).

    >>> y, state = FastWeightLSTM(10, hidden_size=16)(torch.randn(2, 5, 10))
    >>> y.shape, state.memory.shape
    (torch.Size([2, 5, 16]), torch.Size([2, 16, 16]))

    Args:
        input_size: size of x.
        hidden_size: H, size of y, of the hidden and of the cell state; the fast weights are H × H.
        decay: λ, the decay of the fast weights at each step.
        rate: η, the fast weights' learning rate.
        backend: which implementation of the recurrence runs; see `fastweights doctor`.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: Width = 50,
        *,
        decay: Decay = 1.0,
        rate: NonNegative = 1.0,
        backend: str = "auto",
    ):
        super().__init__(input_size, hidden_size, backend=backend)
        self.decay, self.rate = decay, rate

    def initial_state(self, batch_size: int) -> FWLSTMState:
        H = self.output_size
        zeros = self.input_bias.new_zeros(batch_size, H)
        return FWLSTMState(zeros, zeros.clone(), zeros.new_zeros(batch_size, H, H))

    def forward(
        self,
        x: Tensor | ProjectedTokens,
        state: FWLSTMState | None = None,
        *,
        output_mask: Tensor | None = None,
        mask: Tensor | None = None,
        resets: Tensor | None = None,
    ) -> tuple[Tensor, FWLSTMState]:
        """Map x `[B, T, input_size]` to y `[B, T, output_size]`; arguments as in `fastweights.cores.contract`."""
        options = {"decay": self.decay, "rate": self.rate, "mask": mask, "resets": resets}
        y, hidden, cell, memory = self._recurrence(x, state, **options)
        assert memory is not None  # the state has fast weights
        return y, FWLSTMState(hidden, cell, memory)
