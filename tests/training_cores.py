"""Cores that only tests need; recipes name them by their import path, `training_cores:MetaLSTM`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastweights.cores import Core, Losses
from fastweights.cores.contract import reset_state
from fastweights.cores.lstm import LSTM


class MetaLSTM(LSTM):
    """An LSTM that adds a term "meta" to the loss, with a parameter that gets its gradient from that term alone."""

    def __init__(self, input_size: int, hidden_size: int = 8):
        super().__init__(input_size, hidden_size)
        self.meta = nn.Parameter(torch.tensor(3.0))

    def forward(
        self,
        x: Any,
        state: Any = None,
        *,
        output_mask: Tensor | None = None,
        mask: Tensor | None = None,
        resets: Tensor | None = None,
        losses: Losses | None = None,
    ) -> tuple[Tensor, Any]:
        if losses is not None:
            losses.add("meta", self.meta.square())
        return super().forward(x, state, output_mask=output_mask, mask=mask, resets=resets)


class LearnedStart(Core):
    """A GRU cell, step by step, whose initial state is learned and not zero."""

    def __init__(self, input_size: int, hidden_size: int = 8):
        super().__init__()
        self.input_size, self.output_size = input_size, hidden_size
        self.cell = nn.GRUCell(input_size, hidden_size)
        self.start = nn.Parameter(torch.randn(hidden_size))

    def initial_state(self, batch_size: int) -> dict[str, Tensor]:
        return {"hidden": self.start.expand(batch_size, -1)}

    def forward(
        self, x: Tensor, state: Any = None, *, mask: Tensor | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, Any]:
        first = self.initial_state(x.shape[0])
        state = first if state is None else state
        y = []
        for t in range(x.shape[1]):
            if resets is not None:
                state = reset_state(state, first, resets[:, t])
            hidden = self.cell(x[:, t], state["hidden"])
            if mask is not None:
                hidden = torch.where(mask[:, t, None], hidden, state["hidden"])
            state = {"hidden": hidden}
            y.append(hidden)
        return torch.stack(y, 1), state


class LearnedMeta(LearnedStart):
    """A learned initial state, and a term "meta" of the loss."""

    def __init__(self, input_size: int, hidden_size: int = 8):
        super().__init__(input_size, hidden_size)
        self.meta = nn.Parameter(torch.tensor(3.0))

    def forward(
        self,
        x: Tensor,
        state: Any = None,
        *,
        mask: Tensor | None = None,
        resets: Tensor | None = None,
        losses: Losses | None = None,
    ) -> tuple[Tensor, Any]:
        if losses is not None:
            losses.add("meta", self.meta.square())
        return super().forward(x, state, mask=mask, resets=resets)


class Window(Core):
    """A sum over a segment and `memory` steps before it: step by step it sees less, but in a short sequence."""

    state_consistency = "segmented"

    def __init__(self, input_size: int, hidden_size: int = 8, memory: int = 4):
        super().__init__()
        self.input_size, self.output_size, self.memory = input_size, hidden_size, memory
        self.layer = nn.Linear(input_size, hidden_size)

    def is_exact(self, steps: int) -> bool:
        return steps <= self.memory

    def initial_state(self, batch_size: int) -> Tensor:
        return self.layer.weight.new_zeros(batch_size, self.memory, self.input_size)

    def forward(self, x: Tensor, state: Any = None, *, mask: Tensor | None = None) -> tuple[Tensor, Any]:
        state = self.initial_state(x.shape[0]) if state is None else state
        seen = torch.cat([state, x], 1)
        y = torch.stack([seen[:, : self.memory + t + 1].sum(1) for t in range(x.shape[1])], 1)
        return self.layer(y), seen[:, -self.memory :]


class NoMask(LSTM):
    """An LSTM that supports no mask."""

    def __init__(self, input_size: int, hidden_size: int = 8):
        super().__init__(input_size, hidden_size)

    def forward(self, x: Any, state: Any = None) -> tuple[Tensor, Any]:
        return super().forward(x, state)
