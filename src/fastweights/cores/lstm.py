"""LSTM with the conventions of the FWM paper's code, and stacks of it with residual connections."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout

from fastweights.cores.contract import Core, ProjectedTokens, batch_size_of
from fastweights.ops.lstm import lstm
from fastweights.ops.products import linear
from fastweights.specs import Depth, Probability, Width


class LSTMState(NamedTuple):
    """hidden and cell, both `[B, H]`."""

    hidden: Tensor
    cell: Tensor


class LSTM(Core):
    """One LSTM layer: one bias, 1 added to the forget gate, weights from U(±1/√H), bias 0.

    >>> y, state = LSTM(10, hidden_size=16)(torch.randn(2, 5, 10))
    >>> y.shape, state.hidden.shape
    (torch.Size([2, 5, 16]), torch.Size([2, 16]))

    Args:
        input_size: size of x.
        hidden_size: H, size of y, of the hidden and of the cell state.
        forget_bias: constant added to the forget gate's input.
        second_bias: add a second bias and draw both from U(±1/√H), as torch.nn.LSTM does (with forget_bias 0).
        recurrent_dropout: probability with which a recurrent weight is zero for a whole call (DropConnect, Merity et
            al. 2018).
        backend: which implementation of the recurrence runs; see `fastweights doctor`.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: Width = 256,
        *,
        forget_bias: float = 1.0,
        second_bias: bool = False,
        recurrent_dropout: Probability = 0.0,
        backend: str = "auto",
    ):
        super().__init__()
        self.input_size, self.output_size, self.hidden_size = input_size, hidden_size, hidden_size
        self.forget_bias, self.recurrent_dropout, self.backend = forget_bias, recurrent_dropout, backend
        self.input_weight = nn.Parameter(torch.empty(4 * hidden_size, input_size))
        self.recurrent_weight = nn.Parameter(torch.empty(4 * hidden_size, hidden_size))
        self.bias = nn.Parameter(torch.empty(4 * hidden_size))
        self.second_bias = nn.Parameter(torch.empty(4 * hidden_size)) if second_bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights again."""
        bound = 1 / math.sqrt(self.hidden_size)
        nn.init.uniform_(self.input_weight, -bound, bound)
        nn.init.uniform_(self.recurrent_weight, -bound, bound)
        nn.init.zeros_(self.bias)
        if self.second_bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)
            nn.init.uniform_(self.second_bias, -bound, bound)

    def initial_state(self, batch_size: int) -> LSTMState:
        zeros = self.bias.new_zeros(batch_size, self.hidden_size)
        return LSTMState(zeros, zeros.clone())

    def input_projection(self, x: Tensor) -> Tensor:
        """The gates' input `[…, 4·H]` from x `[…, input_size]` and the bias."""
        bias = self.bias if self.second_bias is None else self.bias + self.second_bias
        if self.forget_bias:
            forget_gate = torch.arange(4, device=x.device).repeat_interleave(self.hidden_size) == 1
            bias = bias + self.forget_bias * forget_gate.to(bias.dtype)
        if x.ndim == 3 and x.transpose(0, 1).is_contiguous():  # time-major in memory
            return linear(x.transpose(0, 1), self.input_weight, bias).transpose(0, 1)
        return linear(x, self.input_weight, bias)

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
        gates, tokens = x if isinstance(x, ProjectedTokens) else (self.input_projection(x), None)
        hidden, cell = self.initial_state(batch_size_of(x)) if state is None else state
        weight = dropout(self.recurrent_weight, self.recurrent_dropout, self.training)
        y, hidden, cell = lstm(
            gates, weight, hidden, cell, mask=mask, resets=resets, tokens=tokens, backend=self.backend
        )
        return y, LSTMState(hidden, cell)


class StackState(NamedTuple):
    """The layers' hidden and cell states, both `[B, L, H]`."""

    hidden: Tensor
    cell: Tensor


class LSTMStack(Core):
    """LSTM layers on top of each other, each but the first with a residual connection around it.

    >>> y, state = LSTMStack(10, hidden_size=16, num_layers=4)(torch.randn(2, 5, 10))
    >>> y.shape, state.hidden.shape
    (torch.Size([2, 5, 16]), torch.Size([2, 4, 16]))

    Args:
        input_size: size of x.
        hidden_size: H of every layer.
        num_layers: number of layers L.
        residual: add each layer's input to its output (from the second layer on, where the sizes agree).
        layer_dropout: probability with which an element of the representation between layers is zero.
        recurrent_dropout: see `LSTM`.
        forget_bias: see `LSTM`.
        backend: see `LSTM`.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: Width = 512,
        num_layers: Depth = 4,
        *,
        residual: bool = True,
        layer_dropout: Probability = 0.0,
        recurrent_dropout: Probability = 0.0,
        forget_bias: float = 1.0,
        backend: str = "auto",
    ):
        super().__init__()
        self.input_size, self.output_size = input_size, hidden_size
        self.residual, self.layer_dropout = residual, layer_dropout
        options: dict[str, Any] = {
            "forget_bias": forget_bias,
            "recurrent_dropout": recurrent_dropout,
            "backend": backend,
        }
        sizes = [input_size, *[hidden_size] * (num_layers - 1)]
        layers = nn.ModuleList(LSTM(size, hidden_size, **options) for size in sizes)
        self.layers: Sequence[LSTM] = layers  # type: ignore[assignment]  # torch's types forget those of a list's modules

    def initial_state(self, batch_size: int) -> StackState:
        states = [layer.initial_state(batch_size) for layer in self.layers]
        return StackState(*(torch.stack(parts, 1) for parts in zip(*states, strict=True)))

    def input_projection(self, x: Tensor) -> Tensor:
        """The first layer's."""
        return self.layers[0].input_projection(x)

    def forward(
        self,
        x: Tensor | ProjectedTokens,
        state: StackState | None = None,
        *,
        output_mask: Tensor | None = None,
        mask: Tensor | None = None,
        resets: Tensor | None = None,
    ) -> tuple[Tensor, StackState]:
        """Map x `[B, T, input_size]` to y `[B, T, output_size]`; arguments as in `fastweights.cores.contract`."""
        hidden, cell = self.initial_state(batch_size_of(x)) if state is None else state
        y: Any = x
        new_states = []
        for index, layer in enumerate(self.layers):
            x = dropout(y, self.layer_dropout, self.training) if index else y
            y, new_state = layer(x, LSTMState(hidden[:, index], cell[:, index]), mask=mask, resets=resets)
            new_states.append(new_state)
            y = x + y if self.residual and index else y
        return y, StackState(*(torch.stack(parts, 1) for parts in zip(*new_states, strict=True)))
