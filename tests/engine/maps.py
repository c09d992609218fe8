"""Class activation maps of torchvision's networks by hooks, in float32 and slowly. Nothing here imports OpenVINO."""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from app.engine import Engine, Row, Want
from app.imagenet.labels import imagenet1k
from app.images import Preprocessing
from app.models import zoo
from app.models.model import Model
from tests.models.seeded import seeded

CROP = 96  # maps of 3x3
PREPROCESSING = Preprocessing(CROP, CROP, "bilinear", (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))


def channels_first(maps: Tensor) -> Tensor:
    return maps.permute(0, 3, 1, 2)


def as_they_are(maps: Tensor) -> Tensor:
    return maps


MODULES: Mapping[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "resnet18": ("layer4", as_they_are),
    "mobilenet_v2": ("features", as_they_are),
    "densenet121": ("features", torch.relu),
    "efficientnet_b0": ("features", as_they_are),
    "shufflenet_v2_x0_5": ("conv5", as_they_are),
    "swin_t": ("norm", channels_first),
}


def build(architecture: str) -> nn.Module:
    return seeded(lambda: zoo.network(architecture, CROP))


def model_of(architecture: str) -> Model:
    labels = imagenet1k()
    return Model(architecture, architecture, "seeded", "", PREPROCESSING, labels, lambda: build(architecture))


def crop(seed: int = 0, size: int = CROP) -> np.ndarray:
    """Noise on a gradient, which differs from corner to corner."""
    noise = np.random.default_rng(seed).integers(0, 100, (size, size, 3))
    slope = np.linspace(0, 155, size)
    return (noise + (slope[:, None, None] + slope[None, ::-1, None] * [1, 0.3, 0]) / 2).astype(np.uint8)


def forward(engine: Engine, image: np.ndarray, want: Want) -> Row:
    return engine.forward([image], [want]).row(0, want.k)


def mapped(engine: Engine, image: np.ndarray, class_id: int) -> np.ndarray:
    activation = forward(engine, image, Want(explain=class_id)).activation
    assert activation is not None
    return activation


@torch.inference_mode()
def expected(architecture: str, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The maps of all classes, [classes, rows, columns], and the logits [classes], slowly."""
    network, kept = build(architecture), {}
    name, finish = MODULES[architecture]
    network.get_submodule(name).register_forward_hook(lambda module, inputs, output: kept.update(maps=finish(output)))
    mean, std = torch.tensor(PREPROCESSING.mean), torch.tensor(PREPROCESSING.std)
    logits = network(((torch.from_numpy(image) / 255 - mean) / std).permute(2, 0, 1)[None])[0]
    weights = linear(network).weight
    return torch.einsum("kd,dhw->khw", weights, kept["maps"][0]).numpy(), logits.numpy()


def linear(network: nn.Module) -> nn.Linear:
    return [module for module in network.modules() if isinstance(module, nn.Linear)][-1]


def close(found: np.ndarray, wanted: np.ndarray, tolerance: float = 1e-3) -> bool:
    """Whether two maps differ by no more than a fraction of the largest contribution."""
    assert found.shape == wanted.shape
    return float(np.abs(found - wanted).max()) <= tolerance * float(np.abs(wanted).max())
