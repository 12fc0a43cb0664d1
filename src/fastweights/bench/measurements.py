"""What can be timed, on the papers' models; and how many operations a training step on catbAbI takes at least."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fastweights.cores import LSTM, Core, FastWeightLSTM, FastWeightMemory, FastWeightRNN, map_state
from fastweights.cores.lstm import LSTMState
from fastweights.models import TokenModel
from fastweights.ops import fw_lstm, fw_rnn, fwm, lstm
from fastweights.tasks import CatBabi, Retrieval

VOCABULARY, HIDDEN, READS = 180, 256, 3  # the paper's catbAbI models
QUESTIONS = 0.04  # the part of catbAbI's tokens that ask
MODES = ("qa", "lm")
SINGLE_CALLS = 300
MATRIX = 2048


class Work(NamedTuple):
    """What a measurement is taken on."""

    mode: str = "lm"
    rows: int = 32
    length: int = 200
    memory_size: int = 32


class TorchLSTM(Core):
    """`torch.nn.LSTM` as a slow core: what one writes without this library."""

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__()
        self.input_size, self.output_size = input_size, hidden_size
        self.lstm = nn.LSTM(input_size, hidden_size, batch_first=True)

    def initial_state(self, batch_size: int) -> LSTMState:
        zeros = self.lstm.weight_hh_l0.new_zeros(batch_size, self.output_size)
        return LSTMState(zeros, zeros.clone())

    def forward(
        self,
        x: Tensor,
        state: LSTMState | None = None,
        *,
        reads: Tensor | None = None,
        valid: None = None,
        resets: None = None,
        tokens: None = None,
    ) -> tuple[Tensor, LSTMState]:
        """Read x `[B, T, input_size]`; time passes everywhere, and nothing is reset."""
        state = self.initial_state(x.shape[0]) if state is None else state
        y, (hidden, cell) = self.lstm(x, (state.hidden.unsqueeze(0), state.cell.unsqueeze(0)))
        return y, LSTMState(hidden.squeeze(0), cell.squeeze(0))


def model(backend: str, memory_size: int) -> TokenModel:
    """The paper's model with the options of the published code; the reference has torch's LSTM."""
    slow = TorchLSTM(HIDDEN, HIDDEN) if backend == "reference" else LSTM(HIDDEN, HIDDEN, backend=backend)
    core = FastWeightMemory(
        HIDDEN,
        memory_size=memory_size,
        num_reads=READS,
        slow=slow,
        write_scale=1 / memory_size,
        tanh_first_query=False,
        residual=False,
        backend=backend,
    )
    return TokenModel(VOCABULARY, core)


def questions(work: Work) -> Tensor | None:
    """Where the model is asked `[B, T]`; None is everywhere."""
    if work.mode == "lm":
        return None
    reads = torch.rand(work.rows, work.length) < QUESTIONS
    reads[0, -1] = True  # at least one, however small the batch
    return reads


# Each prepares itself and returns what is to be timed, which can be called again.


def step(work: Work, backend: str) -> Callable[[], None]:
    """A training step: forward, backward, Adam; the state is carried from step to step, from zeros on."""
    trained = model(backend, work.memory_size)
    optimizer = torch.optim.Adam(trained.parameters(), lr=1e-3, fused=True)
    tokens, targets = torch.randint(VOCABULARY, (2, work.rows, work.length))
    reads = questions(work)
    wanted = targets.flatten() if reads is None else targets[reads]
    state = trained.core.initial_state(work.rows)

    def run() -> None:
        nonlocal state
        logits, new_state = trained(tokens, state, reads=reads)
        loss = cross_entropy(logits.reshape(-1, VOCABULARY), wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        state = map_state(Tensor.detach, new_state)

    return run


def stories(work: Work, backend: str) -> Callable[[], None]:
    """The next batch of generated stories, as training takes it before each step."""
    batches = CatBabi(mode=work.mode, segment_length=work.length).training_batches(None, work.rows, 0)
    return lambda: next(batches)


def retrieval_step(core: type[Core]) -> Callable[[Work, str], Callable[[], None]]:
    """A training step on associative retrieval (Keller et al. 2018: H 50, eight pairs), whatever the work's length."""

    def prepare(work: Work, backend: str) -> Callable[[], None]:
        task = Retrieval(pairs=8, examples=work.rows)
        batch = next(task.training_batches(None, work.rows, 0))
        trained = TokenModel(task.vocabulary_size, core(100, 50, backend=backend), head_size=100)
        optimizer = torch.optim.Adam(trained.parameters(), lr=1e-3, fused=True)
        wanted = batch.targets[batch.reads]

        def run() -> None:
            logits, _ = trained(batch.inputs, reads=batch.reads, valid=batch.valid)
            loss = cross_entropy(logits, wanted)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        return run

    return prepare


def memory_op(work: Work, backend: str) -> Callable[[], None]:
    """The memory alone, forward and backward."""
    d = work.memory_size
    k1, k2, v, n = torch.randn(4, work.rows, work.length, d).tanh()
    beta, e = torch.rand(work.rows, work.length), torch.randn(work.rows, work.length, READS, d)
    inputs = [x.requires_grad_() for x in (k1, k2, v, beta, n, e)]
    gradient, reads = torch.randn_like(v), questions(work)

    def run() -> None:
        y, _ = fwm.fast_weight_memory(*inputs, reads=reads, write_scale=1 / d, backend=backend)
        torch.autograd.grad(y, inputs, gradient)

    return run


def lstm_op(work: Work, backend: str) -> Callable[[], None]:
    """The LSTM alone, forward and backward, from tokens on; the reference is torch.nn.LSTM on embedded tokens."""
    tokens = torch.randint(VOCABULARY, (work.rows, work.length))
    gradient = torch.randn(work.rows, work.length, HIDDEN)
    embedding = torch.randn(VOCABULARY, HIDDEN, requires_grad=True)
    layer = TorchLSTM(HIDDEN, HIDDEN) if backend == "reference" else LSTM(HIDDEN, HIDDEN, backend=backend)
    inputs = [embedding, *layer.parameters()]

    def run() -> None:
        if backend == "reference":
            y, _ = layer(embedding[tokens])
        else:
            y, _ = layer(layer.input_projection(embedding), tokens=tokens)
        torch.autograd.grad(y, inputs, gradient)

    return run


def stream(work: Work, backend: str) -> Callable[[], None]:
    """Score a given text in one call."""
    trained = model(backend, work.memory_size).eval()
    tokens = torch.randint(VOCABULARY, (work.rows, work.length + 1))

    @torch.no_grad()
    def run() -> None:
        logits, _ = trained(tokens[:, :-1])
        cross_entropy(logits.mT, tokens[:, 1:])

    return run


def token_by_token(work: Work, backend: str) -> Callable[[], None]:
    """Score a text as it comes, one call per token."""
    trained = model(backend, work.memory_size).eval()
    tokens = torch.randint(VOCABULARY, (work.rows, min(SINGLE_CALLS, work.length) + 1))

    @torch.no_grad()
    def run() -> None:
        state = None
        for t in range(tokens.shape[1] - 1):
            logits, state = trained(tokens[:, t : t + 1], state)
            cross_entropy(logits[:, 0], tokens[:, t + 1])

    return run


def matrix_product(work: Work, backend: str) -> Callable[[], None]:
    """A product of two large matrices: how fast this machine can be."""
    a, b = torch.randn(2, MATRIX, MATRIX)
    out = torch.empty(MATRIX, MATRIX)
    return lambda: torch.mm(a, b, out=out)


MEASUREMENTS = {
    "step": step,
    "stories": stories,
    "fw_lstm_step": retrieval_step(FastWeightLSTM),
    "fw_rnn_step": retrieval_step(FastWeightRNN),
    "memory_op": memory_op,
    "lstm_op": lstm_op,
    "stream": stream,
    "token_by_token": token_by_token,
    "matrix_product": matrix_product,
}


def operations(work: Work) -> float:
    """The floating point operations that a training step cannot do without: those of its large products.

    The vocabulary is projected once. Of the memory it counts what any exact form needs: each write and each read meets
    the memory once forwards and once backwards, and each write changes it once.
    """
    positions, d = work.rows * work.length, work.memory_size
    asked = positions * (QUESTIONS if work.mode == "qa" else 1)
    multiplications = VOCABULARY * HIDDEN * 4 * HIDDEN + positions * HIDDEN * 4 * HIDDEN  # the LSTM
    multiplications += positions * HIDDEN * (3 * d + 1) + asked * HIDDEN * (d + READS * d)  # keys, values, queries
    multiplications += asked * (d * HIDDEN + HIDDEN * VOCABULARY)  # the answer and the softmax
    with_gradients = 3 * multiplications
    memory = positions * 3 * d**3 + asked * READS * 2 * d**3
    return 2.0 * (with_gradients + memory)


def backends() -> dict[str, str]:
    """The backend that "auto" takes for each op at the paper's sizes."""
    from fastweights.ops.backends import choose

    ops = {"fwm": fwm, "lstm": lstm, "fw_lstm": fw_lstm, "fw_rnn": fw_rnn}
    return {name: choose(name, op.BACKENDS) for name, op in ops.items()}
