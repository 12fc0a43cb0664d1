"""Time a step of training, or 300 calls of one token: the median and the least of some runs, in milliseconds.

OMP_NUM_THREADS=2 python results/speed/steps.py qa 15     # see STEPS for the names
"""

import statistics
import sys
import time
from collections.abc import Callable

import torch

from fastweights.bench import measurements
from fastweights.bench.episodes import training_episode
from fastweights.bench.measurements import Work
from fastweights.cores import LSTM, Core, FastWeightRNN, LSTMStack
from fastweights.training.allocator import keep_freed_blocks


def of_catbabi(mode: str, backend: str = "auto", bfloat16: bool = False) -> Callable[[], object]:
    """A training step of the paper's model, 32 sequences of 200 tokens."""
    work = Work(mode)
    model, mask = measurements.catbabi_model(backend), measurements.question_mask(work)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    tokens, targets = torch.randint(measurements.VOCABULARY, (2, work.batch_size, work.length))
    targets = targets.flatten() if mask is None else targets[mask]
    state = model.core.initial_state(work.batch_size)

    def run() -> None:
        nonlocal state
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            logits, new_state = model(tokens, state, output_mask=mask)
            loss = torch.nn.functional.cross_entropy(logits.reshape(-1, measurements.VOCABULARY).float(), targets)
        measurements.update(optimizer, loss)
        state = measurements.map_state(torch.Tensor.detach, new_state)

    return run


def of_core(core: Core, batch_size: int, length: int) -> Callable[[], object]:
    """A training step of a core alone."""
    optimizer = torch.optim.Adam(core.parameters(), lr=1e-3, fused=True)
    x = torch.randn(batch_size, length, core.input_size)
    gradient = torch.randn(batch_size, length, core.output_size)

    def run() -> None:
        y, _ = core(x)
        optimizer.zero_grad()
        y.backward(gradient)
        optimizer.step()

    return run


STEPS = {
    "qa": lambda: of_catbabi("qa"),
    "lm": lambda: of_catbabi("lm"),
    "qa-plain": lambda: of_catbabi("qa", "plain"),
    "lm-plain": lambda: of_catbabi("lm", "plain"),
    "qa-bfloat16": lambda: of_catbabi("qa", bfloat16=True),
    "lm-bfloat16": lambda: of_catbabi("lm", bfloat16=True),
    "agent": lambda: training_episode(Work(batch_size=600, length=30), "auto"),
    "one-by-one": lambda: training_episode(Work(batch_size=600, length=30), "reference"),
    "token": lambda: measurements.token_by_token(Work("lm", 1, 300), "auto"),
    "lstm-1150": lambda: of_core(LSTM(1150, 1150), 20, 70),
    "lstm-4x512": lambda: of_core(LSTMStack(256, 512, 4), 32, 100),
    "fw-rnn-512": lambda: of_core(FastWeightRNN(256, 512), 32, 50),
}


def main() -> None:
    """Warm up, measure, print."""
    name, repeats = sys.argv[1], int(sys.argv[2])
    keep_freed_blocks()  # as training does
    run, seconds = STEPS[name](), []
    for number in range(3 + repeats):
        start = time.perf_counter()
        run()
        if number >= 3:
            seconds.append(time.perf_counter() - start)
    print(name, *(f"{found * 1000:.1f}" for found in (statistics.median(seconds), min(seconds))))


if __name__ == "__main__":
    main()
