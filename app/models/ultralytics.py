"""Ultralytics' classification checkpoints, with the preprocessing of its own predictor. The package is AGPL-3.0.

A checkpoint is a pickled network: loading it runs its author's code. Importing the package patches Pillow and torch and
accesses the network; this module prevents or reverts both. Converted models need neither the package nor the pickle.
"""

import contextlib
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision import transforms

from app.errors import ModelError
from app.imagenet.labels import Label
from app.images import Preprocessing
from app.models import download
from app.models.files import check_unpacked
from app.models.model import Model
from app.models.names import ULTRALYTICS, name_of

_STRIDE = 32  # the predictor rounds sizes up to a multiple of it
_OFFLINE = {"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false", "YOLO_VERBOSE": "false"}


class Logits(nn.Module):
    """The logits of an Ultralytics network, which returns (probabilities, logits)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)[1]
        return logits


def from_checkpoint(path: Path) -> Model:
    """Unpickle the model of a checkpoint, which must be trusted. Raises ModelError."""
    digest = download.sha256(path)  # before it is unpickled
    network = _load(path)
    return Model(
        name=name_of(str(path)),
        architecture=ULTRALYTICS + Path(network.yaml.get("yaml_file", path.name)).stem,
        weights=path.stem,
        digest=digest,
        preprocessing=_preprocessing(network, path),
        labels=_labels(network, path),
        build=lambda: Logits(_load(path)),
    )


def _load(path: Path) -> Any:
    """The float32 network in evaluation mode."""
    check_unpacked(path)
    try:
        with _contained():
            from ultralytics.nn.tasks import ClassificationModel, load_checkpoint

            network, _ = load_checkpoint(path)
    except Exception as error:  # unpickling runs arbitrary code
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"{path} is not a checkpoint that Ultralytics can load: {reason}") from error
    if not isinstance(network, ClassificationModel):
        raise ModelError(f"{path} is not a classification model: its task is {getattr(network, 'task', 'unknown')}")
    return network


@contextlib.contextmanager
def _contained() -> Iterator[None]:
    """Prevent network access, installation, a settings file and output to stdout; restore everything afterwards."""
    environment, patched = dict(os.environ), (Image.open, torch.save)
    with tempfile.TemporaryDirectory(prefix="topk-") as settings, warnings.catch_warnings():
        os.environ.update(_OFFLINE, YOLO_CONFIG_DIR=settings)
        try:
            with contextlib.redirect_stdout(sys.stderr):
                yield
        finally:
            os.environ.clear()
            os.environ.update(environment)
            Image.open, torch.save = patched


def _preprocessing(network: Any, path: Path) -> Preprocessing:
    """The preprocessing of Ultralytics' ``ClassificationPredictor``: the training transforms if their size matches."""
    sizes = {-(-size // _STRIDE) * _STRIDE for size in _pair(network.args["imgsz"])}
    channels = network.yaml.get("channels", 3)
    if len(sizes) > 1 or channels != 3:
        raise ModelError(
            f"{path} cannot be served: its input has {channels} channels and the sizes {sorted(sizes)}; topk needs 3"
            " channels and one size"
        )
    [size] = sizes
    trained = getattr(network, "transforms", None)
    if trained is not None and _pair(getattr(trained.transforms[0], "size", 0)) == (size, size):
        steps = trained.transforms
    else:
        from ultralytics.data.augment import classify_transforms

        steps = classify_transforms(size).transforms
    match steps:
        case [transforms.Resize() as resize, transforms.CenterCrop() as crop, transforms.ToTensor(), normalize]:
            return Preprocessing(
                resize=_pair(resize.size)[0],
                crop=_pair(crop.size)[0],
                interpolation=resize.interpolation.value,
                mean=tuple(torch.as_tensor(normalize.mean).tolist()),
                std=tuple(torch.as_tensor(normalize.std).tolist()),
                squash=not isinstance(resize.size, int) and len(resize.size) == 2,
            )
    raise ModelError(f"{path} cannot be served: its preprocessing is not a resize and a centre crop")


def _pair(size: Any) -> tuple[int, int]:
    first, *rest = size if isinstance(size, list | tuple) else [size]
    return int(first), int(rest[0] if rest else first)


def _labels(network: Any, path: Path) -> tuple[Label, ...]:
    """The checkpoint's class names, with wnids if they are ImageNet's names or are wnids themselves."""
    names = [str(network.names[i]) for i in range(len(network.names))]
    if len(names) != network.model[-1].linear.out_features:
        raise ModelError(f"{path} has {len(names)} names for {network.model[-1].linear.out_features} classes")
    if all(re.fullmatch(r"n\d{8}", name) for name in names):
        return tuple(Label(name, name) for name in names)
    imagenet = _imagenet()
    wnids = list(imagenet) if names in (list(imagenet.values()), _spaced(imagenet)) else [None] * len(names)
    return tuple(Label(name, wnid) for name, wnid in zip(names, wnids, strict=True))


def _imagenet() -> dict[str, str]:
    """Ultralytics' names of the ImageNet classes by wnid, in class order."""
    import yaml
    from ultralytics.utils import ROOT

    text = (ROOT / "cfg" / "datasets" / "ImageNet.yaml").read_text(encoding="utf-8")
    names: dict[str, str] = yaml.safe_load(text)["map"]
    return names


def _spaced(names: dict[str, str]) -> list[str]:
    return [name.replace("_", " ") for name in names.values()]
