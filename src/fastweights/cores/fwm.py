"""Fast weight memory as a layer over any slow core (Schlag et al. 2021, section 3)."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from fastweights.cores.contract import (
    Core,
    CoreSpec,
    Losses,
    ProjectedTokens,
    apply_where,
    as_core,
    call_core,
    split_in_time,
)
from fastweights.cores.lstm import LSTM, LSTMState
from fastweights.ops import cpu
from fastweights.ops.fwm import fast_weight_memory
from fastweights.ops.fwm.core_step import Weights as StepWeights
from fastweights.ops.fwm.core_step import core_step
from fastweights.ops.fwm.core_step import is_supported as step_is_supported
from fastweights.ops.fwm.writes import WriteLog, write_and_read
from fastweights.ops.products import Linear
from fastweights.ops.tanh import tanh
from fastweights.specs import Depth, Positive, Width


class FWMState(NamedTuple):
    """The slow core's state, and the fast weights F `[B, S, R, V]` (`[B, S + R, V]` with concatenated keys).

    In a rollout F may be represented as the log of its writes.
    """

    slow: Any
    memory: Tensor | WriteLog


class FastWeightMemory(Core):
    """A slow core that writes facts into a fast weight memory at every step, and reads them in a chain (eq. 1–8).

    A drop-in for `torch.nn.LSTM(batch_first=True)`:

    >>> layer = FastWeightMemory(10, hidden_size=16, memory_size=8)
    >>> y, state = layer(torch.randn(2, 5, 10))
    >>> y, state = layer(torch.randn(2, 5, 10), state)
    >>> y.shape, state.memory.shape
    (torch.Size([2, 5, 16]), torch.Size([2, 8, 8, 8]))

    The defaults are the paper's equations. The published code of the catbAbI experiments differs in
    `write_scale=1/memory_size, tanh_first_query=False, residual=False`. As in all published code, the weights of keys
    and queries begin in U(±√(6/(H + d))).

    Args:
        input_size: size of x.
        hidden_size: size of the slow LSTM; unused where `slow` is given.
        memory_size: d, size of keys and values.
        num_reads: N_r, length of the chain of reads.
        slow: another core in place of the LSTM, or its spec in a recipe.
        second_key_size: size of k2 and of e, where it differs from memory_size.
        value_size: size of v, where it differs from memory_size (then num_reads must be 1).
        write_scale: factor on every write; 1 in the paper.
        tanh_first_query: put tanh on n⁽⁰⁾ (eq. 5).
        tanh_queries: put tanh on e⁽ⁱ⁾ (eq. 6).
        residual: return h + W_o n instead of W_o n.
        pairing: "product" (k1 ⊗ k2), or "concatenation" ([k1; k2], appendix E).
        backend: which implementation of the recurrence runs; see `fastweights doctor`.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: Width = 256,
        memory_size: Width = 32,
        num_reads: Depth = 3,
        *,
        slow: CoreSpec | None = None,
        second_key_size: Width | None = None,
        value_size: Width | None = None,
        write_scale: Positive = 1.0,
        tanh_first_query: bool = True,
        tanh_queries: bool = True,
        residual: bool = True,
        pairing: Literal["product", "concatenation"] = "product",
        backend: str = "auto",
    ):
        super().__init__()
        self.slow = LSTM(input_size, hidden_size, backend=backend) if slow is None else as_core(slow, input_size)
        self.state_consistency = self.slow.state_consistency
        unsupported = {"mask", "resets"} - self.slow.supported_arguments
        self.supported_arguments = type(self).supported_arguments - unsupported
        if self.slow.input_size != input_size:
            raise ValueError(f"the slow core reads inputs of size {self.slow.input_size}, not {input_size}")
        hidden_size = self.slow.output_size
        self.input_size, self.output_size = input_size, hidden_size
        self.first_key_size, self.num_reads = memory_size, num_reads
        self.second_key_size, self.value_size = second_key_size or memory_size, value_size or memory_size
        if num_reads > 1 and self.value_size != memory_size:
            raise ValueError(
                f"a chain of {num_reads} reads needs value_size equal to memory_size, not {self.value_size} and "
                f"{memory_size}: set num_reads to 1 or leave value_size out"
            )
        self.residual, self.pairing = residual, pairing
        self.options: dict[str, Any] = {
            "write_scale": write_scale,
            "tanh_first_query": tanh_first_query,
            "tanh_queries": tanh_queries,
            "pairing": pairing,
            "backend": backend,
        }
        S, R, V = self.first_key_size, self.second_key_size, self.value_size
        backends = {backend, getattr(self.slow, "backend", backend)}
        self.has_compiled_step = (
            pairing == "product" and backends <= {"auto", "cpu"} and step_is_supported({S, R, V}, num_reads)
        )
        self.write = Linear(hidden_size, S + R + V + 1)  # k1, k2, v, β
        self.read = Linear(hidden_size, S + num_reads * R)  # n⁽⁰⁾, e⁽¹⁾ …
        self.output = Linear(V, hidden_size)
        bound = math.sqrt(6 / (hidden_size + memory_size))  # Glorot's for one key, as in the published code
        nn.init.uniform_(self.write.weight, -bound, bound)
        nn.init.uniform_(self.read.weight, -bound, bound)

    def is_exact(self, steps: int) -> bool:
        """As the slow core: the memory itself is exact."""
        return self.slow.is_exact(steps)

    def initial_state(self, batch_size: int) -> FWMState:
        S, R, V = self.first_key_size, self.second_key_size, self.value_size
        shape = (S, R, V) if self.pairing == "product" else (S + R, V)
        return FWMState(self.slow.initial_state(batch_size), self.write.weight.new_zeros(batch_size, *shape))

    def rollout_state(self, batch_size: int, steps: int) -> FWMState:
        S, R, V = self.first_key_size, self.second_key_size, self.value_size
        if self.pairing != "product" or steps * (S + R + V) > S * R * V:  # F itself is smaller
            return self.initial_state(batch_size)
        memory = WriteLog.empty(self.write.weight, batch_size, S, R, V, steps)
        return FWMState(self.slow.rollout_state(batch_size, steps), memory)

    def input_projection(self, x: Tensor) -> Tensor | None:
        """The slow core's."""
        return self.slow.input_projection(x)

    def forward(
        self,
        x: Tensor | ProjectedTokens,
        state: FWMState | None = None,
        *,
        output_mask: Tensor | None = None,
        mask: Tensor | None = None,
        resets: Tensor | None = None,
        losses: Losses | None = None,
    ) -> tuple[Tensor, FWMState]:
        """Map x `[B, T, input_size]` to y `[B, T, output_size]`; arguments as in `fastweights.cores.contract`."""
        if output_mask is None and mask is None and resets is None and self._can_step(x, state):
            return self._step(x, state)
        slow_state, memory = (None, None) if state is None else state  # less work than a state of zeros
        h, slow_state = call_core(self.slow, x, slow_state, mask=mask, resets=resets, losses=losses)
        k1, k2, v, beta = self.keys(h)
        n, e = self.queries(h, output_mask)
        if isinstance(memory, WriteLog):
            n = write_and_read(memory, *(x[:, 0] for x in (k1, k2, v, beta, n, e)), **self.options).unsqueeze(1)
        else:
            n, memory = fast_weight_memory(
                k1, k2, v, beta, n, e, memory, output_mask=output_mask, mask=mask, resets=resets, **self.options
            )
        y = apply_where(output_mask, self.output, n)
        return (h + y if self.residual else y), FWMState(slow_state, memory)

    def _can_step(self, x: Tensor | ProjectedTokens, state: FWMState | None) -> bool:
        """Whether this call is one step that a compiled kernel makes as a whole."""
        if isinstance(x, ProjectedTokens) or x.shape[1] > 1 or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return False
        slow: Any = self.slow
        if not self.has_compiled_step or type(slow) is not LSTM or torch.is_autocast_enabled(x.device.type):
            return False
        if self.training and slow.recurrent_dropout:
            return False
        tensors = [x, slow.input_weight, self.write.weight, self.output.weight]
        if state is not None:
            tensors += [*state.slow, state.memory.decay if isinstance(state.memory, WriteLog) else state.memory]
        return cpu.unsupported_reason(x.device.type, tensors) is None

    def _step(self, x: Any, state: FWMState | None) -> tuple[Tensor, FWMState]:
        slow: Any = self.slow
        (hidden, cell), memory = self.initial_state(x.shape[0]) if state is None else state
        write, read, output, options = self.write, self.read, self.output, self.options
        weights = StepWeights(
            *(slow.input_weight, slow.recurrent_weight, slow.bias, slow.second_bias),
            *(write.weight, write.bias, read.weight, read.bias, output.weight, output.bias),
        )
        y, hidden, cell, memory = core_step(
            x[:, 0],
            hidden,
            cell,
            memory,
            weights,
            forget_bias=slow.forget_bias,
            write_scale=options["write_scale"],
            tanh_first_query=options["tanh_first_query"],
            tanh_queries=options["tanh_queries"],
            residual=self.residual,
        )
        return y.unsqueeze(1), FWMState(LSTMState(hidden, cell), memory)

    def keys(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Keys k1, k2, values v (eq. 1) and write strengths β (eq. 2) from the slow core's output h `[B, T, H]`."""
        S, R, V = self.first_key_size, self.second_key_size, self.value_size
        written, beta = split_in_time(apply_where(None, self.write, h), S + R + V, 1)
        k1, k2, v = split_in_time(tanh(written), S, R, V)
        # the published code opens the write gate by 1 at the start; a bias could learn the same
        return k1, k2, v, torch.sigmoid(beta + 1).squeeze(-1)

    def queries(self, h: Tensor, output_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Queries n⁽⁰⁾ `[B, T, S]` (eq. 5) and e `[B, T, N, R]` (eq. 6) from h, before φ; zeros outside output_mask."""
        sizes = self.first_key_size, self.num_reads * self.second_key_size
        n, e = split_in_time(apply_where(output_mask, self.read, h), *sizes)
        return n, e.unflatten(-1, (self.num_reads, self.second_key_size))
