"""torchvision's classification architectures by name, with official or user weights."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torchvision.models
from torch import nn

from app.errors import ModelError
from app.imagenet.labels import imagenet1k
from app.images import Preprocessing
from app.models import catalogue, download
from app.models.files import load_state, read_state
from app.models.model import Model

# torchvision's builders set these when weights are given: both networks change the normalisation internally.
_BUILD_ARGUMENTS: dict[str, dict[str, Any]] = {
    "googlenet": {"transform_input": True, "init_weights": False},
    "inception_v3": {"transform_input": True, "init_weights": False},
}


@dataclass(frozen=True, slots=True)
class OfficialWeights:
    """One set of official weights. ``accuracy`` is the published top-1 and top-5, in per cent."""

    architecture: str
    name: str
    url: str
    parameters: int
    megabytes: float
    accuracy: tuple[float, float]
    default: bool


def architectures() -> list[str]:
    """The names of all torchvision classification architectures."""
    names: list[str] = torchvision.models.list_models(module=torchvision.models)
    return names


def entries() -> list[OfficialWeights]:
    """All official weights for ImageNet-1k."""
    found = [_entry(name, weights) for name in architectures() for weights in _enum(name)]
    return [entry for entry in found if not math.isnan(entry.accuracy[0])]


def network(architecture: str, crop: int) -> nn.Module:
    """Build an architecture with random weights, for images of ``crop`` x ``crop``. Raises ModelError."""
    _enum(architecture)
    arguments = _BUILD_ARGUMENTS.get(architecture, {})
    if architecture.startswith("vit_"):  # the position embedding depends on the image size
        arguments = {"image_size": crop}
    module: nn.Module = torchvision.models.get_model(architecture, weights=None, **arguments)
    return module


def preprocessing(architecture: str, entry: str | None) -> Preprocessing:
    """The preprocessing of ``entry``, by default of the first one. Raises ModelError."""
    preset = _weights(architecture, entry).transforms()
    return Preprocessing(
        resize=preset.resize_size[0],
        crop=preset.crop_size[0],
        interpolation=preset.interpolation.value,
        mean=tuple(preset.mean),
        std=tuple(preset.std),
    )


def official(architecture: str, entry: str | None) -> Model:
    """An architecture with torchvision's weights, from the cache or downloaded. Raises ModelError."""
    weights = _weights(architecture, entry or "DEFAULT")
    path = download.fetch(weights.url)
    return _model(architecture, weights, path, weights.name)


def from_file(architecture: str, entry: str | None, path: Path) -> Model:
    """An architecture with the user's weights and the preprocessing of ``entry``, by default of the first one.

    Raises ModelError.
    """
    weights = _weights(architecture, entry)
    return _model(architecture, weights, path, path.stem)


def _model(architecture: str, weights: Any, path: Path, weights_name: str) -> Model:
    expected = preprocessing(architecture, weights.name)

    def build() -> nn.Module:
        module = network(architecture, expected.crop)
        load_state(module, read_state(path), architecture, str(path))
        return module

    return Model(
        name=architecture,
        architecture=architecture,
        weights=weights_name,
        digest=download.sha256(path),
        preprocessing=expected,
        labels=imagenet1k(),
        build=build,
    )


def _enum(architecture: str) -> Any:
    """The enum of an architecture's weights, in torchvision's order."""
    if architecture not in architectures():
        raise catalogue.unknown(architecture, architectures())
    return torchvision.models.get_model_weights(architecture)


def _weights(architecture: str, entry: str | None) -> Any:
    """A member of the architecture's enum, by default the first one."""
    enum = _enum(architecture)
    if entry is None:
        return next(iter(enum))
    if entry not in enum.__members__:
        raise catalogue.unknown_entry(architecture, entry, enum.__members__)
    if math.isnan(_entry(architecture, enum[entry]).accuracy[0]):
        raise ModelError(f"{architecture}:{entry} cannot be served: these weights do not include the classifier")
    return enum[entry]


def _entry(architecture: str, weights: Any) -> OfficialWeights:
    metrics = weights.meta["_metrics"]["ImageNet-1K"]
    enum = _enum(architecture)
    return OfficialWeights(
        architecture=architecture,
        name=weights.name,
        url=weights.url,
        parameters=weights.meta["num_params"],
        megabytes=weights.meta["_file_size"],
        accuracy=(metrics["acc@1"], metrics["acc@5"]),
        default=enum["DEFAULT"] is weights,
    )
