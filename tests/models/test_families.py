"""One of each family of torchvision's, served: the answers and features of its own preset, network and weights.

``TEST_MODELS=all`` tests every entry of every architecture on both engines: half an hour, and 15 GB of memory.
"""

import asyncio
import io
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.models
from PIL import Image
from torch import nn

from app import loading
from app.classifier import Classifier
from app.engine import Row, Want, create
from app.models import zoo
from app.models.model import Model
from app.settings import Settings
from tests.conftest import CAT, slow
from tests.models.seeded import seeded
from tests.models.test_split import MetaParameters

FAMILIES: list[tuple[str, str, int | None]] = [
    ("alexnet", "IMAGENET1K_V1", 4096),
    ("vgg11_bn", "IMAGENET1K_V1", 4096),
    ("resnet18", "IMAGENET1K_V1", 512),
    ("resnext50_32x4d", "IMAGENET1K_V2", 2048),
    ("wide_resnet50_2", "IMAGENET1K_V2", 2048),
    ("densenet121", "IMAGENET1K_V1", 1024),
    ("inception_v3", "IMAGENET1K_V1", 2048),
    ("googlenet", "IMAGENET1K_V1", 1024),
    ("mobilenet_v2", "IMAGENET1K_V2", 1280),
    ("mobilenet_v3_small", "IMAGENET1K_V1", 1024),
    ("mnasnet0_5", "IMAGENET1K_V1", 1280),
    ("shufflenet_v2_x0_5", "IMAGENET1K_V1", 1024),
    ("squeezenet1_1", "IMAGENET1K_V1", 512),
    ("efficientnet_b0", "IMAGENET1K_V1", 1280),
    ("efficientnet_b1", "IMAGENET1K_V2", 1280),
    ("efficientnet_v2_s", "IMAGENET1K_V1", 1280),
    ("regnet_y_400mf", "IMAGENET1K_V2", 440),
    ("convnext_tiny", "IMAGENET1K_V1", 768),
    ("vit_b_32", "IMAGENET1K_V1", 768),
    ("swin_t", "IMAGENET1K_V1", 768),
    ("swin_v2_t", "IMAGENET1K_V1", 768),
    ("maxvit_t", "IMAGENET1K_V1", 512),
]

TOLERANCE = 1e-4  # of the range: the sums run in another order
FAST = ("squeezenet1_1", "mobilenet_v3_small", "shufflenet_v2_x0_5")
CASES = [(*family, "openvino" if family[0] in ("resnet18", "squeezenet1_1") else "torch") for family in FAMILIES]
if os.environ.get("TEST_MODELS") == "all":
    TOLERANCE = 1e-3  # a hundred layers of sums
    CASES = [(e.architecture, e.name, None, engine) for e in zoo.entries() for engine in ("torch", "openvino")]


@contextmanager
def classifier(model: Model, engine: str) -> Iterator[Classifier]:
    """The model in float32, as the reference decodes, warmed up for one image at a time."""
    settings = Settings(engine=engine, precision="float32", fast_decode=False, _env_file=None)
    served, device = Classifier(settings), create(model, engine, "cpu", "float32")
    device.buckets = (1,)
    loading.load_model(served, model, device)
    try:
        yield served
    finally:
        served.close()


def served_row(model: Model, engine: str, image: bytes) -> Row:
    with classifier(model, engine) as served:
        want = Want(k=5, features=True, logits=True)
        return asyncio.run(served.classify(image, want, time.monotonic() + 60)).row


@torch.no_grad()
def random_network(architecture: str, seen: torch.Tensor) -> nn.Module:
    """Its batch norms know their inputs, or nothing of a picture would be left behind the last of many.

    Noise is among these, since that is what a conversion is compared on.
    """
    options = zoo._BUILD_ARGUMENTS.get(architecture, {})
    if architecture.startswith("vit_"):
        options = {"image_size": seen.shape[-1]}
    network = seeded(lambda: torchvision.models.get_model(architecture, **options))
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # the first batch's statistics and no others
    if norms:
        noise = torch.empty_like(seen).uniform_(-2, 2, generator=torch.Generator().manual_seed(0))
        network.train()(torch.stack([seen, seen.flip(1), seen.flip(2), noise]))
    return network.eval()


def with_weights_of(reference: nn.Module, architecture: str, entry: str, file: Path) -> Model:
    """What is served for that name, its weights taken from ``reference`` rather than from half a gigabyte of file."""
    file.write_bytes(b"")
    model = zoo.from_file(architecture, entry, file)
    with MetaParameters():
        network = zoo.network(architecture, model.preprocessing.crop)
    network.load_state_dict(reference.state_dict(), assign=True)
    return replace(model, build=lambda: network)


@torch.inference_mode()
def own_loop(network: nn.Module, normalised: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """What goes into the last layer of the eager float32 network, and what comes out."""
    last = [module for module in network.modules() if isinstance(module, nn.Linear | nn.Conv2d)][-1]
    seen: list[torch.Tensor] = []
    last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    logits = network(normalised[None])
    [features] = seen
    return (features.mean((2, 3)) if features.dim() == 4 else features)[0].numpy(), logits[0].numpy()


def assert_close(found: np.ndarray | None, expected: np.ndarray) -> None:
    assert found is not None
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= TOLERANCE * np.ptp(expected)


def image_of(size: tuple[int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.open(CAT).resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("architecture", "entry", "dim", "engine"), [case if case[0] in FAST else slow(*case) for case in CASES]
)
def test_answers_and_features_are_those_of_torchvision_s_own_loop(
    architecture: str, entry: str, dim: int | None, engine: str, tmp_path: Path
) -> None:
    image = image_of((500, 375))
    preset = torchvision.models.get_model_weights(architecture)[entry].transforms()
    normalised = preset(Image.open(io.BytesIO(image)).convert("RGB"))
    reference = random_network(architecture, normalised)
    model = with_weights_of(reference, architecture, entry, tmp_path / "weights.pth")
    features, logits = own_loop(reference, normalised)
    row = served_row(model, engine, image)
    assert row.class_ids[0] == logits.argmax()
    assert_close(row.logits, logits)
    assert_close(row.features, features)
    assert dim in (None, len(features))
