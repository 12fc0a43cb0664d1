"""A token model: an embedding and a softmax around any core."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout

from fastweights import cores
from fastweights.cores.contract import Core, CoreSpec, Losses, ProjectedTokens, call_core, select_positions
from fastweights.models.contract import Model
from fastweights.ops.locked_dropout import locked_dropout
from fastweights.ops.products import Linear, linear
from fastweights.specs import NonNegative, Positive, Probability, Width


class TokenModel(Model):
    """Predict the next token with any core (the paper's section 3.1: embedding, core, softmax without bias).

    >>> from fastweights.cores import FastWeightMemory
    >>> model = TokenModel(180, FastWeightMemory(256))
    >>> logits, state = model(torch.randint(180, (2, 10)))
    >>> logits.shape
    torch.Size([2, 10, 180])

    Args:
        vocabulary_size: number of tokens V.
        core: any core; its input_size is the size of the embedding.
        token_dropout: probability with which an input token's whole embedding is zero.
        embedding_dropout: probability with which an element of an embedding is zero.
        output_dropout: probability with which an element of the core's output is zero.
        locked_dropout: draw these dropouts once a call (Merity et al. 2018): a token is zero wherever it occurs, an
            element at all steps of its row. If not, they are drawn anew at every step.
        activation_regularization: α of the loss α · mean(y²), y the core's output after its dropout.
        temporal_activation_regularization: β of the loss β · mean((y_t − y_{t−1})²), y the core's output.
        head_size: size of a ReLU layer between core and softmax, both with biases (Ba et al. 2016), or None for none.
        tie_weights: give the softmax the embedding's weights, and a bias that begins at 0 (Press & Wolf 2017).
        embedding_range: r of embeddings that begin in U(±r), or None for N(0, 1).
    """

    def __init__(
        self,
        vocabulary_size: int,
        core: Core,
        *,
        token_dropout: float = 0.0,
        embedding_dropout: float = 0.0,
        output_dropout: float = 0.0,
        locked_dropout: bool = False,
        activation_regularization: float = 0.0,
        temporal_activation_regularization: float = 0.0,
        head_size: int | None = None,
        tie_weights: bool = False,
        embedding_range: float | None = None,
    ):
        super().__init__()
        self.token_dropout, self.embedding_dropout = token_dropout, embedding_dropout
        self.output_dropout, self.locked_dropout = output_dropout, locked_dropout
        self.activation_regularization = activation_regularization
        self.temporal_activation_regularization = temporal_activation_regularization
        self.temperature = 1.0  # of the softmax, in evaluations
        self.embedding = nn.Embedding(vocabulary_size, core.input_size)  # N(0, 1)
        if embedding_range is not None:
            nn.init.uniform_(self.embedding.weight, -embedding_range, embedding_range)
        self.core = core
        self.head: nn.Module = nn.Identity()
        if head_size is not None:
            self.head = nn.Sequential(Linear(core.output_size, head_size), nn.ReLU())
        self.tie_weights, size = tie_weights, head_size or core.output_size
        if tie_weights:
            if size != core.input_size:
                raise ValueError(
                    f"tie_weights needs vectors of the embedding's size {core.input_size} before the softmax, and they "
                    f"have {size} elements; make the core's output, or head_size, as large as the embedding"
                )
            self.softmax_bias = nn.Parameter(torch.zeros(vocabulary_size))
        else:
            self.softmax = Linear(size, vocabulary_size, bias=head_size is not None)
            if head_size is None:
                nn.init.xavier_normal_(self.softmax.weight)

    def forward(
        self,
        tokens: Tensor,
        state: Any = None,
        *,
        output_mask: Tensor | None = None,
        mask: Tensor | None = None,
        resets: Tensor | None = None,
        losses: Losses | None = None,
    ) -> tuple[Tensor, Any]:
        """Return the logits of the next token and the new state.

        Args:
            tokens: `[B, T]` int64.
            state: the core's state, or None for the initial state.
            output_mask: `[B, T]` bool, where logits are needed.
            mask: `[B, T]` bool, False at padding.
            resets: `[B, T]` bool, where a row starts from the initial state.
            losses: where the core and the regularization of its output add terms.

        Returns:
            Logits `[B, T, V]`, or `[P, V]` for the P positions of output_mask, row by row; and the state.
        """
        y, state = call_core(
            self.core, self._input(tokens), state, output_mask=output_mask, mask=mask, resets=resets, losses=losses
        )
        dropped = self._dropout(y, self.output_dropout)
        if losses is not None:
            counted = mask if output_mask is None else output_mask
            self._regularize(losses, y, dropped, counted, resets)
        return self.logits(dropped if output_mask is None else select_positions(dropped, output_mask)), state

    def logits(self, y: Tensor) -> Tensor:
        """Logits `[…, V]` from the core's output y `[…, H]`, at the model's temperature."""
        y = self.head(y)
        # one parameter under one name: an average, a checkpoint and an optimizer hold it once
        logits = linear(y, self.embedding.weight, self.softmax_bias) if self.tie_weights else self.softmax(y)
        return logits if self.temperature == 1 else self.at_temperature(logits, self.temperature)

    def at_temperature(self, logits: Tensor, temperature: float) -> Tensor:
        """The logits that the softmax gives for its input divided by a temperature, which spares its bias."""
        bias = self.softmax_bias if self.tie_weights else self.softmax.bias
        return logits / temperature if bias is None else (logits - bias) / temperature + bias

    def _regularize(
        self, losses: Losses, y: Tensor, dropped: Tensor, counted: Tensor | None, resets: Tensor | None
    ) -> None:
        """Add the regularization of y at the positions of a mask, and between neighbours in one sequence."""
        counted = torch.ones_like(y[..., 0], dtype=torch.bool) if counted is None else counted
        if self.activation_regularization:
            losses.add("activation", self.activation_regularization * _mean_square(dropped, counted))
        if self.temporal_activation_regularization:
            pairs = counted[:, 1:] & counted[:, :-1]
            pairs = pairs if resets is None else pairs & ~resets[:, 1:]
            change = y[:, 1:] - y[:, :-1]
            losses.add("temporal_activation", self.temporal_activation_regularization * _mean_square(change, pairs))

    def _input(self, tokens: Tensor) -> Tensor | ProjectedTokens:
        """Embedded tokens, or the core's projection of the whole vocabulary where that is less work."""
        if not self._drops() and tokens.numel() > self.embedding.num_embeddings:
            table = self.core.input_projection(self.embedding.weight)
            if table is not None:
                return ProjectedTokens(table, tokens)
        return self._embed(tokens)

    def _embed(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        if self._drops():
            kept = x.new_ones(self.embedding.num_embeddings if self.locked_dropout else tokens.shape)
            scale = dropout(kept, self.token_dropout)
            scale = scale[tokens] if self.locked_dropout else scale
            x = self._dropout(x * scale.unsqueeze(-1), self.embedding_dropout)
        return x

    def _dropout(self, x: Tensor, probability: float) -> Tensor:
        return (locked_dropout if self.locked_dropout else dropout)(x, probability, self.training)

    def _drops(self) -> bool:
        return self.training and bool(self.token_dropout or self.embedding_dropout)


def _mean_square(x: Tensor, where: Tensor) -> Tensor:
    """The mean square of the elements of x `[B, T, D]` at the positions of a mask; 0 where there are none."""
    found = select_positions(x, where)
    return found.square().sum() / max(1, found.numel())


def token_model(
    vocabulary_size: int,
    *,
    core: CoreSpec = "fwm",
    embedding_size: Width = 256,
    token_dropout: Probability = 0.0,
    embedding_dropout: Probability = 0.0,
    output_dropout: Probability = 0.0,
    locked_dropout: bool = False,
    activation_regularization: NonNegative = 0.0,
    temporal_activation_regularization: NonNegative = 0.0,
    head_size: Width | None = None,
    tie_weights: bool = False,
    embedding_range: Positive | None = None,
) -> TokenModel:
    """Build a token model from a recipe's spec.

    Args:
        vocabulary_size: number of tokens.
        core: the core's type and options, for example --model.core.memory_size 16.
        embedding_size: size of a token's embedding.
        token_dropout: probability with which an input token's whole embedding is zero.
        embedding_dropout: probability with which an element of an embedding is zero.
        output_dropout: probability with which an element of the core's output is zero.
        locked_dropout: draw these dropouts once a call (Merity et al. 2018): a token is zero wherever it occurs, an
            element at all steps of its row. If not, they are drawn anew at every step.
        activation_regularization: α of the loss α · mean(y²), y the core's output after its dropout.
        temporal_activation_regularization: β of the loss β · mean((y_t − y_{t−1})²), y the core's output.
        head_size: size of a ReLU layer between core and softmax, both with biases; null for none.
        tie_weights: give the softmax the embedding's weights, and a bias that begins at 0 (Press & Wolf 2017).
        embedding_range: r of embeddings that begin in U(±r), or null for N(0, 1).
    """
    return TokenModel(
        vocabulary_size,
        cores.as_core(core, embedding_size),
        token_dropout=token_dropout,
        embedding_dropout=embedding_dropout,
        output_dropout=output_dropout,
        locked_dropout=locked_dropout,
        activation_regularization=activation_regularization,
        temporal_activation_regularization=temporal_activation_regularization,
        head_size=head_size,
        tie_weights=tie_weights,
        embedding_range=embedding_range,
    )
