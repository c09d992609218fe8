"""timm's classification architectures by name."""

from typing import Any

import timm
from timm.models import get_pretrained_cfg
from torch import nn

from app.errors import ModelError


def network(name: str) -> nn.Module:
    """An architecture, ``resnet10t`` or ``resnet10t.c3_in1k``, with random weights. Raises ModelError."""
    _config(name)
    module: nn.Module = timm.create_model(name, pretrained=False)
    return module


def _config(name: str) -> Any:
    """What timm knows of the weights that a name means."""
    if "/" in name or ":" in name or not timm.is_model(name):
        raise ModelError(f"timm has no model {name!r}; https://huggingface.co/timm shows what it has")
    try:
        return get_pretrained_cfg(name)
    except RuntimeError:
        architecture, _, tag = name.partition(".")
        raise ModelError(f"timm has no weights {tag!r} for {architecture}") from None
