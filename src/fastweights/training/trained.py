"""A trained model, loaded from a checkpoint in one line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fastweights import recipes, specs
from fastweights.cores.contract import map_state, state_from_dict
from fastweights.data.vocabulary import Vocabulary
from fastweights.errors import UserError, reason
from fastweights.models import Model
from fastweights.recipes import Assembly
from fastweights.training import checkpoint
from fastweights.training.runs import RunFolder


class TrainedModel(NamedTuple):
    """A model in eval mode, its state at the end of training (one row, or None), metadata and its recipe's parts."""

    model: Model
    state: Any
    metadata: dict[str, Any]
    assembly: Assembly

    @property
    def vocabulary(self) -> Vocabulary:
        """The vocabulary: `encode(text)` gives tokens, `decode(tokens)` words.

        Raises:
            UserError: where the model is an agent.
        """
        if not isinstance(self.assembly.interface, Vocabulary):
            raise UserError("The model is an agent, which has no vocabulary; load a token model.")
        return self.assembly.interface


def load_model(path: str | Path, overrides: Sequence[str] = (), *, trust: bool = False) -> TrainedModel:
    """Load a trained model.

    >>> trained = load_model("runs/mine")  # doctest: +SKIP
    >>> tokens = trained.vocabulary.encode("mary went to the kitchen. where is mary?")  # doctest: +SKIP
    >>> logits, state = trained.model(torch.from_numpy(tokens).unsqueeze(0), trained.state)  # doctest: +SKIP

    Args:
        path: a checkpoint, or a run folder (its best checkpoint).
        overrides: other settings of the task or objective, such as "--task.distractors=2".
        trust: import code outside the package that the checkpoint names (an own core, task or objective).

    Raises:
        UserError: where there is no such checkpoint, it is truncated, it is of another model, or it names code outside
            the package and `trust` is False.
    """
    path = checkpoint_of(path)
    flat, metadata = checkpoint.load(path)
    assembly = _assemble(path, metadata, overrides, trust)
    try:
        tensors = checkpoint.unflatten(flat)
        weights = tensors["model"] | tensors.get("average", {})
        assembly.model.load_state_dict(weights)
        state = None
        if "state" in tensors:
            state = state_from_dict(assembly.model.core.initial_state(1), tensors["state"])
            state = map_state(lambda tensor: tensor[:1], state)
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise _other_model(path, error) from error
    return TrainedModel(assembly.model.eval(), state, metadata, assembly)


def checkpoint_of(path: str | Path) -> Path:
    """The checkpoint itself, or a run folder's best one, or its last where no validation was made yet."""
    path = Path(path)
    if not path.is_dir():
        return path
    run = RunFolder.open(path)
    return run.best if run.best.exists() else run.last


def _assemble(path: Path, metadata: dict[str, Any], overrides: Sequence[str], trust: bool) -> Assembly:
    """The parts that a checkpoint's metadata describe.

    Raises:
        UserError: where they cannot be built, or name code outside the package and `trust` is False.
    """
    for override in overrides:
        if override.partition("=")[0].partition(".")[0] not in ("--task", "--objective"):
            raise UserError(f"A trained model has its model and training settings; leave {override} out.")
    if not {"recipe", "interface", "step"} <= metadata.keys():
        raise UserError(f"{path} does not say which model it holds; choose another checkpoint.")
    refuse_outside_code(path, metadata["recipe"], trust)
    try:
        recipe = recipes.load(metadata["recipe"], overrides)
        return recipes.assemble(recipe, interface=recipes.load_interface(metadata))
    except UserError as error:
        if overrides:
            raise
        raise UserError(f"{path}: {error}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise _other_model(path, error) from error


def refuse_outside_code(path: Path, recipe: Any, trust: bool) -> None:
    """Refuse a recipe out of a file that names code outside the package.

    Raises:
        UserError: where it does and `trust` is False.
    """
    outside = specs.import_paths(recipe)
    if outside and not trust:
        raise UserError(
            f"{path} names code outside the package ({', '.join(outside)}), which loading it would run; if you trust "
            "it, give --trust (in Python: trust=True)."
        )


def _other_model(path: Path, error: Exception) -> UserError:
    return UserError(
        f"{path} holds another model than its recipe says ({reason(error)[:200]}); choose another checkpoint."
    )
