"""Torch to OpenVINO: one of each kind of torchvision's networks, and what is refused."""

from typing import Any

import numpy as np
import openvino
import pytest
import torch
from torch import Tensor, nn

from app.errors import NotConvertible
from app.imagenet.labels import imagenet1k
from app.images import Preprocessing
from app.models import zoo
from app.models.convert import to_openvino
from app.models.model import Model
from tests.models.seeded import seeded

FAMILIES = ["squeezenet1_1"]
SLOW = [
    "alexnet",  # each brings operations that those before it do not have
    "shufflenet_v2_x0_5",
    "efficientnet_b0",
    "mobilenet_v3_small",
    "googlenet",
    "densenet121",
    "regnet_y_400mf",
    "convnext_tiny",
    "vit_b_32",
    "swin_t",
]


def model_of(network: nn.Module, preprocessing: Preprocessing, name: str = "mine") -> Model:
    return Model(name, name, "seeded", "", preprocessing, imagenet1k(), build=lambda: network)


def compiled(network: openvino.Model) -> Any:
    return openvino.Core().compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})


@pytest.mark.parametrize("architecture", FAMILIES + [pytest.param(name, marks=pytest.mark.slow) for name in SLOW])
@torch.inference_mode()
def test_every_family_computes_in_openvino_what_it_computes_in_torch(architecture: str) -> None:
    preprocessing = zoo.preprocessing(architecture, None)
    crop, mean, std = preprocessing.crop, preprocessing.mean, preprocessing.std
    network = seeded(lambda: zoo.network(architecture, crop))
    pixels = np.random.default_rng(1).integers(0, 256, (2, crop, crop, 3)).astype(np.float32)
    normalised = ((pixels / 255 - mean) / std).transpose(0, 3, 1, 2).astype(np.float32)
    expected = network(torch.from_numpy(normalised)).numpy()
    found = compiled(to_openvino(model_of(network, preprocessing, architecture)))
    assert np.allclose(found([pixels])["logits"], expected, rtol=0, atol=1e-3 * np.ptp(expected))
    assert np.allclose(found([pixels[:1]])["logits"], expected[:1], rtol=0, atol=1e-3 * np.ptp(expected))
    assert np.ptp(expected) > 0


SMALL = Preprocessing(8, 8, "bilinear", (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))


class Head(nn.Module):
    """A mean over the positions and two layers; ``change`` is applied in between."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc = nn.Linear(3, 6), nn.Linear(6, 4)

    def forward(self, images: Tensor) -> Tensor:
        result: Tensor = self.fc(self.change(self.body(images.mean((2, 3)))))
        return result

    def change(self, hidden: Tensor) -> Tensor:
        return hidden.relu()


class Branching(Head):
    def change(self, hidden: Tensor) -> Tensor:
        return hidden.relu() if hidden.sum() > 0 else hidden


class Random(Head):
    def change(self, hidden: Tensor) -> Tensor:
        return hidden + torch.rand_like(hidden)


class NotANumber(Head):
    def change(self, hidden: Tensor) -> Tensor:
        return hidden * torch.nan


class Sensitive(Head):
    """It doubles what is rounded off, sixteen times."""

    def change(self, hidden: Tensor) -> Tensor:
        hidden = hidden.sigmoid()
        for _ in range(16):
            hidden = 3.99 * hidden * (1 - hidden)
        return hidden


class Otherwise(Head):
    """What is traced is not what is computed."""

    def change(self, hidden: Tensor) -> Tensor:
        return hidden.relu() if torch.compiler.is_exporting() else hidden.relu() * 1.01


class OtherwiseInFloat32(Otherwise):
    def change(self, hidden: Tensor) -> Tensor:
        return super().change(hidden @ torch.eye(6))


class Normalised(Head):
    """Two convolutions; the first has its batch normalisation once, or only the first time it is called."""

    def __init__(self, calls: int = 1) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.second, self.calls = nn.Conv2d(3, 3, 1), calls

    def forward(self, images: Tensor) -> Tensor:
        maps = self.norm(self.first(images)).relu()
        for _ in range(self.calls - 1):
            maps = self.first(maps)
        return super().forward(self.second(maps))


class Called(Normalised):
    def __init__(self) -> None:
        super().__init__(calls=2)


class NormalisedByImages(Normalised):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images * images.shape[int(images.dim()) - 1] / 8)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Normalised, Called, NormalisedByImages])
@torch.inference_mode()
def test_batch_normalisation_is_computed_wherever_it_stands(kind: type[Normalised]) -> None:
    network = seeded(kind)
    network.norm.running_mean, network.norm.running_var = torch.tensor([3.0, -2, 1]), torch.tensor([0.1, 2, 9])
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3)).astype(np.float32)
    normalised = ((pixels / 255 - SMALL.mean) / SMALL.std).transpose(0, 3, 1, 2).astype(np.float32)
    expected = network.eval()(torch.from_numpy(normalised)).numpy()
    found = compiled(to_openvino(model_of(network, SMALL)))([pixels])["logits"]
    assert np.allclose(found, expected, rtol=0, atol=1e-3 * np.ptp(expected))


def test_what_rounding_makes_much_of_is_no_reason_to_refuse() -> None:
    network = to_openvino(model_of(seeded(Sensitive), SMALL))
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3)).astype(np.float32)
    normalised = ((pixels / 255 - SMALL.mean) / SMALL.std).transpose(0, 3, 1, 2).astype(np.float32)
    expected = seeded(Sensitive)(torch.from_numpy(normalised)).detach().numpy()
    assert np.abs(compiled(network)([pixels])["logits"] - expected).max() > 1e-3 * np.ptp(expected)


def test_features_and_logits_are_its_outputs_whatever_the_size_of_the_batch() -> None:
    network = to_openvino(model_of(seeded(Head), SMALL))
    assert [output.get_any_name() for output in network.outputs] == ["features", "logits"]
    assert [output.partial_shape.to_string() for output in network.outputs] == ["[?,6]", "[?,4]"]
    for count in (1, 2, 5):
        assert compiled(network)([np.zeros((count, 8, 8, 3), np.float32)])["features"].shape == (count, 6)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Branching, "mine does not convert to OpenVINO"),
        (Random, "mine (does not convert to|computes different logits in) OpenVINO"),
        (Otherwise, "mine computes different logits in OpenVINO"),
        (OtherwiseInFloat32, "mine computes different logits in OpenVINO"),
        (NotANumber, "mine with weights seeded does not compute finite scores"),
    ],
)
def test_what_openvino_would_not_compute_the_same_way_is_refused(kind: type[Head], words: str) -> None:
    with pytest.raises(NotConvertible, match=words):
        to_openvino(model_of(seeded(kind), SMALL))
