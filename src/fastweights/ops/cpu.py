"""The compiled CPU kernels (csrc/): one library in this package, where the installation could build it.

They are called through a C interface, so that they fit every version of torch and Python. The instruction set is chosen
here, by what the processor says it has; FASTWEIGHTS_INSTRUCTION_SET names another for tests.
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

import fastweights
from fastweights.ops.layer_norm import EPSILON

INSTRUCTION_SETS = ("baseline", "avx2", "avx512", "avx512bf16")
WIDEST_VECTOR = 16  # rows of floats are padded to whole ones
MOST_HOPS = 16  # in a chain of reads of the fast weight memory


class _Arguments(ctypes.Structure):
    def __init__(self, **values: Tensor | float | None):
        super().__init__()
        self.tensors: list[Tensor] = []  # these live as long as the pointers to them
        self.set(**values)

    def set(self, **values: Tensor | float | None) -> None:
        """Set more of the fields; None is a null pointer."""
        for name, value in values.items():
            if isinstance(value, Tensor):
                self.tensors.append(value)
                value = value.data_ptr()
            setattr(self, name, value)

    def set_contiguous(self, **values: Tensor | None) -> None:
        """Set pointers to tensors, or to copies of them in one piece."""
        for name, value in values.items():
            if value is not None:
                value = value.contiguous()
                self.tensors.append(value)
                setattr(self, name, value.data_ptr())

    def set_sequence(self, name: str, value: Tensor | None) -> None:
        """Set a tensor `[B, T, …]` that is read by its strides, its last dimension in one piece."""
        if value is not None:
            self.set_strided(name, rows(value))

    def set_strided(self, name: str, value: Tensor) -> None:
        """Set a tensor `[B, T, …]` that is read by its strides."""
        self.tensors.append(value)
        setattr(self, name, value.data_ptr())
        row, step, *_ = value.stride()
        setattr(self, f"{name}_row", row)
        setattr(self, f"{name}_step", step)


def _fields(sizes: str = "", pointers: str = "", numbers: str = "") -> list[tuple[str, type]]:
    kinds = ((ctypes.c_int64, sizes), (ctypes.c_double, numbers), (ctypes.c_void_p, pointers))
    return [(name, kind) for kind, names in kinds for name in names.split()]


class LSTMArguments(_Arguments):
    """`LSTMArguments` of csrc/kernels.h."""

    _fields_ = [
        *_fields("B T H threads bfloat16", "gate_inputs"),
        *_fields("gate_inputs_row gate_inputs_step", "tokens"),
        *_fields("tokens_row tokens_step", "weight hidden cell mask resets hiddens last_hidden last_cell cells gates"),
        *_fields("", "d_hiddens"),
        *_fields("d_hiddens_row d_hiddens_step", "d_gate_inputs d_hidden d_cell"),
    ]


class GatherArguments(_Arguments):
    """`GatherArguments` of csrc/kernels.h."""

    _fields_ = _fields("positions columns threads", "tokens gradient table")


class LimitArguments(_Arguments):
    """`LimitArguments` of csrc/kernels.h."""

    _fields_ = _fields("threads repeats bfloat16 size", "values sink count")


class FWMArguments(_Arguments):
    """`FWMArguments` of csrc/kernels.h."""

    _fields_ = [
        *_fields("B T d hops chunk threads", "k1 k2 v beta n e"),
        *_fields("k1_row k1_step k2_row k2_step v_row v_step beta_row beta_step n_row n_step e_row e_step"),
        *_fields(
            "", "output_mask mask resets memory outputs last_memory starts old written factors retrieved d_outputs"
        ),
        *_fields("d_outputs_row d_outputs_step", "d_last_memory d_k1 d_k2 d_v d_beta d_n d_e d_memory"),
    ]


class FWMStepArguments(_Arguments):
    """`FWMStepArguments` of csrc/kernels.h."""

    _fields_ = [
        *_fields("B d hops threads count capacity", "k1 k2 v beta n e"),
        *_fields(
            "k1_row k2_row v_row beta_row n_row e_row", "first_keys second_keys written decay squared_norm outputs"
        ),
    ]


class CoreStepArguments(_Arguments):
    """`CoreStepArguments` of csrc/kernels.h."""

    _fields_ = [
        *_fields("B I H d hops threads tanh_first_query tanh_queries residual", numbers="forget_bias write_scale"),
        *_fields("", "x input_weight recurrent_weight bias second_bias write_weight write_bias read_weight read_bias"),
        *_fields("", "output_weight output_bias hidden cell memory outputs new_hidden new_cell new_memory"),
        ("log", FWMStepArguments),
    ]


class FWLSTMArguments(_Arguments):
    """`FWLSTMArguments` of csrc/kernels.h."""

    _fields_ = [
        *_fields("B T H chunk threads keep", numbers="decay rate", pointers="gate_inputs"),
        *_fields(
            "gate_inputs_row gate_inputs_step", "weight gates_gain gates_bias cell_gain cell_bias hidden cell memory"
        ),
        *_fields("", "mask resets hiddens last_hidden last_cell last_memory"),
        *_fields("", "before gates moments totals candidates cells keys starts d_hiddens"),
        *_fields("d_hiddens_row d_hiddens_step has_d_last_memory", "d_gate_inputs d_hidden d_cell d_memory d_norms"),
    ]


class FWRNNArguments(_Arguments):
    """`FWRNNArguments` of csrc/kernels.h."""

    _fields_ = [
        *_fields("B T H chunk threads keep inner_steps", numbers="decay rate", pointers="inputs"),
        *_fields(
            "inputs_row inputs_step", "weight gain bias hidden memory mask resets hiddens last_hidden last_memory"
        ),
        *_fields("", "sums moments queries keys starts d_hiddens"),
        *_fields("d_hiddens_row d_hiddens_step has_d_last_memory", "d_inputs d_hidden d_memory d_norms"),
    ]


class MNMArguments(_Arguments):
    """`MNMArguments` of csrc/kernels.h."""

    _fields_ = [
        *_fields("B T H m heads layers threads keep interval", "gate_inputs"),
        *_fields("gate_inputs_row gate_inputs_step", "recurrent_weight interaction_weight interaction_bias"),
        *_fields("", "strength_weight strength_bias target_weight target_bias"),
        *_fields("", "hidden cell read memory initial_memory mask resets"),
        *_fields("", "outputs meta_losses last_hidden last_cell last_read last_memory"),
        *_fields("", "gates cells interactions strengths activations errors memories d_outputs"),
        *_fields("d_outputs_row d_outputs_step", "d_meta_losses d_gates d_interactions d_strengths d_targets"),
        *_fields("", "d_hidden d_cell d_read d_memory d_initial_memories"),
    ]


# What csrc/kernels.h must have the same of (`fastweights_interface` in csrc/dispatch.cpp): a library of another version
# would take one field for another.
VERSION = 4
STRUCTURES = (
    LSTMArguments,
    GatherArguments,
    FWMArguments,
    FWMStepArguments,
    CoreStepArguments,
    LimitArguments,
    FWLSTMArguments,
    FWRNNArguments,
    MNMArguments,
)
INTERFACE = [VERSION, WIDEST_VECTOR, MOST_HOPS, round(EPSILON * 1e9), *(ctypes.sizeof(x) for x in STRUCTURES)]


def _interface(library: ctypes.CDLL) -> list[int] | None:
    """The INTERFACE of a library, or None if it is too old to have one."""
    values = (ctypes.c_int64 * 64)()
    try:
        return values[: library.fastweights_interface(values)]
    except AttributeError:
        return None


def _find() -> list[Path]:
    folders = (Path(folder) for folder in fastweights.__path__)  # two of them in an editable installation
    return [path for folder in folders for path in folder.glob("lib/libkernels.*") if path.suffix in (".so", ".dylib")]


def _load(paths: Sequence[Path]) -> tuple[ctypes.CDLL | None, str | None]:
    """The first library whose interface is this one, or why there is none."""
    problem = "the compiled kernels are not installed (no C++ compiler was found, or it failed)"
    for path in paths:
        try:
            library = ctypes.CDLL(str(path))
        except OSError as error:
            problem = f"the compiled kernels do not load ({error})"
            continue
        if _interface(library) == INTERFACE:
            return library, None
        problem = "the compiled kernels are of another version than the Python code; install fastweights again"
    return None, problem


def best() -> int:
    """The index in INSTRUCTION_SETS of the best that this processor has; all before it run, too."""
    return LIBRARY.fastweights_best() if LIBRARY else 0


def _instruction_set() -> int:
    name = os.environ.get("FASTWEIGHTS_INSTRUCTION_SET")
    return min(best(), INSTRUCTION_SETS.index(name)) if name in INSTRUCTION_SETS else best()


LIBRARY, PROBLEM = _load(_find())
INSTRUCTION_SET = _instruction_set()


def has_bfloat16() -> bool:
    """Whether the kernels' products can take operands in bfloat16."""
    return INSTRUCTION_SETS[INSTRUCTION_SET].endswith("bf16")


def instruction_set() -> str | None:
    """The name of the instruction set that the kernels use here, or None where there are none."""
    if LIBRARY is None:
        return None
    on_x86 = platform.machine().lower() in ("x86_64", "amd64")
    return INSTRUCTION_SETS[INSTRUCTION_SET] if on_x86 else "portable"


def call(function: str, arguments: _Arguments) -> None:
    """Run a kernel.

    Raises:
        RuntimeError: if it does not support a size (the op's backend should have said so before).
    """
    if getattr(LIBRARY, f"fastweights_{function}")(ctypes.byref(arguments), INSTRUCTION_SET):
        raise RuntimeError(f"the kernel {function} does not support tensors of these sizes")


def forward(
    function: str, arguments: _Arguments, found: dict[str, Tensor], mask: Tensor | None, **sequence: Tensor
) -> dict[str, Tensor]:
    """Run a recurrence's kernel on an input sequence, and return the results, whose memory is given."""
    if mask is not None and not mask.all():  # padding leaves values unwritten
        for tensor in found.values():
            tensor.zero_()
    arguments.set(**found)
    for name, value in sequence.items():
        arguments.set_sequence(name, value)
    call(function, arguments)
    return found


def unsupported_reason(device: str, tensors: Sequence[Tensor | None] = ()) -> str | None:
    """Why the kernels cannot run on a type of device, or on tensors; None where they can."""
    if PROBLEM:
        return PROBLEM
    for tensor in tensors:
        if tensor is None:
            continue
        if tensor.device.type != "cpu":
            return f"it runs on the CPU, the tensors are on {tensor.device.type}"
        if tensor.dtype != torch.float32:
            return f"it computes in float32, the tensors are {str(tensor.dtype).removeprefix('torch.')}"
    return None if device == "cpu" else f"it runs on the CPU, not on {device}"


def rows(tensor: Tensor) -> Tensor:
    """The tensor, or a copy of it, whose last dimension lies in one piece, as the kernels read it."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def padded(size: int) -> int:
    """A size rounded up to whole vectors, as the kernels keep rows."""
    return -(-size // WIDEST_VECTOR) * WIDEST_VECTOR


def initial_gradient(gradient: Tensor | None, like: Tensor) -> Tensor:
    """The gradient of a last state, for the kernel to update in place: a copy, or zeros for None."""
    return torch.zeros_like(like) if gradient is None else gradient.clone(memory_format=torch.contiguous_format)
