"""Architectures by the name that settings and model folders have for them."""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from app.models import embedded

if TYPE_CHECKING:
    from torch import nn

TIMM = "timm:"
ULTRALYTICS = "ultralytics:"  # of folders alone: the network itself comes out of a checkpoint


def network(architecture: str, crop: int) -> "nn.Module":
    """Random weights, for images of ``crop`` x ``crop``. Raises ModelError where there is no such architecture."""
    if architecture == embedded.NAME:
        return embedded.network()
    if architecture.startswith(TIMM):
        from app.models import timm

        return timm.network(architecture.removeprefix(TIMM))
    from app.models import zoo

    return zoo.network(architecture, crop)


def is_checkpoint(spec: str) -> bool:
    """Whether the setting ``model`` names an Ultralytics checkpoint."""
    return spec.endswith(".pt")


def is_path(spec: str) -> bool:
    """Whether the setting ``model`` can only name a file or a folder."""
    return not spec.startswith(TIMM) and (os.sep in spec or Path(spec).suffix in (".pth", ".bin", ".safetensors"))


def name_of(spec: str) -> str:
    """What a model is called in answers where nothing else is set."""
    if is_checkpoint(spec):
        return allowed_name(Path(spec).stem)
    return spec.removeprefix(TIMM) if spec.startswith(TIMM) else spec.partition(":")[0]


def allowed_name(name: str) -> str:
    """``name`` in the characters that a model's name may have in answers and in URLs."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", name)[:128]
