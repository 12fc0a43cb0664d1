import errno
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastweights.errors import UserError
from fastweights.training.checkpoint import flatten, load, read_metadata, save, unflatten, write_atomically

posix_only = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals and limits")

finite_or_infinite = st.floats(allow_nan=False)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | finite_or_infinite | st.text(),
    lambda parts: st.lists(parts, max_size=3) | st.dictionaries(st.text(), parts, max_size=3),
    max_leaves=10,
)
names = st.text(st.characters(exclude_characters="/", exclude_categories=["Cs"]), max_size=5)
nested_integers = st.recursive(
    st.integers(0, 9), lambda parts: st.dictionaries(names, parts, min_size=1, max_size=3), max_leaves=10
).filter(lambda value: isinstance(value, dict))


def same_bits(first: torch.Tensor, second: torch.Tensor) -> bool:
    return (
        first.dtype == second.dtype
        and first.shape == second.shape
        and first.contiguous().flatten().view(torch.uint8).tolist()
        == second.contiguous().flatten().view(torch.uint8).tolist()
    )


def start(code: str, *arguments: object) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.parametrize(
    "dtype",
    [
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.float8_e4m3fn,
        torch.complex64,
        torch.int64,
        torch.uint8,
        torch.bool,
    ],
)
@pytest.mark.parametrize("shape", [(), (0, 3), (1,), (2, 3)])
def test_tensors_come_back_bit_for_bit(tmp_path, dtype, shape):
    tensor = torch.randint(0, 9, shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    save(tmp_path / "one.safetensors", {"x": tensor}, {})
    tensors, _ = load(tmp_path / "one.safetensors")
    assert list(tensors) == ["x"]
    assert same_bits(tensors["x"], tensor)


def test_special_numbers_come_back_bit_for_bit(tmp_path):
    tensor = torch.tensor([math.nan, -math.nan, math.inf, -math.inf, -0.0, 5e-324], dtype=torch.float64)
    save(tmp_path / "one.safetensors", {"x": tensor}, {})
    assert same_bits(load(tmp_path / "one.safetensors")[0]["x"], tensor)


def test_shared_strided_conjugate_and_trained_tensors_are_saved_as_they_look(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {
        "base": base,
        "tied": base,
        "transposed": base.t(),
        "slice": base[1:, ::2],
        "expanded": base[:1].expand(5, 4),
        "conjugate": torch.tensor([1 + 2j]).conj(),
        "parameter": torch.nn.Parameter(base.clone()),
    }
    save(tmp_path / "one.safetensors", tensors, {})
    loaded, _ = load(tmp_path / "one.safetensors")
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(loaded[name], tensor.detach()), name
    loaded["base"].add_(1)
    assert torch.equal(loaded["tied"], base)
    assert torch.equal(load(tmp_path / "one.safetensors")[0]["base"], base)


def test_loaded_tensors_do_not_hang_on_the_file(tmp_path):
    path = tmp_path / "one.safetensors"
    save(path, {"x": torch.ones(1000)}, {})
    tensors, _ = load(path)
    with open(path, "r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert torch.equal(tensors["x"], torch.ones(1000))


@settings(max_examples=50, deadline=None)  # a slow disk is no failure
@given(metadata=st.dictionaries(st.text(), json_values, max_size=4))
def test_metadata_come_back_exactly(tmp_path_factory, metadata):
    path = tmp_path_factory.getbasetemp() / "metadata.safetensors"
    save(path, {}, metadata)
    assert repr(load(path)[1]) == repr(metadata)
    assert repr(read_metadata(path)) == repr(metadata)


def test_the_same_content_makes_the_same_bytes(tmp_path):
    code = """
import sys, torch
from fastweights.training.checkpoint import save
save(sys.argv[1], {"b": torch.ones(2), "a": torch.zeros(3)}, {"step": 1, "loss": 0.1})
"""
    paths = [tmp_path / f"{number}.safetensors" for number in range(2)]
    for path in paths:
        process = start(code, path)
        process.communicate()
        assert process.returncode == 0
    assert paths[0].read_bytes() == paths[1].read_bytes()


@settings(deadline=None)
@given(shape=nested_integers)
def test_unflatten_undoes_flatten(shape):
    def with_tensors(value):
        if isinstance(value, dict):
            return {name: with_tensors(part) for name, part in value.items()}
        return torch.tensor(value)

    def with_integers(value):
        if isinstance(value, dict):
            return {name: with_integers(part) for name, part in value.items()}
        return value.item()

    flat = flatten(with_tensors(shape))
    assert all(isinstance(tensor, torch.Tensor) for tensor in flat.values())
    assert with_integers(unflatten(flat)) == shape


def test_a_model_and_its_optimiser_come_back(tmp_path):
    model = torch.nn.Linear(3, 2)
    optimiser = torch.optim.Adam(model.parameters())
    model(torch.ones(3)).sum().backward()
    optimiser.step()
    state = {str(index): part for index, part in optimiser.state_dict()["state"].items()}
    save(tmp_path / "last.safetensors", flatten({"model": model.state_dict(), "optimiser": state}), {"step": 1})

    tensors, metadata = load(tmp_path / "last.safetensors")
    nested = unflatten(tensors)
    assert metadata == {"step": 1}
    assert set(nested) == {"model", "optimiser"}
    assert torch.equal(nested["model"]["weight"], model.weight.detach())
    assert nested["optimiser"]["0"]["step"].shape == ()
    assert torch.equal(nested["optimiser"]["1"]["exp_avg_sq"], state["1"]["exp_avg_sq"])


@pytest.mark.parametrize("nested", [{"a/b": torch.ones(1)}, {0: torch.ones(1)}, {"a": {"/": torch.ones(1)}}])
def test_flatten_refuses_names_that_would_not_come_back(nested):
    with pytest.raises(ValueError, match="must be a string without"):
        flatten(nested)


def test_flatten_refuses_what_is_no_tensor():
    with pytest.raises(TypeError, match='"step" must be a tensor or a dictionary, not int'):
        flatten({"model": {"step": 3}})


@pytest.mark.parametrize("order", [["a", "a/b"], ["a/b", "a"]])
def test_unflatten_refuses_a_name_that_is_both_tensor_and_dictionary(order):
    with pytest.raises(ValueError, match="tensor"):
        unflatten({name: torch.ones(1) for name in order})


@pytest.mark.parametrize(
    ("tensors", "metadata", "kind"),
    [
        ({"__metadata__": torch.ones(1)}, {}, ValueError),
        ({"x": torch.ones(1, dtype=torch.complex128)}, {}, KeyError),
        ({"x": torch.ones(1)}, {"bad": object()}, TypeError),
    ],
)
def test_what_cannot_be_saved_leaves_the_old_checkpoint(tmp_path, tensors, metadata, kind):
    path = tmp_path / "last.safetensors"
    save(path, {}, {"step": 1})
    with pytest.raises(kind):
        save(path, tensors, metadata)
    assert read_metadata(path) == {"step": 1}
    assert os.listdir(tmp_path) == ["last.safetensors"]


def whole_checkpoint(folder: Path) -> bytes:
    save(folder / "whole.safetensors", {"x": torch.arange(100.0)}, {"step": 1})
    return (folder / "whole.safetensors").read_bytes()


def assert_refused(path: Path) -> None:
    for read in (load, read_metadata):
        with pytest.raises(UserError) as caught:
            read(path)
        message = str(caught.value)
        assert str(path) in message
        assert "\n" not in message
        assert ";" in message


def test_every_truncation_is_refused(tmp_path):
    content = whole_checkpoint(tmp_path)
    path = tmp_path / "cut.safetensors"
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(UserError):
            load(path)
    for length in (0, 4, 8, 20, len(content) - 1):
        path.write_bytes(content[:length])
        assert_refused(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04 a zip file, perhaps a pickled one" * 9,
        b"\x80\x02}q\x00.",
        b"\xff" * 64,
        safetensors.torch.save({"x": torch.ones(1)}),
        safetensors.torch.save({"x": torch.ones(1)}, metadata={"format": "pt"}),
        safetensors.torch.save({"x": torch.ones(1)}, metadata={"fastweights": "not JSON"}),
        safetensors.torch.save({"x": torch.ones(1)}, metadata={"fastweights": "[1]"}),
        safetensors.torch.save({"x": torch.ones(1)}, metadata={"fastweights": "[" * 100_000}),
    ],
    ids=lambda content: repr(content[:12]),
)
def test_foreign_files_are_refused(tmp_path, content):
    path = tmp_path / "foreign.safetensors"
    path.write_bytes(content)
    assert_refused(path)


def test_missing_files_and_folders_are_refused(tmp_path):
    assert_refused(tmp_path / "missing.safetensors")
    assert_refused(tmp_path / "missing" / "last.safetensors")
    assert_refused(tmp_path)
    with pytest.raises(UserError, match=r"there is no checkpoint at .*; check the path"):
        load(tmp_path / "missing.safetensors")


def test_saving_into_a_missing_folder_says_so(tmp_path):
    with pytest.raises(UserError, match=r"cannot write .*missing.* check that its folder exists"):
        save(tmp_path / "missing" / "last.safetensors", {}, {})
    assert os.listdir(tmp_path) == []


@posix_only
def test_a_file_that_the_system_refuses_to_grow_leaves_the_old_checkpoint(tmp_path):
    code = """
import resource, sys, torch
from fastweights.errors import UserError
from fastweights.training.checkpoint import save
save(sys.argv[1], {"x": torch.ones(10)}, {"step": 1})
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    save(sys.argv[1], {"x": torch.ones(100_000)}, {"step": 2})
except UserError as error:
    print(error)
"""
    path = tmp_path / "last.safetensors"
    process = start(code, path)
    message = process.communicate()[0].strip()
    assert process.returncode == 0
    assert message == f"cannot write {path} (File too large); free some space or choose another folder"
    assert os.listdir(tmp_path) == ["last.safetensors"]
    assert load(path)[1] == {"step": 1}


@pytest.mark.parametrize("function", ["fsync", "replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_failure_at_any_stage_leaves_the_old_checkpoint(tmp_path, monkeypatch, function, number):
    path = tmp_path / "last.safetensors"
    save(path, {}, {"step": 1})

    def fail(*_):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, function, fail)
        with pytest.raises(UserError, match=r"cannot write .*last.safetensors") as caught:
            save(path, {"x": torch.ones(5)}, {"step": 2})
    assert ("free some space" in str(caught.value)) == (number == errno.ENOSPC)
    assert os.listdir(tmp_path) == ["last.safetensors"]
    assert read_metadata(path) == {"step": 1}


def test_an_interrupted_save_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "last.safetensors"
    save(path, {}, {"step": 1})

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupt)
        with pytest.raises(KeyboardInterrupt):
            save(path, {}, {"step": 2})
    assert os.listdir(tmp_path) == ["last.safetensors"]
    assert read_metadata(path) == {"step": 1}


@posix_only
def test_the_content_is_on_disk_before_the_name_is_and_the_name_before_the_return(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        original = getattr(os, name)
        monkeypatch.setattr(
            os, name, lambda *parts, name=name, original=original: (calls.append(name), original(*parts))[1]
        )
    write_atomically(tmp_path / "file", b"content")
    assert calls == ["fsync", "replace", "fsync"]


def test_leftovers_of_killed_saves_to_this_path_only_are_removed(tmp_path):
    leftover = tmp_path / ".last.safetensors.0123456789abcdef.partial"
    others = [
        tmp_path / ".best.safetensors.0123456789abcdef.partial",
        tmp_path / ".last.safetensors.partial",
        tmp_path / "last.safetensors.0123456789abcdef.partial",
    ]
    for file in (leftover, *others):
        file.write_bytes(b"torn")
    save(tmp_path / "last.safetensors", {}, {"step": 1})
    assert not leftover.exists()
    assert all(file.exists() for file in others)


@posix_only
def test_a_saved_file_has_the_usual_permissions(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    save(tmp_path / "last.safetensors", {}, {})
    assert (tmp_path / "last.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


@posix_only
def test_a_save_killed_at_any_moment_leaves_a_whole_checkpoint(tmp_path):
    code = """
import itertools, sys, torch
from fastweights.training.checkpoint import load, save
first = load(sys.argv[1])[1]["step"] + 1
print("ready", flush=True)
for step in itertools.count(first):
    save(sys.argv[1], {"x": torch.full((300_000,), step), "y": torch.tensor(step)}, {"step": step})
"""
    path = tmp_path / "last.safetensors"
    save(path, {"x": torch.zeros(300_000, dtype=torch.int64), "y": torch.tensor(0)}, {"step": 0})
    moments = random.Random(0)
    reached = 0
    for _ in range(5):
        process = start(code, path)
        assert process.stdout.readline() == "ready\n"
        time.sleep(moments.uniform(0.02, 0.2))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        tensors, metadata = load(path)
        assert tensors["y"].item() == metadata["step"] >= reached
        assert torch.equal(tensors["x"], torch.full((300_000,), metadata["step"]))
        reached = metadata["step"]
        assert len(os.listdir(tmp_path)) <= 2
    assert reached > 0
    save(path, {}, {"step": reached})
    assert os.listdir(tmp_path) == [path.name]


def test_the_metadata_lie_in_the_header_as_json(tmp_path):
    save(tmp_path / "one.safetensors", {"x": torch.ones(1)}, {"loss": 0.1})
    content = (tmp_path / "one.safetensors").read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    metadata = json.loads(header["__metadata__"]["fastweights"])
    assert len(metadata.pop("sha256")) == 64 and metadata == {"loss": 0.1}


def test_every_flipped_byte_is_refused(tmp_path):
    path = tmp_path / "one.safetensors"
    save(path, {"x": torch.arange(3.0), "é": torch.ones(2, dtype=torch.int64)}, {"step": 7, "loss": 0.1, "é": "x"})
    content = path.read_bytes()
    damaged = tmp_path / "damaged.safetensors"
    for place in range(len(content)):
        for flip in (1, 32, 255):
            changed = bytearray(content)
            changed[place] ^= flip
            damaged.write_bytes(changed)
            with pytest.raises(UserError):
                load(damaged)
    assert load(path)[1] == {"step": 7, "loss": 0.1, "é": "x"}


def test_every_truncation_and_every_longer_file_is_refused(tmp_path):
    path = tmp_path / "one.safetensors"
    save(path, {"x": torch.arange(3.0)}, {"step": 7})
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(UserError):
            load(path)
    path.write_bytes(content + b"x")
    with pytest.raises(UserError):
        load(path)


def test_a_file_without_a_digest_is_refused(tmp_path):
    path = tmp_path / "one.safetensors"
    path.write_bytes(safetensors.torch.save({"x": torch.ones(1)}, metadata={"fastweights": "{}"}))
    with pytest.raises(UserError, match="damaged"):
        load(path)
