"""Transformer-XL: attention to a segment and to a memory of the steps before it (Dai et al. 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, NamedTuple

import torch
from annotated_types import Ge, Le
from torch import Tensor, nn
from torch.nn.functional import dropout

from fastweights.cores.contract import Core, ProjectedTokens
from fastweights.ops.differentiable import unless_full
from fastweights.ops.lstm.reference import look_up
from fastweights.ops.products import Linear, linear
from fastweights.ops.relative_attention import relative_attention
from fastweights.specs import Depth, Probability, Width

MemoryLength = Annotated[int, Ge(1), Le(100_000), "each step attends to all of it"]
INITIAL_DEVIATION = 0.02


class TransformerXLState(NamedTuple):
    """The inputs of each layer at the last M steps `[B, M, H]`, the latest last, and how many there have been `[B]`.

    Where there have been fewer than M, the first are zeros.
    """

    memories: tuple[Tensor, ...]
    length: Tensor


class TransformerXL(Core):
    """Transformer layers that attend to their segment and to the last M steps before it, without a gradient into these.

    >>> layer = TransformerXL(10, hidden_size=16, num_layers=2, num_heads=2, memory_length=20)
    >>> y, state = layer(torch.randn(2, 5, 10))
    >>> y.shape, [memory.shape for memory in state.memories]
    (torch.Size([2, 5, 16]), [torch.Size([2, 20, 16]), torch.Size([2, 20, 16])])

    As in the published code: layer norms after the residual connections, u and v shared by all layers, no biases in the
    attention's projections, weights from N(0, 0.02²), and dropout on the input, on the encodings of distances, after
    each sublayer, within the feed-forward layer and on the output. The published code multiplies its embeddings by √H;
    those of `TokenModel`, from N(0, 1), need none of that.

    Distances are counted in steps of a row, without its padding. Segments equal the whole as long as nothing has left
    the memory; beyond that a step sees between M and M + T − 1 steps before it.

    Args:
        input_size: size of x; where it is not hidden_size, x is projected first.
        hidden_size: H, size of y and of each step in the memory.
        num_layers: number of layers.
        num_heads: heads of the attention.
        head_size: D, size of a head; hidden_size / num_heads if not given.
        inner_size: size of the feed-forward layers' inner layer; 4 · hidden_size if not given.
        memory_length: M, steps before a segment that it attends to.
        dropout: probability with which an element of a representation is zero.
        attention_dropout: probability with which a weight of the attention is zero.
        backend: which implementation of the attention runs; see `fastweights doctor`.
    """

    state_consistency = "segmented"

    def __init__(
        self,
        input_size: int,
        hidden_size: Width = 512,
        num_layers: Depth = 3,
        *,
        num_heads: Width = 8,
        head_size: Width | None = None,
        inner_size: Width | None = None,
        memory_length: MemoryLength = 400,
        dropout: Probability = 0.0,
        attention_dropout: Probability = 0.0,
        backend: str = "auto",
    ):
        super().__init__()
        if head_size is None:
            if hidden_size % num_heads:
                raise ValueError(
                    f"hidden_size is {hidden_size} and num_heads {num_heads}, which does not divide it: set head_size"
                )
            head_size = hidden_size // num_heads
        if hidden_size % 2:
            raise ValueError(f"hidden_size is {hidden_size}; distances are sines and cosines, so it must be even")
        self.input_size, self.output_size = input_size, hidden_size
        self.memory_length, self.dropout = memory_length, dropout
        self.projection = Linear(input_size, hidden_size, bias=False) if input_size != hidden_size else None
        self.content_bias = nn.Parameter(torch.empty(num_heads, head_size))
        self.position_bias = nn.Parameter(torch.empty(num_heads, head_size))
        sizes = (hidden_size, num_heads * head_size, inner_size or 4 * hidden_size)
        layers = nn.ModuleList(_Layer(*sizes, dropout, attention_dropout, backend) for _ in range(num_layers))
        self.layers: Sequence[_Layer] = layers  # type: ignore[assignment]  # torch's types forget those of a list's modules
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights again."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.LayerNorm):
                nn.init.normal_(module.weight, float(isinstance(module, nn.LayerNorm)), INITIAL_DEVIATION)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for bias in (self.content_bias, self.position_bias):
            nn.init.normal_(bias, 0.0, INITIAL_DEVIATION)

    def is_exact(self, steps: int) -> bool:
        """Whether all steps fit into the memory."""
        return steps <= self.memory_length + 1

    def initial_state(self, batch_size: int) -> TransformerXLState:
        new = self.content_bias.new_zeros
        memories = (new(batch_size, self.memory_length, self.output_size) for _ in self.layers)
        return TransformerXLState(tuple(memories), new(batch_size))

    def kept_elements(self, steps: int) -> int:
        """With the new memory, its keys and values, and the weights of the attention."""
        heads, head_size = self.content_bias.shape
        seen = self.memory_length + steps
        of_layer = self.memory_length * self.output_size + 2 * seen * heads * head_size + heads * steps * seen
        return super().kept_elements(steps) + len(self.layers) * of_layer

    def input_projection(self, x: Tensor) -> Tensor | None:
        """x `[…, input_size]` in the size of the layers; None where it has it."""
        return None if self.projection is None else self.projection(x)

    def forward(
        self,
        x: Tensor | ProjectedTokens,
        state: TransformerXLState | None = None,
        *,
        output_mask: Tensor | None = None,
        mask: Tensor | None = None,
        resets: Tensor | None = None,
    ) -> tuple[Tensor, TransformerXLState]:
        """Map x `[B, T, input_size]` to y `[B, T, output_size]`; arguments as in `fastweights.cores.contract`."""
        h = self._input(x)
        state = self.initial_state(len(h)) if state is None else state
        window = _Window(state.length, self.memory_length, h.shape[1], mask, resets)
        biases = (self.content_bias, self.position_bias)
        r = dropout(_encodings(window.size, self.output_size, self.content_bias), self.dropout, self.training)
        h = dropout(window.in_front(h).contiguous(), self.dropout, self.training)
        needed = None if output_mask is None else window.in_front(output_mask)
        memories = []
        for layer, memory in zip(self.layers, state.memories, strict=True):
            memories.append(window.shift(memory, h))
            memory = window.attended(memory).to(h.dtype)
            h = layer(h, memory, r, biases, window.mask, needed if layer is self.layers[-1] else None)
        y = window.in_place(dropout(h, self.dropout, self.training))
        return y, TransformerXLState(tuple(memories), window.length)

    def _input(self, x: Tensor | ProjectedTokens) -> Tensor:
        """The first layer's input `[B, T, H]`."""
        if isinstance(x, ProjectedTokens):
            return look_up(*x)
        return x if self.projection is None else self.projection(x)


class _Layer(nn.Module):
    """Attention and a feed-forward layer, each with a residual connection and a layer norm behind it."""

    def __init__(
        self, size: int, heads_size: int, inner_size: int, dropout: float, attention_dropout: float, backend: str
    ):
        super().__init__()
        self.query_key_value = Linear(size, 3 * heads_size, bias=False)
        self.position = Linear(size, heads_size, bias=False)
        self.output = Linear(heads_size, size, bias=False)
        self.attention_norm = nn.LayerNorm(size)
        self.inner, self.outer = Linear(size, inner_size), Linear(inner_size, size)
        self.norm = nn.LayerNorm(size)
        self.dropout, self.attention_dropout, self.backend = dropout, attention_dropout, backend

    def forward(
        self,
        h: Tensor,
        memory: Tensor,
        r: Tensor,
        biases: tuple[Tensor, Tensor],
        mask: Tensor,
        needed: Tensor | None,
    ) -> Tensor:
        """The layer's output `[B, T, H]`, where it is needed; zeros elsewhere.

        Args:
            h: `[B, T, H]`.
            memory: of the steps before h `[B, S − T, H]`.
            r: encodings of the distances `[S, H]`.
            biases: u and v, by head.
            mask: `[B, T, S]`, where a step may attend to another.
            needed: `[B, T]`, or None for everywhere.
        """
        heads = biases[0].shape
        q, *new = self.query_key_value(h).chunk(3, -1)
        # apart from the segment's: the memory needs no gradient
        old = linear(memory, self.query_key_value.weight[q.shape[-1] :]).chunk(2, -1)
        by_head = ([x.unflatten(-1, heads).transpose(1, 2) for x in parts] for parts in zip(old, new, strict=True))
        k, v = (torch.cat(parts, 2).transpose(1, 2) for parts in by_head)  # as the attention reads them
        q, r = (x.unflatten(-1, heads) for x in (q, self.position(r)))
        rate = self.attention_dropout if self.training else 0.0
        y = relative_attention(q, k, v, r, *biases, mask, dropout=rate, backend=self.backend).flatten(-2)
        if needed is None:
            return self._after_attention(y, h)
        index = needed.flatten().nonzero().squeeze(1)
        y, here = (x.flatten(0, 1).index_select(0, index) for x in (y, h))
        found = self._after_attention(y, here)
        return found.new_zeros(needed.numel(), h.shape[-1]).index_copy(0, index, found).view_as(h)

    def _after_attention(self, y: Tensor, h: Tensor) -> Tensor:
        h = self.attention_norm(h + self._drop(self.output(y)))
        return self.norm(h + self._drop(self.outer(self._drop(self.inner(h).relu()))))

    def _drop(self, x: Tensor) -> Tensor:
        return dropout(x, self.dropout, self.training)


class _Window:
    """A memory of M steps and behind it a segment of T, whose padding is moved behind each row's steps.

    Where all memories are empty, they are left out. `mask [B, T, S]` says which of the S steps a step of the segment
    may attend to, `length [B]` how many steps the memory has after the segment.
    """

    def __init__(self, length: Tensor, memory_length: int, steps: int, mask: Tensor | None, resets: Tensor | None):
        compiling, device = torch.compiler.is_compiling(), length.device
        mask = mask if compiling else unless_full(mask)
        self._memory_length = memory_length
        self._used = memory_length if compiling or bool(length.any()) else 0
        self._order = None if mask is None else (~mask).long().argsort(dim=1, stable=True)
        self._count = None if mask is None else mask.sum(1)
        self._resets = resets is not None
        self.size = self._used + steps
        place = torch.arange(self.size, device=device)
        exists = place >= self._used - length.unsqueeze(1)  # [B, S]
        self.mask = (place <= place[self._used :, None]) & exists.unsqueeze(1)
        lasts = exists if self._count is None else exists & (place < self._used + self._count.unsqueeze(1))
        if resets is not None:  # steps belong together that have as many resets before them
            epoch = resets.cumsum(1)
            epochs = torch.cat([epoch.new_zeros(len(epoch), self._used), self.in_front(epoch)], 1)
            self.mask = self.mask & (epochs.unsqueeze(1) == epochs[:, self._used :].unsqueeze(2))
            lasts = lasts & (epochs == epoch[:, -1:])
        self.length = lasts.sum(1).clamp(max=memory_length).to(torch.promote_types(length.dtype, torch.float32))

    def in_front(self, x: Tensor) -> Tensor:
        """x `[B, T, …]` with the padding behind each row's steps."""
        return x if self._order is None else _take(x, self._order)

    def in_place(self, x: Tensor) -> Tensor:
        """The reverse of `in_front`."""
        return x if self._order is None else _take(x, self._order.argsort(1))

    def attended(self, memory: Tensor) -> Tensor:
        """What the segment attends to of a memory `[B, M, H]`."""
        return memory[:, self._memory_length - self._used :].detach()

    def shift(self, memory: Tensor, h: Tensor) -> Tensor:
        """The memory after the segment h `[B, T, H]`, in float32 at least."""
        M, T = self._memory_length, h.shape[1]
        memory, h = (x.detach().to(torch.promote_types(x.dtype, torch.float32)) for x in (memory, h))
        if self._count is None:
            memory = torch.cat([memory[:, T:], h[:, -M:]], 1)
        else:
            last = self._count.unsqueeze(1) + torch.arange(M, device=h.device)
            memory = _take(torch.cat([memory, h], 1), last)
        if not self._resets:
            return memory
        exists = torch.arange(M, device=h.device) >= M - self.length.unsqueeze(1)
        return memory.masked_fill(~exists.unsqueeze(-1), 0)


def _take(x: Tensor, index: Tensor) -> Tensor:
    """For each row the steps `[B, N]` of x `[B, T, …]`."""
    return x.take_along_dim(index.view(*index.shape, *[1] * (x.ndim - 2)), 1)


def _encodings(count: int, size: int, like: Tensor) -> Tensor:
    """Sines and cosines of the distances 0 … count − 1 `[count, size]`, in the dtype and on the device of `like`."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    places, distances = (torch.arange(n, dtype=dtype, device=like.device) for n in (size // 2, count))
    angles = distances.unsqueeze(1) * 10000 ** (-2 * places / size)
    return torch.cat([angles.sin(), angles.cos()], 1).to(like.dtype)
