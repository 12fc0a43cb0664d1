"""Checkpoints: one safetensors file that holds the tensors and, in its header, their metadata as JSON.

Tensors and metadata share a file so that a single rename shows both at once: whoever reads a checkpoint,
and whenever its writer was killed, finds either the whole old one or the whole new one. Nothing is pickled,
so reading a checkpoint never runs code from it.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fastweights.errors import UserError, reason

_METADATA_KEY = "fastweights"
_DIGEST_KEY = "sha256"
_BLANK = "0" * 64  # in place of the digest of a file that holds it
_SEPARATOR = "/"
_NO_ROOM = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}


def save(path: str | Path, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    """Write the tensors and the metadata to `path` at once, or raise and leave what is there untouched.

    The metadata are saved as JSON: numbers exactly, tuples as lists, all keys as strings.

    >>> save("last.safetensors", flatten({"model": model.state_dict()}), {"step": 7})  # doctest: +SKIP

    Raises:
        UserError: where the file cannot be written.
        ValueError: where a tensor has the name that safetensors reserves.
    """
    if "__metadata__" in tensors:
        raise ValueError('a tensor cannot be named "__metadata__": safetensors keeps that name for itself')
    # Clones, because safetensors refuses tensors that share memory or do not lie in one piece.
    copies = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }
    # One key only, because safetensors writes several in a random order and the bytes would vary.
    text = json.dumps({_DIGEST_KEY: _BLANK, **metadata})
    content = safetensors.torch.save(copies, metadata={_METADATA_KEY: text})
    write_atomically(path, content.replace(_BLANK.encode(), _digest(content, _BLANK).encode(), 1))


def _digest(content: bytes, given: str) -> str:
    """The SHA-256 of a file's bytes with a blank in place of the digest `given` in it."""
    before, _, after = content.partition(given.encode())
    found = hashlib.sha256(before)
    found.update(_BLANK.encode())
    found.update(after)
    return found.hexdigest()


def load(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors, on the CPU, and the metadata that `save` wrote to `path`, after a check of all its bytes.

    Raises:
        UserError: where there is no whole checkpoint, or its bytes are not those that were saved.
    """
    metadata = _read_header(path)
    given = metadata.pop(_DIGEST_KEY, None)
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror or error}); choose another checkpoint") from error
    if not isinstance(given, str) or _digest(content, given) != given:
        raise UserError(f"{path} is damaged: its bytes are not those that were saved; choose another checkpoint")
    return safetensors.torch.load(content), metadata


def read_metadata(path: str | Path) -> dict[str, Any]:
    """Return the metadata that `save` wrote to `path`, reading no tensor.

    Raises:
        UserError: where there is no whole checkpoint.
    """
    metadata = _read_header(path)
    metadata.pop(_DIGEST_KEY, None)
    return metadata


def flatten(nested: dict[str, Any]) -> dict[str, Tensor]:
    """Return the tensors of a nested dictionary under their paths; an empty dictionary leaves no trace.

    >>> flatten({"model": {"layer.weight": torch.ones(1)}, "step": torch.tensor(3)})
    {'model/layer.weight': tensor([1.]), 'step': tensor(3)}

    Raises:
        ValueError: where a name has a "/" in it.
        TypeError: where a value is neither a tensor nor a dictionary.
    """
    flat = {}
    for name, value in nested.items():
        if not isinstance(name, str) or _SEPARATOR in name:
            raise ValueError(f'a name must be a string without "{_SEPARATOR}", not {name!r}')
        if isinstance(value, dict):
            flat.update({f"{name}{_SEPARATOR}{rest}": tensor for rest, tensor in flatten(value).items()})
        elif isinstance(value, Tensor):
            flat[name] = value
        else:
            raise TypeError(f'"{name}" must be a tensor or a dictionary, not {type(value).__name__}')
    return flat


def unflatten(flat: dict[str, Tensor]) -> dict[str, Any]:
    """Return the nested dictionary that `flatten` made flat.

    >>> unflatten({"model/layer.weight": torch.ones(1), "step": torch.tensor(3)})
    {'model': {'layer.weight': tensor([1.])}, 'step': tensor(3)}

    Raises:
        ValueError: where a path is that of a tensor and of a dictionary.
    """
    nested: dict[str, Any] = {}
    for path, tensor in flat.items():
        *folders, name = path.split(_SEPARATOR)
        place = nested
        for folder in folders:
            place = place.setdefault(folder, {})
            if not isinstance(place, dict):
                raise ValueError(f'"{path}" lies inside the name of another tensor')
        if name in place:
            raise ValueError(f'"{path}" is the name of a tensor and of a dictionary')
        place[name] = tensor
    return nested


def write_atomically(path: str | Path, content: bytes) -> None:
    """Replace the file at `path` by one that holds `content`, or raise `UserError` and leave it untouched."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
    try:
        _remove_leftovers(path)
        try:
            with open(partial, "xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise unwritable(path, error) from error
    _sync_folder(path.parent)


def unwritable(path: str | Path, error: OSError | ValueError) -> UserError:
    """The error for a `path` that cannot be written: the reason and what to do."""
    if isinstance(error, OSError) and error.errno in _NO_ROOM:
        advice = "free some space or choose another folder"
    else:
        advice = "check that its folder exists and may be written to"
    return UserError(f"cannot write {path} ({getattr(error, 'strerror', None) or error}); {advice}")


def _remove_leftovers(path: Path) -> None:
    """Remove the partial files of saves to `path` that were killed."""
    leftover = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{16}}\.partial")
    for sibling in path.parent.iterdir():
        if leftover.fullmatch(sibling.name):
            sibling.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make a rename in `folder` outlast a power cut, where the system can."""
    if os.name != "posix":
        return
    # The new file is whole and in place by now, and some network file systems refuse to sync a folder.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _read_header(path: str | Path) -> dict[str, Any]:
    """The metadata with the digest, from the header of the checkpoint at `path`.

    Raises:
        UserError: saying what is wrong with it.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = json.loads((file.metadata() or {})[_METADATA_KEY])
    except FileNotFoundError as error:
        raise UserError(f"there is no checkpoint at {path}; check the path") from error
    except SafetensorError as error:
        raise UserError(f"{path} is no whole safetensors file ({reason(error)}); choose another checkpoint") from error
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror or error}); choose another checkpoint") from error
    except (KeyError, ValueError, RecursionError):
        metadata = None
    if not isinstance(metadata, dict):
        raise UserError(f"{path} was not saved by fastweights; choose another checkpoint")
    return metadata
