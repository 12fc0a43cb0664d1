"""The measurements, on the models of recipes; and the FLOPs of a training step on catbAbI."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fastweights import recipes
from fastweights.cores import LSTM, Core, Losses, map_state
from fastweights.cores.contract import ProjectedTokens
from fastweights.cores.lstm import LSTMState
from fastweights.models import Model
from fastweights.ops import cpu, fw_lstm, fw_rnn, fwm, lstm, mnm
from fastweights.ops.products import onednn_linear
from fastweights.recipes import Assembly
from fastweights.specs import Size
from fastweights.tasks import CatBabi

VOCABULARY, HIDDEN, READS = 180, 256, 3  # the paper's catbAbI models
QUESTIONS = 0.04  # the share of catbAbI's tokens that are questions' ends
MODES: tuple[Literal["qa", "lm"], ...] = ("qa", "lm")
SINGLE_CALLS = 300
MATRIX = 2048
REGISTER_FLOPS = 2e9  # of a thread
MEMORY = 1 << 28  # bytes, more than any cache


class Work(NamedTuple):
    """The sizes of a measurement."""

    mode: Literal["qa", "lm"] = "lm"
    batch_size: int = 32
    length: int = 200
    memory_size: int = 32
    recipe: str = "catbabi-qa/fwm"


class TorchLSTM(Core):
    """`torch.nn.LSTM` as a core: the usual way without this library."""

    def __init__(self, input_size: int, hidden_size: Size):
        super().__init__()
        self.input_size, self.output_size = input_size, hidden_size
        self.lstm = nn.LSTM(input_size, hidden_size, batch_first=True)

    def initial_state(self, batch_size: int) -> LSTMState:
        zeros = next(self.parameters()).new_zeros(batch_size, self.output_size)
        return LSTMState(zeros, zeros.clone())

    def forward(
        self, x: Tensor, state: LSTMState | None = None, *, mask: Tensor | None = None
    ) -> tuple[Tensor, LSTMState]:
        """Map x `[B, T, input_size]` to y `[B, T, output_size]`; no measurement has padding, so mask is None."""
        state = self.initial_state(x.shape[0]) if state is None else state
        y, (hidden, cell) = self.lstm(x, (state.hidden.unsqueeze(0), state.cell.unsqueeze(0)))
        return y, LSTMState(hidden.squeeze(0), cell.squeeze(0))


def assemble(name: str, backend: str, **task: Any) -> Assembly:
    """The parts of a recipe with a backend and options of the task; the reference's slow core is torch's LSTM."""
    recipe = recipes.load(name)
    core = {**recipe.model["core"], "backend": backend}
    if core["type"] == "fwm":
        slow = core.get("slow", {"type": "lstm", "hidden_size": core.get("hidden_size")})
        torchs = {"type": f"{__name__}:TorchLSTM", "hidden_size": slow["hidden_size"]}
        core["slow"] = torchs if backend == "reference" else {**slow, "backend": backend}
    assert isinstance(recipe.task, dict)
    return recipes.assemble(replace(recipe, task={**recipe.task, **task}, model={**recipe.model, "core": core}))


def catbabi_model(backend: str) -> Model:
    """The paper's model of catbAbI, with the settings of the published code."""
    return assemble("catbabi-qa/fwm", backend).model


def question_mask(work: Work) -> Tensor | None:
    """The output mask `[B, T]` of questions; None for outputs everywhere."""
    if work.mode == "lm":
        return None
    mask = torch.rand(work.batch_size, work.length) < QUESTIONS
    mask[0, -1] = True  # at least one, however small the batch
    return mask


def update(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """A backward pass and a step of the optimizer."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


# Each measurement prepares itself and returns the function that is timed, which can be called again.


def step(work: Work, backend: str) -> Callable[[], object]:
    """A training step: forward, backward, Adam; the state is carried from step to step, from the initial one on."""
    model = assemble(work.recipe, backend).model
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    tokens, targets = torch.randint(VOCABULARY, (2, work.batch_size, work.length))
    mask = question_mask(work)
    targets = targets.flatten() if mask is None else targets[mask]
    state = model.core.initial_state(work.batch_size)

    def run() -> None:
        nonlocal state
        added = Losses()
        logits, new_state = model(tokens, state, output_mask=mask, losses=added)
        update(optimizer, cross_entropy(logits.flatten(0, -2), targets) + added.total())
        state = map_state(Tensor.detach, new_state)

    return run


def stories(work: Work, backend: str) -> Callable[[], object]:
    """The next batch of generated stories, as training takes it before each step."""
    batches = CatBabi(mode=work.mode, segment_length=work.length).training_batches(None, work.batch_size, 0)
    return lambda: next(batches)


def retrieval_step(recipe: str) -> Callable[[Work, str], Callable[[], object]]:
    """A training step of a recipe for associative retrieval (Keller et al. 2018), at any batch size."""

    def prepare(work: Work, backend: str) -> Callable[[], object]:
        parts = assemble(recipe, backend, examples=work.batch_size)
        batch = next(parts.objective.source(parts.task, None, work.batch_size, 0))
        optimizer = torch.optim.Adam(parts.model.parameters(), lr=1e-3, fused=True)
        targets = batch.targets[batch.loss_mask]

        def run() -> None:
            logits, _ = parts.model(batch.inputs, output_mask=batch.loss_mask, mask=batch.mask)
            update(optimizer, cross_entropy(logits, targets))

        return run

    return prepare


def memory_op(work: Work, backend: str) -> Callable[[], object]:
    """The memory alone, forward and backward."""
    d = work.memory_size
    k1, k2, v, n = torch.randn(4, work.batch_size, work.length, d).tanh()
    beta, e = torch.rand(work.batch_size, work.length), torch.randn(work.batch_size, work.length, READS, d)
    inputs = [x.requires_grad_() for x in (k1, k2, v, beta, n, e)]
    gradient, mask = torch.randn_like(v), question_mask(work)

    def run() -> None:
        y, _ = fwm.fast_weight_memory(*inputs, output_mask=mask, write_scale=1 / d, backend=backend)
        torch.autograd.grad(y, inputs, gradient)

    return run


def lstm_op(work: Work, backend: str) -> Callable[[], object]:
    """The LSTM alone, forward and backward, from tokens on; the reference is torch.nn.LSTM on embedded tokens."""
    tokens = torch.randint(VOCABULARY, (work.batch_size, work.length))
    gradient = torch.randn(work.batch_size, work.length, HIDDEN)
    embedding = torch.randn(VOCABULARY, HIDDEN, requires_grad=True)
    layer = TorchLSTM(HIDDEN, HIDDEN) if backend == "reference" else LSTM(HIDDEN, HIDDEN, backend=backend)
    inputs = [embedding, *layer.parameters()]

    def run() -> None:
        table = layer.input_projection(embedding)  # None of torch's
        y, _ = layer(embedding[tokens] if table is None else ProjectedTokens(table, tokens))
        torch.autograd.grad(y, inputs, gradient)

    return run


def stream(work: Work, backend: str) -> Callable[[], object]:
    """Score a given text in one call."""
    model = catbabi_model(backend).eval()
    tokens = torch.randint(VOCABULARY, (work.batch_size, work.length + 1))

    @torch.no_grad()
    def run() -> None:
        logits, _ = model(tokens[:, :-1])
        cross_entropy(logits.mT, tokens[:, 1:])

    return run


def token_by_token(work: Work, backend: str) -> Callable[[], object]:
    """Score a text, one call per token."""
    model = catbabi_model(backend).eval()
    tokens = torch.randint(VOCABULARY, (work.batch_size, min(SINGLE_CALLS, work.length) + 1))

    @torch.no_grad()
    def run() -> None:
        state = None
        for t in range(tokens.shape[1] - 1):
            logits, state = model(tokens[:, t : t + 1], state)
            cross_entropy(logits[:, 0], tokens[:, t + 1])

    return run


def matrix_product(library: str) -> Callable[[Work, str], Callable[[], object]]:
    """A product of two large matrices by a library that torch ships."""

    def prepare(work: Work, backend: str) -> Callable[[], object]:
        a, b = torch.randn(2, MATRIX, MATRIX)
        if library == "mkl":
            out = torch.empty(MATRIX, MATRIX)
            return lambda: torch.mm(a, b, out=out)
        if library == "onednn":
            return lambda: onednn_linear(a, b)
        half = a.bfloat16(), b.bfloat16()
        return lambda: torch.mm(*half)

    return prepare


def multiply_adds(bfloat16: bool) -> Callable[[Work, str], Callable[[], object]]:
    """Multiply-adds in registers alone, `REGISTER_FLOPS` of them a thread: the processor's limit."""

    def prepare(work: Work, backend: str) -> Callable[[], object]:
        threads, count = torch.get_num_threads(), torch.zeros(1, dtype=torch.int64)
        sink = torch.full((threads,), 0.5)
        arguments = cpu.LimitArguments(threads=threads, repeats=1, bfloat16=bfloat16, sink=sink, count=count)
        cpu.call("multiply_adds", arguments)
        arguments.set(repeats=int(REGISTER_FLOPS * threads / int(count)))

        def run() -> None:
            sink.fill_(0.5)
            cpu.call("multiply_adds", arguments)

        return run

    return prepare


def read_memory(work: Work, backend: str) -> Callable[[], object]:
    """A pass over `MEMORY` bytes."""
    values, threads = torch.zeros(MEMORY // 4), torch.get_num_threads()
    arguments = cpu.LimitArguments(threads=threads, size=len(values), values=values, sink=torch.zeros(threads))
    return lambda: cpu.call("read_memory", arguments)


MEASUREMENTS = {
    "step": step,
    "stories": stories,
    "fw_lstm_step": retrieval_step("art/fw-lstm"),
    "fw_rnn_step": retrieval_step("art/fw-rnn"),
    "memory_op": memory_op,
    "lstm_op": lstm_op,
    "stream": stream,
    "token_by_token": token_by_token,
    "mkl": matrix_product("mkl"),
    "onednn": matrix_product("onednn"),
    "bfloat16": matrix_product("bfloat16"),
    "multiply_adds": multiply_adds(bfloat16=False),
    "multiply_adds_bfloat16": multiply_adds(bfloat16=True),
    "read_memory": read_memory,
}


def flops(work: Work) -> float:
    """The floating point operations of a training step's large products, which no exact form can avoid.

    The vocabulary is projected once. In the memory, forwards, each write reads the fast weights and changes them, each
    read reads them; backwards, a write's keys need both F and its gradient, its value the gradient, which it changes,
    and a read needs F and changes the gradient: six and three products with d × d × d numbers.
    """
    positions, d = work.batch_size * work.length, work.memory_size
    outputs = positions * (QUESTIONS if work.mode == "qa" else 1)
    multiplications: float = VOCABULARY * HIDDEN * 4 * HIDDEN + positions * HIDDEN * 4 * HIDDEN  # the LSTM
    multiplications += positions * HIDDEN * (3 * d + 1) + outputs * HIDDEN * (d + READS * d)  # keys, values, queries
    multiplications += outputs * (d * HIDDEN + HIDDEN * VOCABULARY)  # the answer and the softmax
    with_gradients = 3 * multiplications
    return 2.0 * (with_gradients + memory_multiplications(positions, outputs, d, backward=True))


def memory_multiplications(writes: float, reads: float, d: int, *, backward: bool) -> float:
    """Multiplications of a memory's products, forwards and where asked backwards, for chains of READS reads."""
    return (6 if backward else 2) * writes * d**3 + (3 if backward else 1) * reads * READS * d**3


def backends() -> dict[str, str]:
    """The backend that "auto" takes for each op at the paper's sizes."""
    from fastweights.ops.backends import choose

    ops = {"fwm": fwm, "lstm": lstm, "fw_lstm": fw_lstm, "fw_rnn": fw_rnn, "mnm": mnm}
    return {name: choose(name, op.BACKENDS) for name, op in ops.items()}
