"""How the setting ``model`` names a model: a torchvision architecture, ``timm:NAME``, a checkpoint or a path."""

import os
import re
from pathlib import Path

TIMM = "timm:"
ULTRALYTICS = "ultralytics:"  # in model folders only: the network itself comes from a checkpoint


def is_checkpoint(spec: str) -> bool:
    """Whether ``spec`` names an Ultralytics checkpoint."""
    return spec.endswith(".pt")


def is_path(spec: str) -> bool:
    """Whether ``spec`` can only be the path of a file or a folder."""
    return not spec.startswith(TIMM) and (os.sep in spec or Path(spec).suffix in (".pth", ".bin", ".safetensors"))


def name_of(spec: str) -> str:
    """The model's name in responses, unless another one is set."""
    if is_checkpoint(spec):
        return allowed_name(Path(spec).stem)
    return spec.removeprefix(TIMM) if spec.startswith(TIMM) else spec.partition(":")[0]


def allowed_name(name: str) -> str:
    """``name`` with every character replaced that a model name may not have in responses and URLs."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", name)[:128]
