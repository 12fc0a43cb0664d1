"""AWD-LSTM: layers of LSTM with dropped recurrent weights and locked dropout between them (Merity et al. 2018)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from fastweights.cores.contract import Core, ProjectedTokens, batch_size_of
from fastweights.cores.lstm import LSTM, LSTMState
from fastweights.ops.locked_dropout import locked_dropout
from fastweights.specs import Depth, Probability, Width


class AWDLSTM(Core):
    """LSTM layers on top of each other, the last of another size, each as torch.nn.LSTM: two biases, U(±1/√H).

    What Merity et al. do to the embedding and to the output, they do around a core: see `TokenModel`.

    >>> import torch
    >>> y, state = AWDLSTM(10, hidden_size=16, output_size=10)(torch.randn(2, 5, 10))
    >>> y.shape, [layer.hidden.shape[1] for layer in state]
    (torch.Size([2, 5, 10]), [16, 16, 10])

    Args:
        input_size: size of x.
        hidden_size: H of every layer but the last.
        num_layers: number of layers L.
        output_size: H of the last layer, the embedding's size where the softmax has its weights; null for hidden_size.
        layer_dropout: probability with which an element of the representation between layers is zero, for all steps of
            a row in a call (dropouth in the published code).
        recurrent_dropout: see `LSTM`; of every layer (wdrop in the published code).
        backend: see `LSTM`.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: Width = 1150,
        num_layers: Depth = 3,
        *,
        output_size: Width | None = None,
        layer_dropout: Probability = 0.0,
        recurrent_dropout: Probability = 0.0,
        backend: str = "auto",
    ):
        super().__init__()
        self.input_size, self.output_size = input_size, output_size or hidden_size
        self.layer_dropout = layer_dropout
        options: dict[str, Any] = {
            "forget_bias": 0.0,
            "second_bias": True,
            "recurrent_dropout": recurrent_dropout,
            "backend": backend,
        }
        sizes = [input_size, *[hidden_size] * (num_layers - 1), self.output_size]
        layers = nn.ModuleList(LSTM(below, size, **options) for below, size in pairwise(sizes))
        self.layers: Sequence[LSTM] = layers  # type: ignore[assignment]  # torch's types forget those of a list's modules

    def initial_state(self, batch_size: int) -> tuple[LSTMState, ...]:
        return tuple(layer.initial_state(batch_size) for layer in self.layers)

    def input_projection(self, x: Tensor) -> Tensor:
        """The first layer's."""
        return self.layers[0].input_projection(x)

    def forward(
        self,
        x: Tensor | ProjectedTokens,
        state: tuple[LSTMState, ...] | None = None,
        *,
        output_mask: Tensor | None = None,
        mask: Tensor | None = None,
        resets: Tensor | None = None,
    ) -> tuple[Tensor, tuple[LSTMState, ...]]:
        """Map x `[B, T, input_size]` to y `[B, T, output_size]`; arguments as in `fastweights.cores.contract`."""
        first, *others = self.layers
        first_state, *other_states = self.initial_state(batch_size_of(x)) if state is None else state
        y, first_state = first(x, first_state, mask=mask, resets=resets)
        new_states = [first_state]
        for layer, layer_state in zip(others, other_states, strict=True):
            y = locked_dropout(y, self.layer_dropout, self.training)
            y, layer_state = layer(y, layer_state, mask=mask, resets=resets)
            new_states.append(layer_state)
        return y, tuple(new_states)
