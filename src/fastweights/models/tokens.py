"""A token model: an embedding and a softmax put on any core."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout

from fastweights.cores.contract import Core, positions


class TokenModel(nn.Module):
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
            self.head = nn.Identity()
            self.softmax = nn.Linear(core.output_size, vocabulary_size, bias=False)
            nn.init.xavier_normal_(self.softmax.weight)
        else:
            self.head = nn.Sequential(nn.Linear(core.output_size, head_size), nn.ReLU())
            self.softmax = nn.Linear(head_size, vocabulary_size)

    def forward(
        self,
        tokens: Tensor,
        state: Any = None,
        *,
        reads: Tensor | None = None,
        valid: Tensor | None = None,
        resets: Tensor | None = None,
    ) -> tuple[Tensor, Any]:
        """Return the logits of the next token and the new state.

        Args:
            tokens: `[B, T]` int64.
            state: the core's state, or None to start afresh.
            reads: `[B, T]` bool, where logits are needed.
            valid: `[B, T]` bool, where time passes.
            resets: `[B, T]` bool, where a row starts afresh.

        Returns:
            Logits `[B, T, V]`, or `[P, V]` for the P positions of `reads`, row by row; and the state.
        """
        masks = {"reads": reads, "valid": valid, "resets": resets}
        table = self._vocabulary_projection(tokens)
        if table is None:
            y, state = self.core(self._embed(tokens), state, **masks)
        else:
            y, state = self.core(table, state, tokens=tokens, **masks)
        return self.softmax(self.head(y if reads is None else positions(y, reads))), state

    def _vocabulary_projection(self, tokens: Tensor) -> Tensor | None:
        """The core's input projection of the whole vocabulary, where that is less work than of every token."""
        if self._drops() or tokens.numel() <= self.embedding.num_embeddings:
            return None
        return self.core.input_projection(self.embedding.weight)

    def _embed(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        if self._drops():
            kept = dropout(torch.ones_like(tokens, dtype=x.dtype), self.token_dropout)
            x = dropout(x * kept.unsqueeze(-1), self.embedding_dropout)
        return x

    def _drops(self) -> bool:
        return self.training and bool(self.token_dropout or self.embedding_dropout)
