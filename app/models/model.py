"""A model as one value: network, weights, preprocessing and labels."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.calibration import Calibration
from app.imagenet.labels import Label
from app.images import Preprocessing

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True)
class Training:
    """The origin of a trained model: the digest of its ``parent``'s weights, and the ``metrics`` on held-out images.

    ``metrics`` are empty if the model is served in another precision than they were measured in.
    """

    parent: str
    metrics: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Model:
    """A servable model. ``labels`` are in the order of the logits; ``digest`` is the SHA-256 of the weights file.

    ``build`` returns the float32 network on the CPU, with its weights. It is the only member that needs torch.
    ``openvino`` is the network converted for OpenVINO, or None. ``precision`` is the one it was exported for, usually
    ``auto``. ``warning`` is a sentence for the user, or None. ``training`` is None unless `topk train` made the model.
    ``calibrations`` are by precision; empty unless `topk calibrate` has measured the model.
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
    calibrations: Mapping[str, Calibration] = field(default_factory=dict)

    def temperature(self, precision: str) -> float:
        """The divisor of the logits in this precision: 1 if it is not calibrated."""
        calibration = self.calibrations.get(precision)
        return calibration.temperature if calibration else 1.0
