"""A fixed sample of hostile inputs; `python tests/hostile_inputs.py` makes as many as one likes."""

import contextlib
import shlex
import shutil
import sys
from collections import Counter
from pathlib import Path

import pytest

from hostile_files import CODE, FORMATS, SENTINEL, places
from hostile_inputs import MADE, READERS, attack, attacks, fine


def test_a_sample_ends_in_a_result_or_in_a_sentence(tmp_path):
    outcomes = attacks(200, seed=1, folder=str(tmp_path))
    faults = [outcome for outcome in outcomes if not fine(outcome)]
    assert not faults, faults
    assert Counter(outcome.kind for outcome in outcomes)["code 2"] > 80


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with all that files are copied from, and a module that leaves a mark where it is imported."""
    folder = tmp_path_factory.mktemp("attacked")
    with contextlib.chdir(folder):
        for line in MADE:
            assert attack(line.split(), patience=60).kind == "code 0"
        Path("hostile_sentinel.py").write_text(SENTINEL)
        sys.path.insert(0, str(folder))
        yield folder
        sys.path.remove(str(folder))


FILES = ("config.yaml", "best.safetensors", "last.safetensors")
READ = [(name, file) for name in ("run", "agent", "sweep/art/lstm/seed=0") for file in FILES]


@pytest.mark.parametrize(("name", "file"), [*READ, ("search", "journal.jsonl"), ("search", "search.json")])
def test_code_in_place_of_any_text_or_part_of_a_file_does_not_run(name, file, folder):
    thing, _, inside = name.partition("/")
    read, write = FORMATS[Path(file).suffix]
    document = read(folder / name / file)
    planted = [(at, key) for at, key in places(document) if isinstance(at[key], str | dict)]
    for number, (container, key) in enumerate(planted):
        before, container[key] = container[key], CODE[number % len(CODE)]
        shutil.copytree(thing, "copy")
        write(Path("copy", inside, file), document)
        outcome = attack(shlex.split(READERS[thing][number % len(READERS[thing])]))
        container[key] = before
        shutil.rmtree("copy")
        assert fine(outcome) and not Path("marker").exists(), (key, outcome)
    assert len(planted) > 10


def test_code_in_a_file_runs_where_one_trusts_it(folder):
    """So the tests above would see it."""
    read, write = FORMATS[".safetensors"]
    document = read(Path("run/best.safetensors"))
    document[1]["recipe"]["model"]["core"] = CODE[0]
    write(Path("trap.safetensors"), document)
    assert attack(["evaluate", "trap.safetensors"]).kind == "code 2" and not Path("marker").exists()
    assert attack(["evaluate", "trap.safetensors", "--trust"]).kind == "code 2" and Path("marker").exists()
    Path("marker").unlink()
