"""A token model: an embedding and a softmax around any core."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout

from fastweights import cores
from fastweights.cores.contract import Core, CoreSpec, Losses, ProjectedTokens, call_core, select_positions
from fastweights.models.contract import Model
from fastweights.ops.products import Linear
from fastweights.specs import Probability, Width


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
        head_size: size of a ReLU layer between core and softmax, both with biases (Ba et al. 2016), or None for none.
    """

    def __init__(
        self,
        vocabulary_size: int,
        core: Core,
        *,
        token_dropout: float = 0.0,
        embedding_dropout: float = 0.0,
        head_size: int | None = None,
    ):
        super().__init__()
        self.token_dropout, self.embedding_dropout = token_dropout, embedding_dropout
        self.embedding = nn.Embedding(vocabulary_size, core.input_size)  # N(0, 1)
        self.core = core
        if head_size is None:
            self.head: nn.Module = nn.Identity()
            self.softmax = Linear(core.output_size, vocabulary_size, bias=False)
            nn.init.xavier_normal_(self.softmax.weight)
        else:
            self.head = nn.Sequential(Linear(core.output_size, head_size), nn.ReLU())
            self.softmax = Linear(head_size, vocabulary_size)

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
            losses: where the core adds terms of its own.

        Returns:
            Logits `[B, T, V]`, or `[P, V]` for the P positions of output_mask, row by row; and the state.
        """
        y, state = call_core(
            self.core, self._input(tokens), state, output_mask=output_mask, mask=mask, resets=resets, losses=losses
        )
        return self.softmax(self.head(y if output_mask is None else select_positions(y, output_mask))), state

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
            scale = dropout(torch.ones_like(tokens, dtype=x.dtype), self.token_dropout)
            x = dropout(x * scale.unsqueeze(-1), self.embedding_dropout)
        return x

    def _drops(self) -> bool:
        return self.training and bool(self.token_dropout or self.embedding_dropout)


def token_model(
    vocabulary_size: int,
    *,
    core: CoreSpec = "fwm",
    embedding_size: Width = 256,
    token_dropout: Probability = 0.0,
    embedding_dropout: Probability = 0.0,
    head_size: Width | None = None,
) -> TokenModel:
    """Build a token model from a recipe's spec.

    Args:
        vocabulary_size: number of tokens.
        core: the core's type and options, for example --model.core.memory_size 16.
        embedding_size: size of a token's embedding.
        token_dropout: probability with which an input token's whole embedding is zero.
        embedding_dropout: probability with which an element of an embedding is zero.
        head_size: size of a ReLU layer between core and softmax, both with biases; null for none.
    """
    return TokenModel(
        vocabulary_size,
        cores.as_core(core, embedding_size),
        token_dropout=token_dropout,
        embedding_dropout=embedding_dropout,
        head_size=head_size,
    )
