"""torchvision's classification architectures by name, with their official weights."""

import difflib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torchvision.models
from torch import nn

from app.errors import ModelError
from app.imagenet.labels import imagenet1k
from app.images import Preprocessing
from app.models import download, embedded
from app.models.files import load_state, read_state
from app.models.model import Model

# What torchvision's builders set when weights are given: these two expect another normalisation inside.
_BUILD_ARGUMENTS: dict[str, dict[str, Any]] = {
    "googlenet": {"transform_input": True, "init_weights": False},
    "inception_v3": {"transform_input": True, "init_weights": False},
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One set of official weights. ``accuracy`` is top-1 and top-5 in per cent, as published."""

    architecture: str
    name: str
    url: str
    parameters: int
    megabytes: float
    accuracy: tuple[float, float]
    default: bool


def architectures() -> list[str]:
    """Names of all torchvision classification architectures."""
    names: list[str] = torchvision.models.list_models(module=torchvision.models)
    return names


def entries() -> list[Entry]:
    """All official weights that classify ImageNet-1k."""
    found = [_entry(name, weights) for name in architectures() for weights in _enum(name)]
    return [entry for entry in found if not math.isnan(entry.accuracy[0])]


def network(architecture: str, crop: int) -> nn.Module:
    """An architecture with random weights, for images of ``crop`` x ``crop``. Raises ModelError."""
    _enum(architecture)
    arguments = _BUILD_ARGUMENTS.get(architecture, {})
    if architecture.startswith("vit_"):  # its position embedding has the size of the image
        arguments = {"image_size": crop}
    module: nn.Module = torchvision.models.get_model(architecture, weights=None, **arguments)
    return module


def preprocessing(architecture: str, entry: str | None) -> Preprocessing:
    """What ``entry``, else the first one, was measured with. Raises ModelError."""
    preset = _weights(architecture, entry).transforms()
    return Preprocessing(
        resize=preset.resize_size[0],
        crop=preset.crop_size[0],
        interpolation=preset.interpolation.value,
        mean=tuple(preset.mean),
        std=tuple(preset.std),
    )


def official(architecture: str, entry: str | None) -> Model:
    """An architecture with torchvision's own weights, from the cache or downloaded. Raises ModelError."""
    weights = _weights(architecture, entry or "DEFAULT")
    path = download.fetch(weights.url)
    return _model(architecture, weights, path, weights.name)


def from_file(architecture: str, entry: str | None, path: Path) -> Model:
    """An architecture with the user's weights; preprocessing is that of ``entry``, else of the first one.

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
    """All of an architecture's weights, in torchvision's order."""
    if architecture not in architectures():
        near = difflib.get_close_matches(architecture.lower(), [*architectures(), embedded.NAME])
        meant = f", did you mean {' or '.join(near)}?" if near else ";"
        raise ModelError(f"no model {architecture!r}{meant} `topk models` lists what can be served")
    return torchvision.models.get_model_weights(architecture)


def _weights(architecture: str, entry: str | None) -> Any:
    """A member of the architecture's enum, by default the first one."""
    enum = _enum(architecture)
    if entry is None:
        return next(iter(enum))
    if entry not in enum.__members__:
        raise ModelError(f"{architecture} has no weights {entry!r}; it has {', '.join(enum.__members__)}")
    if math.isnan(_entry(architecture, enum[entry]).accuracy[0]):
        raise ModelError(f"{architecture}:{entry} cannot classify: its weights stop before the classifier")
    return enum[entry]


def _entry(architecture: str, weights: Any) -> Entry:
    metrics = weights.meta["_metrics"]["ImageNet-1K"]
    enum = _enum(architecture)
    return Entry(
        architecture=architecture,
        name=weights.name,
        url=weights.url,
        parameters=weights.meta["num_params"],
        megabytes=weights.meta["_file_size"],
        accuracy=(metrics["acc@1"], metrics["acc@5"]),
        default=enum["DEFAULT"] is weights,
    )
