"""The cut before the last classifying layer: the shapes of all architectures, and the numbers of some."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import timm
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from app.models import zoo
from app.models.split import AUXILIARY, FeaturesAndLogits, set_classes, split
from tests.conftest import slow
from tests.models.seeded import images, seeded

DIMS = {
    "alexnet": 4096,
    "vgg16": 4096,
    "resnet18": 512,
    "resnet50": 2048,
    "wide_resnet50_2": 2048,
    "squeezenet1_1": 512,
    "googlenet": 1024,
    "inception_v3": 2048,
    "mobilenet_v3_large": 1280,
    "vit_b_16": 768,
}


class MetaParameters(TorchFunctionMode):
    """Parameters on the meta device. Unlike ``torch.device("meta")`` it lets RegNet compute its widths."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        meta = {"device": "meta"} if func in (torch.empty, torch.zeros, torch.ones) else {}
        return func(*args, **(kwargs or {}) | meta)


def on_meta(architecture: str, crop: int = 224) -> FeaturesAndLogits:
    with MetaParameters():
        return split(zoo.network(architecture, crop).to("meta").eval())


@pytest.mark.slow
@pytest.mark.parametrize("entry", zoo.entries(), ids=lambda entry: f"{entry.architecture}:{entry.name}")
def test_every_architecture_gives_features_and_logits(entry: zoo.OfficialWeights) -> None:
    crop = zoo.preprocessing(entry.architecture, entry.name).crop
    module = on_meta(entry.architecture, crop)
    features, logits = module(torch.empty(2, 3, crop, crop, device="meta"))
    assert features.shape == (2, module.dim)
    assert logits.shape == (2, 1000)


@pytest.mark.parametrize("architecture", DIMS)
def test_features_are_the_input_of_the_last_layer(architecture: str) -> None:
    assert on_meta(architecture).dim == DIMS[architecture]


@pytest.mark.parametrize(
    "architecture",
    [
        "alexnet",
        slow("convnext_tiny"),
        slow("densenet121"),
        "efficientnet_b0",
        slow("googlenet"),
        slow("inception_v3"),
        slow("mnasnet0_5"),
        "mobilenet_v3_small",
        slow("regnet_x_400mf"),
        "resnet18",
        slow("shufflenet_v2_x0_5"),
        "squeezenet1_0",
        "squeezenet1_1",
        slow("swin_t"),
        slow("vgg11"),
        slow("vit_b_32"),
    ],
)
@torch.inference_mode()
def test_cutting_changes_no_logit(architecture: str) -> None:
    network = seeded(lambda: zoo.network(architecture, 224))
    expected = network(images())
    _, logits = split(network)(images())
    assert torch.equal(logits, expected)
    assert expected.std() > 0


@torch.inference_mode()
def test_a_timm_network_is_cut_the_same_way() -> None:
    network = seeded(lambda: timm.create_model("tf_efficientnet_lite0", pretrained=False))
    expected = network(images())
    features, logits = split(network)(images())
    assert torch.equal(logits, expected)
    assert features.shape == (2, 1280)


@torch.inference_mode()
def test_features_are_what_the_last_layer_turns_into_logits() -> None:
    network = seeded(lambda: zoo.network("resnet18", 224))
    features, logits = split(network)(images())
    stem = nn.Sequential(*list(network.children())[:9])  # all but fc
    assert torch.equal(features, stem(images()).flatten(1))
    assert logits.shape == (2, 1000)


@torch.inference_mode()
def test_features_of_a_convolutional_head_are_the_mean_over_the_positions() -> None:
    network = seeded(lambda: zoo.network("squeezenet1_1", 224))
    expected = network.features(images()).mean((2, 3))
    features, _ = split(network)(images())
    assert torch.equal(features, expected)
    assert features.shape == (2, 512)


@torch.inference_mode()
@pytest.mark.parametrize(
    "architecture", ["resnet18", "squeezenet1_1", "googlenet", slow("inception_v3"), slow("vit_b_16")]
)
def test_a_new_last_layer_is_linear_in_the_features(architecture: str) -> None:
    crop = zoo.preprocessing(architecture, None).crop
    network = seeded(lambda: zoo.network(architecture, crop))
    layer = set_classes(network, 3)
    pictures = images(crop, count=1)
    expected = network.eval()(pictures)
    assert not [name for name in network.state_dict() if name.startswith(AUXILIARY)]
    features, logits = split(network)(pictures)
    assert logits.shape == (1, 3)
    assert torch.allclose(logits, expected, atol=1e-5)
    assert torch.allclose(features @ layer.weight.flatten(1).T + layer.bias, expected, atol=1e-3)


@pytest.mark.parametrize("architecture", ["googlenet", "inception_v3"])
def test_without_auxiliary_heads_a_network_trains_on_one_answer(architecture: str) -> None:
    with MetaParameters():
        network = zoo.network(architecture, 224).to("meta")
    set_classes(network, 3)
    assert network.to("meta").train()(torch.empty(2, 3, 299, 299, device="meta")).shape == (2, 3)
