"""For every test: fixed seeds, and memory that nobody has written yet is full of NaN."""

import os
import signal
from pathlib import Path

import pytest
import torch
from hypothesis import settings

settings.register_profile("default", deadline=None, derandomize=True)  # the same examples each time
settings.load_profile("default")
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job and its children ignore it


@pytest.fixture(autouse=True)
def seeds():
    torch.manual_seed(0)


@pytest.fixture
def real_data():
    """The directory of the real corpora."""
    if not os.environ.get("FASTWEIGHTS_DATA"):
        pytest.skip("FASTWEIGHTS_DATA is not set: it names the directory of the real babi, ptb and wikitext-2")
    return Path(os.environ["FASTWEIGHTS_DATA"])


@pytest.fixture(autouse=True, scope="session")
def unwritten_memory_is_nan():
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what torch asks for with deterministic algorithms
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)
