"""The one contract of all cores: `y, state = core(x, state, reads=…, valid=…, resets=…)`.

A core reads a sequence and carries a state. Whatever it is inside, models, tasks and trainers treat it alike:

- x `[B, T, input_size]`, y `[B, T, output_size]`; `state=None` starts afresh.
- The state is a named tuple (nested where cores are nested) of tensors whose first dimension is the batch, so that
  `map_state` can detach, select rows of, save and load any of them.
- tokens `[B, T]`, where given, choose rows of x, which is then a table `[V, …]`: what `input_projection` made of a
  vocabulary.
- reads `[B, T]` says where y is needed; elsewhere it may be anything finite.
- valid `[B, T]` says where time passes; elsewhere (padding) the state stays as it is.
- resets `[B, T]` says where a row starts afresh, before that step.
- `losses` holds what a core adds to the loss of its latest call, by name; empty for most.

The state law is declared by each core in `state_law` and tested for all in one place (tests/cores/test_state_law.py):
"exact" means that a whole sequence, its segments and its single steps give the same results, row by row; "segmented"
means that equal segmentations do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn


class Core(nn.Module):
    """The base of all cores; a new one sets the attributes and implements `initial_state` and `forward`."""

    state_law: ClassVar[str] = "exact"
    input_size: int
    output_size: int

    @property
    def losses(self) -> dict[str, Tensor]:
        """Terms that this core adds to the loss of its latest call; empty for most."""
        return {}

    def initial_state(self, batch_size: int) -> NamedTuple:
        """The state of `batch_size` rows that have read nothing yet."""
        raise TypeError(f"{type(self).__name__} does not define initial_state")

    def acting_state(self, batch_size: int, steps: int) -> NamedTuple:
        """A first state for at most `steps` calls of one step each, without gradients; they may overwrite it.

        A core whose state can be kept in a form that is quicker so gives that form.
        """
        return self.initial_state(batch_size)

    def input_projection(self, x: Tensor) -> Tensor | None:
        """The linear map with which this core begins, or None where it does not begin with one.

        A token model applies it once to its vocabulary, and calls the core with the result as x and with `tokens`.
        """
        return None


def map_state(function: Callable[[Tensor], Tensor], state: Any) -> Any:
    """Apply a function to every tensor of a (nested) state.

    >>> from fastweights.cores import LSTM
    >>> state = LSTM(3, hidden_size=8).initial_state(batch_size=4)
    >>> map_state(lambda tensor: tensor[:1], state).hidden.shape
    torch.Size([1, 8])
    """
    if isinstance(state, Tensor):
        return function(state)
    return type(state)(*(map_state(function, part) for part in state))


def state_to_dict(state: Any) -> dict[str, Any]:
    """Turn a (nested) state into a nested dictionary of tensors, for saving."""
    return {name: part if isinstance(part, Tensor) else state_to_dict(part) for name, part in state._asdict().items()}


def state_from_dict(like: Any, values: dict[str, Any]) -> Any:
    """Rebuild a state of the form of `like` from `state_to_dict`'s result.

    Raises:
        KeyError: where a part is missing.
    """
    return type(like)(
        *(
            values[name] if isinstance(part, Tensor) else state_from_dict(part, values[name])
            for name, part in like._asdict().items()
        )
    )


def state_size(core: Core) -> int:
    """How many numbers one row's state holds: the paper's "activations".

    >>> from fastweights.cores import FastWeightMemory
    >>> state_size(FastWeightMemory(256, hidden_size=256, memory_size=32))
    33280
    """
    return sum(tensor.numel() for tensor in tensors_of(core.initial_state(1)))


def tensors_of(state: Any) -> list[Tensor]:
    """All tensors of a (nested) state, in order."""
    return [state] if isinstance(state, Tensor) else [x for part in state for x in tensors_of(part)]


def positions(x: Tensor, where: Tensor) -> Tensor:
    """The rows `[P, D]` of x `[B, T, D]` at the P positions of a mask `[B, T]`: `x[where]`, but faster backwards."""
    index = where.flatten().nonzero().squeeze(1)
    return x.flatten(0, 1) if len(index) == where.numel() else x.flatten(0, 1).index_select(0, index)


def apply_where(where: Tensor | None, layer: nn.Linear, x: Tensor) -> Tensor:
    """Apply a layer to x `[B, T, D]` at the positions of a mask; zeros elsewhere."""
    if where is None or torch.compiler.is_compiling():  # the number of positions would be a shape that depends on data
        return layer(x.transpose(0, 1)).transpose(0, 1)  # cores give their outputs in the order of time
    x, where = x.transpose(0, 1), where.T
    index = where.flatten().nonzero().squeeze(1)
    if len(index) == where.numel():
        return layer(x).transpose(0, 1)
    found = layer(x.flatten(0, 1).index_select(0, index))
    y = found.new_zeros(where.numel(), layer.out_features).index_copy(0, index, found)
    return y.view(*x.shape[:2], -1).transpose(0, 1)


def split_in_time(x: Tensor, *sizes: int) -> list[Tensor]:
    """Parts of x `[B, T, D]`, whose gradients are put together in the order of time, in which x lies in memory."""
    return [part.transpose(0, 1) for part in x.transpose(0, 1).split(sizes, -1)]
