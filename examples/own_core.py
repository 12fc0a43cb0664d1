"""A core of your own: a gated recurrent unit with padding mask and resets, step by step.

fastweights train catbabi-qa/fwm-quick --model.core '{type: examples/own_core.py:GRU, hidden_size: 64}' --out runs/own
fastweights evaluate runs/own --trust
"""

import torch
from torch import Tensor, nn

from fastweights.cores import Core
from fastweights.cores.contract import reset_state


class GRU(Core):
    """A GRU (Cho et al. 2014) with a learned initial state.

    Args:
        input_size: size of x.
        hidden_size: size of y and of the hidden state.
    """

    def __init__(self, input_size: int, hidden_size: int = 64):
        super().__init__()
        self.input_size, self.output_size = input_size, hidden_size
        self.cell = nn.GRUCell(input_size, hidden_size)
        self.first_state = nn.Parameter(torch.zeros(hidden_size))

    def initial_state(self, batch_size: int) -> Tensor:
        return self.first_state.expand(batch_size, -1)

    def forward(
        self, x: Tensor, state: Tensor | None = None, *, mask: Tensor | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Map x `[B, T, input_size]` to y `[B, T, hidden_size]`; mask and resets `[B, T]`."""
        initial = self.initial_state(x.shape[0])
        hidden = initial if state is None else state
        outputs = []
        for step in range(x.shape[1]):
            if resets is not None:
                hidden = reset_state(hidden, initial, resets[:, step])
            updated = self.cell(x[:, step], hidden)
            hidden = updated if mask is None else torch.where(mask[:, step, None], updated, hidden)
            outputs.append(hidden)
        return torch.stack(outputs, 1), hidden
