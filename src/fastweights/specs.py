"""Parts of a recipe by name: `{type: name, option: value, …}` becomes an object of the class that the name stands for.

Options are checked against the annotations of the class. A type is a registered name, or the import path of a class of
the user's own: `package.module:Class` or `path/to/file.py:Class`.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Generic, NamedTuple, TypeVar

from annotated_types import Ge, Gt, Le, Lt

from fastweights.errors import UserError, nearest, reason

if TYPE_CHECKING:
    from pydantic import ValidationError

T = TypeVar("T")

Size = Annotated[int, Ge(1), Lt(2**63)]
"""A number of things, at least 1."""
Count = Annotated[int, Ge(0), Lt(2**63)]
"""A number of things, or 0."""
Width = Annotated[int, Ge(1), Le(100_000), "a wider layer fits no machine"]
"""The size of a layer, of a key or of a value."""
VocabularySize = Annotated[int, Ge(1), Le(300_000), "each token has a name"]
"""A number of tokens."""
Depth = Annotated[int, Ge(1), Le(1_000), "they run one after another at every step"]
"""A number of layers, reads or iterations."""
Seed = Annotated[int, Ge(0), Lt(2**63)]
"""A seed of torch's and NumPy's generators."""
Fraction = Annotated[float, Ge(0), Le(1)]
Probability = Annotated[float, Ge(0), Lt(1)]
Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Decay = Annotated[float, Gt(0), Le(1)]
"""The factor by which something fades at each step; 1 keeps it."""


class Option(NamedTuple):
    """An option of a part: its annotation and its default (`inspect.Parameter.empty` where it has none)."""

    annotation: Any
    default: Any


class Registry(Generic[T]):
    """The parts of one kind, by name.

    Args:
        kind: the kind's name in messages, such as "core".
        base: the class that all parts of this kind extend.
        entries: a class for each name.
    """

    def __init__(self, kind: str, base: type[T], entries: Mapping[str, type[T]]):
        self.kind, self.base, self.entries = kind, base, dict(entries)

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def find(self, name: Any) -> type[T]:
        """The class of a name or of an import path.

        Raises:
            UserError: where there is none, or it is not of this kind.
        """
        if isinstance(name, str) and ":" in name:
            found = import_object(name)
            if not (isinstance(found, type) and issubclass(found, self.base)):
                raise UserError(f'"{name}" is no {self.kind}; it must be a class that extends {self.base.__name__}.')
            return found
        if not isinstance(name, str) or name not in self.entries:
            suggestion = nearest(str(name), self) or "."
            raise UserError(
                f'There is no {self.kind} "{name}"{suggestion} Set its type to one of: {", ".join(self)}; or to the '
                f"import path of your own, such as my_file.py:MyClass."
            )
        return self.entries[name]

    def build(self, spec: Mapping[str, Any] | str, *given: Any) -> T:
        """Build a part from its spec, or from its name alone.

        Raises:
            UserError: where the type or an option does not exist, or a value is of the wrong kind.
        """
        options = {"type": spec} if isinstance(spec, str) else dict(spec)
        name = options.pop("type", None)
        return call(f'{self.kind} "{name}"', self.find(name), options, *given)


def call(what: str, builder: Callable[..., T], options: Mapping[str, Any], *given: Any) -> T:
    """Call a class or function with `given` and options that are checked against its signature.

    Raises:
        UserError: where an option does not exist or is missing, or a value is of the wrong kind.
    """
    known = options_of(builder, skip=len(given))
    checked = {}
    for key, value in options.items():
        if key not in known:
            has = f"It has: {', '.join(known)}." if known else "It has none."
            raise UserError(f'The {what} has no option "{key}"{nearest(str(key), known) or "."} {has}')
        checked[key] = check(f"{key} of the {what}", value, known[key].annotation)
    for key, option in known.items():
        if option.default is inspect.Parameter.empty and key not in checked:
            raise UserError(f'The {what} needs the option "{key}"; set it in the recipe.')
    try:
        return builder(*given, **checked)
    except (ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"The {what} cannot be built: {reason(error)}.") from error


def options_of(builder: Callable[..., Any], skip: int = 0) -> dict[str, Option]:
    """The options of a class or function, without its first `skip` parameters."""
    try:
        parameters = inspect.signature(builder, eval_str=True).parameters
    except NameError:  # an annotation that is only there for a type checker
        parameters = inspect.signature(builder).parameters
    return {
        parameter.name: Option(parameter.annotation, parameter.default)
        for parameter in list(parameters.values())[skip:]
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }


def check(where: str, value: Any, annotation: Any) -> Any:
    """The value, checked against an annotation: no string for a number, no NaN, nothing out of range.

    >>> check("num_reads", 3, Size)
    3

    Raises:
        UserError: naming `where` it stands, what it is and what it must be.
    """
    if annotation is inspect.Parameter.empty or isinstance(annotation, str):
        return value
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    if isinstance(value, list) and any(
        typing.get_origin(a) is tuple for a in (annotation, *typing.get_args(annotation))
    ):
        value = tuple(value)
    config = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
    try:
        return TypeAdapter(annotation, config=config).validate_python(value)
    except ValidationError as error:
        raise UserError(f"{where} is {repr(value)[:200]}; it must be {_wanted(annotation, error)}.") from error


def _wanted(annotation: Any, error: ValidationError) -> str:
    """What a refused value must be, in words, with the reason of a bound."""
    parts = (annotation, *typing.get_args(annotation))
    sizes = [len(typing.get_args(part)) for part in parts if typing.get_origin(part) is tuple]
    reasons = [text for part in parts for text in getattr(part, "__metadata__", ()) if isinstance(text, str)]
    words = []
    for found in error.errors():
        if found["type"] in ("tuple_type", "too_long", "missing"):
            words.append(f"a list of {sizes[0]} values")
        elif found["type"] == "dict_type":
            words.append("a mapping of keys to values")
        elif "[key]" in found["loc"]:
            words.append("a mapping whose keys are words")
        elif found["type"] != "is_instance_of":  # an object of Python, which no recipe holds
            words.append(found["msg"].removeprefix("Input should be "))
        if found["type"] == "less_than_equal" and reasons:
            words[-1] += f" ({reasons[0]})"
    return " or ".join(dict.fromkeys(words)) or "left out"


def from_dict(cls: type[T], values: Any, where: str = "") -> T:
    """Build a dataclass, nested ones too, from a dictionary that is checked against its fields.

    Raises:
        UserError: where a key does not exist or a value is of the wrong kind.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"{where or 'The recipe'} is {values!r}; it must be a mapping of keys to values.")
    hints = typing.get_type_hints(cls, include_extras=True)
    names = [field.name for field in fields(cls)]  # type: ignore[arg-type]  # a dataclass
    found = {}
    for key, value in values.items():
        path = f"{where}.{key}" if where else str(key)
        if key not in names:
            known = [f"{where}.{name}" if where else name for name in names]
            raise UserError(f'A recipe has no key "{path}"{nearest(path, known) or "."}')
        nested = dataclass_in(hints[key])
        takes = nested is not None and not (value is None and nested is not hints[key])
        found[key] = from_dict(nested, value, path) if nested and takes else check(path, value, hints[key])
    return cls(**found)


def dataclass_in(hint: Any) -> type | None:
    """The dataclass of `X` or `X | None`, or None."""
    return next(
        (part for part in (hint, *typing.get_args(hint)) if isinstance(part, type) and is_dataclass(part)), None
    )


def keys_of(cls: type, where: str = "") -> list[str]:
    """The dotted keys of a dataclass and of those nested in it."""
    hints = typing.get_type_hints(cls, include_extras=True)
    keys = []
    for name, hint in hints.items():
        path = f"{where}{name}"
        nested = dataclass_in(hint)
        keys += keys_of(nested, f"{path}.") if nested else [path]
    return keys


def import_object(path: str) -> Any:
    """Import `package.module:Name`, or `path/to/file.py:Name`.

    Raises:
        UserError: where there is no such file, module or name.
    """
    module_name, _, name = path.rpartition(":")
    try:
        if module_name.endswith(".py"):
            file = Path(module_name).resolve()
            if not file.is_file():
                raise UserError(f'There is no file {module_name}, which "{path}" names; check the path.')
            module_name = f"fastweights_user.{file.stem}_{abs(hash(file)):x}"
            if module_name not in sys.modules:
                spec = importlib.util.spec_from_file_location(module_name, file)
                assert spec is not None and spec.loader is not None
                sys.modules[module_name] = module = importlib.util.module_from_spec(spec)
                try:
                    spec.loader.exec_module(module)
                except BaseException:
                    del sys.modules[module_name]
                    raise
        module = importlib.import_module(module_name)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f'"{path}" cannot be imported ({type(error).__name__}: {reason(error)}); mend it.') from error
    if not hasattr(module, name):
        raise UserError(f'"{path.rpartition(":")[0]}" has no "{name}"{nearest(name, vars(module)) or "."}')
    return getattr(module, name)


def import_paths(spec: Any) -> list[str]:
    """The import paths that a (nested) spec names: code outside the package, which building it would run."""
    if isinstance(spec, Mapping):
        return [path for key, value in spec.items() if key != "description" for path in import_paths(value)]
    if isinstance(spec, list | tuple):
        return [path for part in spec for path in import_paths(part)]
    return [spec] if isinstance(spec, str) and ":" in spec else []
