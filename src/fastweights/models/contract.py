"""The contract of models: an `nn.Module` around a core, which says what state there is to carry."""

from __future__ import annotations

from torch import nn

from fastweights.cores.contract import Core


class Model(nn.Module):
    """The base of all models; a new one sets `core` and implements `forward`, which returns the core's state last."""

    core: Core
