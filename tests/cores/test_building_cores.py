import pytest

from fastweights.cores import CORES, FastWeightMemory, LSTMStack, build, state_size
from fastweights.errors import UserError


@pytest.mark.parametrize("name", CORES)
def test_every_core_builds_from_its_name(name):
    core = build({"type": name, "hidden_size": 8}, input_size=5)
    assert type(core) is CORES[name]
    assert (core.input_size, core.output_size) == (5, 8)


def test_a_slow_core_may_be_described_too():
    core = build({"type": "fwm", "memory_size": 4, "slow": {"type": "lstm-stack", "hidden_size": 8}}, input_size=5)
    assert isinstance(core.slow, LSTMStack)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"type": "fmw"}, 'no core "fmw".*did you mean "fwm"'),
        ({}, 'no core "None"'),
        ({"type": "fwm", "memory": 3}, 'no option "memory".*did you mean "memory_size"'),
        ({"type": "fwm", "hidden_size": "big"}, "core.hidden_size is 'big'"),
        ({"type": "fwm", "num_reads": 2, "memory_size": 4, "value_size": 5}, "set num_reads to 1"),
        ({"type": "fwm", "slow": {"type": "gru"}}, 'no core "gru"'),
    ],
)
def test_mistakes_are_explained(spec, message):
    with pytest.raises(UserError, match=message):
        build(spec, input_size=5)


def test_the_state_is_as_large_as_in_the_paper():
    assert state_size(FastWeightMemory(256, 256, 32)) == 33_280
    assert state_size(LSTMStack(256, 512, 4)) == 4_096
