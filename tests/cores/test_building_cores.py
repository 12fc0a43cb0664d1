import pytest

from fastweights.cores import CORES, LSTM, FastWeightMemory, LSTMStack, as_core, build, state_size
from fastweights.errors import UserError


@pytest.mark.parametrize("name", list(CORES))
def test_every_core_builds_from_its_name(name):
    core = build({"type": name, "hidden_size": 8}, input_size=5)
    assert type(core) is CORES.entries[name]
    assert (core.input_size, core.output_size) == (5, 8)


def test_a_slow_core_may_be_described_too():
    core = build({"type": "fwm", "memory_size": 4, "slow": {"type": "lstm-stack", "hidden_size": 8}}, input_size=5)
    assert isinstance(core.slow, LSTMStack)


def test_a_core_may_be_given_as_its_type_or_be_built_already():
    assert type(build("lstm", input_size=5)) is LSTM
    assert type(build({"type": "fwm", "slow": "lstm"}, input_size=5).slow) is LSTM
    core = LSTM(5, 8)
    assert as_core(core, 5) is core
    assert build({"type": "fwm", "slow": core}, input_size=5).slow is core


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"type": "fmw"}, 'no core "fmw".*did you mean "fwm"'),
        ({}, 'no core "None"'),
        ({"type": "fwm", "memory": 3}, 'no option "memory".*did you mean "memory_size"'),
        ({"type": "fwm", "hidden_size": "big"}, "hidden_size of the core \"fwm\" is 'big'"),
        ({"type": "fwm", "second_key_size": "big"}, "second_key_size of the core \"fwm\" is 'big'"),
        ({"type": "fwm", "slow": {"type": "lstm", "hidden_size": 0}}, 'hidden_size of the core "lstm" is 0'),
        ({"type": "fwm", "slow": 5}, 'slow of the core "fwm" is 5'),
        ({"type": "fwm", "slow": "gru"}, 'no core "gru"'),
        ({"type": "fwm", "write_scale": float("nan")}, 'write_scale of the core "fwm" is nan'),
        ({"type": "fwm", "write_scale": float("inf")}, 'write_scale of the core "fwm" is inf'),
        ("fmw", 'no core "fmw".*did you mean "fwm"'),
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
