"""Cores as users write them, for the tests of the contract: states of every form, and one that is segmented."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastweights.cores import Core, Losses
from fastweights.cores.contract import reset_state


class LearnedStart(Core):
    """A minimal GRU whose initial state is a parameter; its state is one tensor."""

    def __init__(self, input_size: int, hidden_size: int = 6):
        super().__init__()
        self.input_size, self.output_size = input_size, hidden_size
        self.cell = nn.Linear(input_size + hidden_size, 2 * hidden_size)
        self.start = nn.Parameter(torch.randn(hidden_size))

    def initial_state(self, batch_size: int) -> Any:
        return self.start.expand(batch_size, -1)

    def update(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        return (y := self.gru(self.cell, x, state)), y

    @staticmethod
    def gru(cell: nn.Linear, x: Tensor, hidden: Tensor) -> Tensor:
        candidate, gate = cell(torch.cat([x, hidden], -1)).chunk(2, -1)
        return hidden + torch.sigmoid(gate) * (torch.tanh(candidate) - hidden)

    def forward(
        self,
        x: Tensor,
        state: Any = None,
        *,
        mask: Tensor | None = None,
        resets: Tensor | None = None,
        losses: Losses | None = None,
    ) -> tuple[Tensor, Any]:
        initial = self.initial_state(len(x))
        state = initial if state is None else state
        outputs = []
        for step in range(x.shape[1]):
            if resets is not None:
                state = reset_state(state, initial, resets[:, step])
            y, new_state = self.update(x[:, step], state)
            state = new_state if mask is None else reset_state(new_state, state, ~mask[:, step])
            outputs.append(y)
        y = torch.stack(outputs, 1)
        if losses is not None:
            losses.add("size", y.square().mean())
        return y, state


class NestedState(LearnedStart):
    """Layers of it, whose state is a dictionary of a list and of a tuple in a tuple."""

    def __init__(self, input_size: int, hidden_size: int = 6):
        super().__init__(input_size, hidden_size)
        self.cells = nn.ModuleList(nn.Linear(2 * hidden_size, 2 * hidden_size) for _ in range(2))
        self.starts = nn.Parameter(torch.randn(2, hidden_size))

    def initial_state(self, batch_size: int) -> Any:
        first, second, third = (start.expand(batch_size, -1) for start in (self.start, *self.starts))
        return {"below": [first, second], "above": ((third,),)}

    def update(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        (first, second), ((third,),) = state["below"], state["above"]
        first = self.gru(self.cell, x, first)
        second = self.gru(self.cells[0], first, second)
        third = self.gru(self.cells[1], second, third)
        return third, {"below": [first, second], "above": ((third,),)}


class AttentionState(NamedTuple):
    """The last inputs `[B, M, D]`, oldest first, and 1 where there is one `[B, M]`."""

    memory: Tensor
    filled: Tensor


class SegmentAttention(Core):
    """Causal attention to the segment and to the last M inputs before it, as Transformer-XL's.

    Args:
        input_size: D.
        hidden_size: size of y.
        memory_size: M.
        stops_gradient: whether no gradient flows into the segment before.
    """

    state_consistency = "segmented"

    def __init__(self, input_size: int, hidden_size: int = 6, memory_size: int = 8, stops_gradient: bool = True):
        super().__init__()
        self.input_size, self.output_size = input_size, hidden_size
        self.memory_size, self.stops_gradient = memory_size, stops_gradient
        self.query, self.key, self.value = (nn.Linear(input_size, hidden_size) for _ in range(3))

    def is_exact(self, steps: int) -> bool:
        return steps <= self.memory_size + 1

    def initial_state(self, batch_size: int) -> AttentionState:
        zeros = self.query.weight.new_zeros(batch_size, self.memory_size, self.input_size)
        return AttentionState(zeros, zeros[..., 0].clone())

    def forward(
        self,
        x: Tensor,
        state: AttentionState | None = None,
        *,
        mask: Tensor | None = None,
        resets: Tensor | None = None,
    ) -> tuple[Tensor, AttentionState]:
        memory, filled = self.initial_state(len(x)) if state is None else state
        memory = memory.detach() if self.stops_gradient else memory
        M, nothing = self.memory_size, torch.zeros(x.shape[:2], dtype=torch.bool)
        live = torch.cat([filled > 0, ~nothing if mask is None else mask], 1)
        epoch = torch.cat([torch.zeros_like(filled).long(), (nothing if resets is None else resets).cumsum(1)], 1)
        inputs = torch.cat([memory, x], 1)
        place = torch.arange(inputs.shape[1])
        seen = live[:, None] & (place <= place[M:, None]) & (epoch[:, None] == epoch[:, M:, None])
        seen = seen | (place == place[M:, None])  # padding sees itself
        age = live.cumsum(1)[:, M:, None] - live.cumsum(1)[:, None]
        scores = self.query(x) @ self.key(inputs).transpose(1, 2) - 0.1 * age
        y = scores.masked_fill(~seen, -torch.inf).softmax(-1).to(x.dtype) @ self.value(inputs).to(x.dtype)
        stays = live & (epoch == epoch[:, -1:])
        last = stays.long().argsort(dim=1, stable=True)[:, -M:]
        filled = stays.gather(1, last).to(filled.dtype)
        return y, AttentionState(inputs[torch.arange(len(x))[:, None], last] * filled[..., None], filled)


class Unmasked(Core):
    """A running mean, the least that a core can be: no keyword arguments."""

    def __init__(self, input_size: int):
        super().__init__()
        self.input_size = self.output_size = input_size
        self.rate = nn.Parameter(torch.tensor(0.5))

    def initial_state(self, batch_size: int) -> Tensor:
        return self.rate.new_zeros(batch_size, self.input_size)

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        state = self.initial_state(len(x)) if state is None else state
        outputs = []
        for step in range(x.shape[1]):
            state = state + self.rate.sigmoid() * (x[:, step] - state)
            outputs.append(state)
        return torch.stack(outputs, 1), state
