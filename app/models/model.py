"""What to run, as one value: the module, its weights, its preprocessing and its labels."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.imagenet.labels import Label
from app.images import Preprocessing

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True)
class Training:
    """How a model came to classes of its own: the digest of its ``parent``'s weights, and ``metrics`` as measured on
    images that were held out, empty where it serves in another way than it was measured in."""

    parent: str
    metrics: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Model:
    """A servable model. ``labels`` are in the order of the logits; ``digest`` is the SHA-256 of the weights' file.

    ``build`` makes the float32 network on the CPU, weights loaded; it needs torch, nothing else here does.
    ``openvino`` is the network converted for OpenVINO, where it has been; ``precision`` what it was exported for,
    mostly ``auto``. ``warning`` says in one sentence what the user should know, None where there is nothing.
    ``training`` is None where the classes are those the architecture came with.
    """

    name: str
    architecture: str
    weights: str
    digest: str
    preprocessing: Preprocessing
    labels: tuple[Label, ...]
    build: "Callable[[], nn.Module]"
    precision: str = "auto"
    openvino: Path | None = None
    warning: str | None = None
    training: Training | None = None
