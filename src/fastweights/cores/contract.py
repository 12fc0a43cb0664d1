"""The contract of cores: `y, state = core(x, state, output_mask=…, mask=…, resets=…, losses=…)`.

A core is a recurrent sequence layer. Models, tasks and objectives treat all cores alike:

- x `[B, T, input_size]`, y `[B, T, output_size]`; `state=None` is the initial state.
- The state is a nesting of (named) tuples, lists and dictionaries of tensors whose first dimension is the batch.
- mask `[B, T]` is False at padding: no update, state unchanged.
- resets `[B, T]` is True where a row starts from `initial_state`, before that step.
- output_mask `[B, T]` is True where y is needed; elsewhere y may be anything finite.
- losses: a `Losses`, to which a core adds terms of its own by name.

A core supports the keyword arguments that its `forward` has; `call_core` refuses the others with a sentence.

State consistency is declared by each core and tested for all in one place (tests/cores/test_state_consistency.py):
"exact" means that a whole sequence, its segments and its single steps give the same results, row by row; "segmented"
means that equal segmentations do.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

OPTIONAL_ARGUMENTS = ("output_mask", "mask", "resets", "losses")


class Losses(dict[str, Tensor]):
    """Terms that the cores of a model add to its loss, by name.

    >>> losses = Losses()
    >>> losses.add("meta", torch.tensor(2.0))
    >>> losses.add("meta", torch.tensor(1.0))  # of another layer
    >>> losses
    {'meta': tensor(3.)}
    """

    def add(self, name: str, value: Tensor) -> None:
        """Add a scalar to the term of that name."""
        self[name] = self[name] + value if name in self else value

    def total(self) -> Tensor | float:
        """The sum of all terms; 0.0 where there are none."""
        return sum(self.values(), 0.0)


class ProjectedTokens(NamedTuple):
    """Tokens `[B, T]`, and the table `[V, …]` that a core's `input_projection` made of their vocabulary."""

    table: Tensor
    tokens: Tensor


class Core(nn.Module, ABC):
    """The base of all cores; a new one sets the sizes and implements `initial_state` and `forward`."""

    state_consistency: Literal["exact", "segmented"] = "exact"
    supported_arguments: frozenset[str] = frozenset()
    input_size: int
    output_size: int

    def __init_subclass__(cls, **options: Any):
        super().__init_subclass__(**options)
        cls.supported_arguments = frozenset(OPTIONAL_ARGUMENTS) & inspect.signature(cls.forward).parameters.keys()

    @abstractmethod
    def initial_state(self, batch_size: int) -> Any:
        """The state of `batch_size` rows before their first step."""

    @abstractmethod
    def forward(self, x: Any, state: Any = None) -> tuple[Tensor, Any]:
        """Map a sequence, from a state, to outputs and the state after its last step.

        A subclass also has those of the contract's keyword arguments that it supports.

        Args:
            x: `[B, T, input_size]`; or `ProjectedTokens`, where the core has an `input_projection`.
            state: of B rows; None for `initial_state(B)`.

        Returns:
            y `[B, T, output_size]`, and the state.
        """

    def is_exact(self, steps: int) -> bool:
        """Whether a sequence of so many steps gives the same in one call and step by step, from the initial state."""
        return self.state_consistency == "exact"

    def rollout_state(self, batch_size: int, steps: int) -> Any:
        """An initial state for at most `steps` calls of one step each, without gradients; they may overwrite it.

        A core gives another form of its state here where that is faster.
        """
        return self.initial_state(batch_size)

    def kept_elements(self, steps: int) -> int:
        """About how many elements of one row a call of so many steps keeps for its gradient, beside the state.

        A matrix reads and gives, at each step, about as many elements as its larger side has.
        """
        return steps * sum(max(parameter.shape) for parameter in self.parameters() if parameter.ndim == 2)

    def input_projection(self, x: Tensor) -> Tensor | None:
        """The linear map with which this core begins, or None where it does not begin with one.

        A token model applies it once to its vocabulary, and calls the core with `ProjectedTokens` as x.
        """
        return None


CoreSpec = Core | Mapping[str, Any] | str
"""A core, or its spec in a recipe: `{type: lstm, hidden_size: 32}`, or the type alone."""


def as_core(spec: CoreSpec, input_size: int) -> Core:
    """The core itself, or the one that a recipe's spec describes.

    Raises:
        UserError: where the spec does not describe a core.
    """
    if isinstance(spec, Core):
        return spec
    from fastweights.cores import build

    return build(spec if isinstance(spec, str) else {"type": "fwm", **spec}, input_size)


def call_core(core: Core, x: Tensor | ProjectedTokens, state: Any = None, **arguments: Any) -> tuple[Tensor, Any]:
    """Call a core with those of the contract's keyword arguments that are given and that it supports.

    Args:
        core: the core.
        x: its input `[B, T, D]`, or `ProjectedTokens`.
        state: of B rows; None for the initial state.
        arguments: output_mask, mask, resets `[B, T]`, losses; None stands for none.

    Raises:
        ValueError: where a padding mask or resets are given and the core does not support them.
    """
    for name in ("mask", "resets"):
        if arguments.get(name) is not None and name not in core.supported_arguments:
            raise ValueError(f"{type(core).__name__} does not support {name}: its forward, or a core in it, lacks it")
    given = {name: value for name, value in arguments.items() if value is not None and name in core.supported_arguments}
    return core(x, state, **given)


def batch_size_of(x: Tensor | ProjectedTokens) -> int:
    """B of a core's input."""
    return (x.tokens if isinstance(x, ProjectedTokens) else x).shape[0]


def map_state(function: Callable[[Tensor], Tensor], state: Any) -> Any:
    """Apply a function to every tensor of a (nested) state.

    >>> from fastweights.cores import LSTM
    >>> state = LSTM(3, hidden_size=8).initial_state(batch_size=4)
    >>> map_state(lambda tensor: tensor[:1], state).hidden.shape
    torch.Size([1, 8])
    """
    return pytree.tree_map_only(Tensor, function, state)


def reset_state(state: Any, initial: Any, where: Tensor) -> Any:
    """The state, replaced by the initial one in the rows `[B]` where `where` is True; both get their gradients."""

    def choose(now: Tensor, first: Tensor) -> Tensor:
        return torch.where(where.view(-1, *[1] * (now.ndim - 1)), first, now)

    return pytree.tree_map(choose, state, initial)


def tensors_of(state: Any) -> list[Tensor]:
    """All tensors of a (nested) state, in order."""
    return [leaf for leaf in pytree.tree_leaves(state) if isinstance(leaf, Tensor)]


def state_to_dict(state: Any) -> dict[str, Tensor]:
    """A (nested) state as tensors by their dotted names, for saving.

    >>> from fastweights.cores import FastWeightMemory
    >>> list(state_to_dict(FastWeightMemory(3, hidden_size=8, memory_size=4).initial_state(1)))
    ['slow.hidden', 'slow.cell', 'memory']
    """
    leaves, _ = pytree.tree_flatten_with_path(state)
    return {_name(path): leaf for path, leaf in leaves}


def state_from_dict(like: Any, values: Mapping[str, Tensor]) -> Any:
    """Rebuild a state of the form of `like` from `state_to_dict`'s result.

    Raises:
        KeyError: where a part is missing.
        ValueError: where a part is of another shape, but for the number of rows, or kind.
    """
    leaves, form = pytree.tree_flatten_with_path(like)
    for path, leaf in leaves:
        value = values[_name(path)]
        if (
            value.ndim != leaf.ndim
            or value.shape[1:] != leaf.shape[1:]
            or value.is_floating_point() != leaf.is_floating_point()
        ):
            raise ValueError(f"{_name(path)} of the state is of another shape or kind")
    return pytree.tree_unflatten([values[_name(path)] for path, _ in leaves], form)


def _name(path: Iterable[Any]) -> str:
    parts = ((getattr(key, name) for name in ("name", "idx", "key") if hasattr(key, name)) for key in path)
    return ".".join(str(next(part)) for part in parts)


def state_size(core: Core) -> int:
    """The number of elements in one row's state: the paper's "activations".

    >>> from fastweights.cores import FastWeightMemory
    >>> state_size(FastWeightMemory(256, hidden_size=256, memory_size=32))
    33280
    """
    return sum(tensor.numel() for tensor in tensors_of(core.initial_state(1)))


def select_positions(x: Tensor, where: Tensor) -> Tensor:
    """The rows `[P, D]` of x `[B, T, D]` at the P positions of a mask `[B, T]`: `x[where]`, with a faster gradient."""
    index = where.flatten().nonzero().squeeze(1)
    return x.flatten(0, 1) if len(index) == where.numel() else x.flatten(0, 1).index_select(0, index)


def apply_where(where: Tensor | None, layer: nn.Linear, x: Tensor) -> Tensor:
    """Apply a layer to x `[B, T, D]` at the positions of a mask; zeros elsewhere."""
    if where is None or torch.compiler.is_compiling():  # the number of positions would be a data-dependent shape
        return layer(x.transpose(0, 1)).transpose(0, 1)  # cores give their outputs time-major in memory
    x, where = x.transpose(0, 1), where.T
    index = where.flatten().nonzero().squeeze(1)
    if len(index) == where.numel():
        return layer(x).transpose(0, 1)
    found = layer(x.flatten(0, 1).index_select(0, index))
    y = found.new_zeros(where.numel(), layer.out_features).index_copy(0, index, found)
    return y.view(*x.shape[:2], -1).transpose(0, 1)


def split_in_time(x: Tensor, *sizes: int) -> list[Tensor]:
    """Parts of x `[B, T, D]`, whose gradients are put together time-major, as x lies in memory."""
    return [part.transpose(0, 1) for part in x.transpose(0, 1).split(sizes, -1)]
