"""Models: ends put on a core."""

from __future__ import annotations

from typing import Any

from fastweights import cores
from fastweights.models.tokens import TokenModel

__all__ = ["TokenModel", "build"]


def build(options: dict[str, Any], vocabulary_size: int) -> TokenModel:
    """Build a token model from a recipe's `model` part."""
    options = dict(options)
    core = cores.build(options.pop("core"), options.pop("embedding_size"))
    return TokenModel(vocabulary_size, core, **options)
