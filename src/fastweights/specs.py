"""Named parts of a recipe: `{type: name, option: value, …}` becomes an object of the class that the name stands for."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from fastweights.errors import UserError, nearest


def build(what: str, registry: Mapping[str, Callable], spec: Mapping[str, Any], *given: Any) -> Any:
    """Call the class that `spec["type"]` names with `given` and the rest of the spec, checked against its signature.

    Raises:
        UserError: where the type or an option does not exist, or a value is of the wrong kind.
    """
    options = dict(spec)
    name = options.pop("type", None)
    if name not in registry:
        suggestion = nearest(str(name), registry) or "."
        raise UserError(f'There is no {what} "{name}"{suggestion} Set its type to one of: {", ".join(registry)}.')
    known = options_of(registry[name], skip=len(given))
    for key, value in options.items():
        if key not in known:
            raise UserError(
                f'{what} "{name}" has no option "{key}"{nearest(key, known) or "."} It has: {", ".join(known)}.'
            )
        if isinstance(known[key], str) and isinstance(value, int) and not isinstance(value, bool):
            options[key] = str(value)  # "--task.tasks 1" arrives as a number
        elif not _is_like(value, known[key]):
            raise UserError(f"{what}.{key} is {value!r}, but must be like {known[key]!r}; change it in the recipe.")
    try:
        return registry[name](*given, **options)
    except (ValueError, TypeError, RuntimeError) as error:
        raise UserError(f'{what} "{name}" cannot be built: {error}.') from error


def options_of(builder: Callable, skip: int = 0) -> dict[str, Any]:
    """The options of a class with their defaults, without the first `skip` parameters."""
    parameters = list(inspect.signature(builder).parameters.values())[skip:]
    return {parameter.name: parameter.default for parameter in parameters}


def _is_like(value: Any, default: Any) -> bool:
    if default is None or default is inspect.Parameter.empty:
        return True
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(value, bool) and isinstance(default, bool)
    if isinstance(default, float):
        return isinstance(value, int | float)
    return isinstance(value, type(default))
