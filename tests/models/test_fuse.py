"""Folding and fusing compute what the network computes, with the fused operations written out."""

import gc
from collections import Counter
from collections.abc import Callable

import pytest
import timm
import torch
import torchvision.models
from torch import Tensor, fx, nn

from app.models import zoo
from app.models.fuse import ConvolutionReLU, Operations, fold, fuse
from app.models.split import FeaturesAndLogits, SeveralHeads, split
from tests.conftest import slow
from tests.models.seeded import images, seeded

FAST = ("alexnet", "resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5", "squeezenet1_1")
ARCHITECTURES = torchvision.models.list_models(module=torchvision.models)
WITHOUT_NORMS = ("alexnet", "convnext", "squeezenet", "swin", "vit")
CROPS = {"inception_v3": 75, "maxvit_t": 224, "vit_h_14": 56}  # others accept 64
LARGE = 2 * 10**8  # parameters, above which float64 takes too much memory


def convolution_relu(
    images: Tensor, weight: Tensor, bias: Tensor | None, stride: list[int], padding: list[int], *rest: int
) -> Tensor:
    return torch.conv2d(images, weight, bias, stride, padding, *rest).relu()


def convolution_add_relu(
    images: Tensor, weight: Tensor, added: Tensor, alpha: float, bias: Tensor | None, *geometry: int
) -> Tensor:
    convolved = torch.conv2d(images, weight, bias, *geometry)
    assert convolved.shape == added.shape  # cuDNN does not broadcast
    return (convolved + alpha * added).relu()


REFERENCE = Operations(convolution_relu, convolution_add_relu)


def network_of(build: Callable[[], nn.Module]) -> FeaturesAndLogits:
    """A network whose batch norms have statistics."""
    network = seeded(build)
    generator = torch.Generator().manual_seed(2)
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d) and norm.track_running_stats:
            norm.running_mean.normal_(std=0.1, generator=generator)
            norm.running_var.uniform_(0.5, 2, generator=generator)
    return split(network).eval().requires_grad_(False)


def count(network: nn.Module, kind: type[nn.Module]) -> int:
    return sum(isinstance(layer, kind) for layer in network.modules())


@torch.inference_mode()
def assert_same(rewritten: FeaturesAndLogits, network: FeaturesAndLogits, inputs: Tensor, tolerance: float) -> None:
    for found, expected in zip(rewritten(inputs), network(inputs), strict=True):
        span = float(expected.max() - expected.min())
        assert span > 0
        assert torch.allclose(found, expected, rtol=0, atol=tolerance * span)


def assert_folds_and_fuses(network: FeaturesAndLogits, crop: int) -> FeaturesAndLogits:
    """In float64, where rounding is negligible. Returns the network in both forms applied."""
    inputs, tolerance = images(crop, 2), 1e-5
    if sum(parameter.numel() for parameter in network.parameters()) < LARGE:
        network, inputs, tolerance = network.double(), inputs.double(), 1e-11
    layers = [*network.modules()]
    fused = fuse(fold(network), REFERENCE)
    assert_same(fused, network, inputs, tolerance)
    assert [*network.modules()] == layers
    return fused


@pytest.mark.parametrize("architecture", [name if name in FAST else slow(name) for name in ARCHITECTURES])
def test_torchvision_s_architectures_fold_and_fuse(architecture: str) -> None:
    crop = CROPS.get(architecture, 64)
    if architecture not in FAST:
        gc.collect()  # traced networks are in reference cycles: those of the tests before may hold gigabytes
    network = network_of(lambda: zoo.network(architecture, crop))
    norms = count(network.backbone, nn.BatchNorm2d)
    without_norms = architecture.startswith(WITHOUT_NORMS) or architecture in ("vgg11", "vgg13", "vgg16", "vgg19")
    assert (norms == 0) == without_norms
    left = count(assert_folds_and_fuses(network, crop), nn.BatchNorm2d)
    if architecture.startswith(("densenet", "maxvit")):  # normalise before some convolutions
        assert 0 < left < norms
    else:
        assert left == 0


@pytest.mark.parametrize(
    ("name", "size", "fused"),
    [
        ("test_resnet", 96, 11),
        ("test_efficientnet", 96, 0),  # its activations are SiLU
        slow("tf_efficientnet_lite0", 96, 0),  # ReLU6
        slow("resnet50", 64, 48),
        slow("regnety_002", 64, 39),
        slow("mobilenetv3_small_050", 64, 11),
    ],
)
def test_timm_s_batch_normalisation_folds_also_where_it_has_an_activation(name: str, size: int, fused: int) -> None:
    found = assert_folds_and_fuses(network_of(lambda: timm.create_model(name)), size)
    assert count(found, nn.BatchNorm2d) == 0
    assert count(found, ConvolutionReLU) == fused


@pytest.mark.parametrize(
    "name", [slow(name) for name in ("levit_128s", "vit_tiny_patch16_224", "repvit_m0_9", "resnetv2_50x1_bit")]
)
def test_other_networks_of_timm_s_stay_what_they_are(name: str) -> None:
    assert_folds_and_fuses(network_of(lambda: timm.create_model(name)), 224)


def test_a_resnet50_is_a_stem_forty_eight_operations_and_four_shortcuts() -> None:
    fused = fuse(fold(network_of(torchvision.models.resnet50)), REFERENCE)
    layers = dict(fused.backbone.named_modules())
    kinds = Counter(type(layers[node.target]) for node in fused.backbone.graph.nodes if node.op == "call_module")
    assert kinds == {ConvolutionReLU: 48, nn.Conv2d: 5, nn.ReLU: 1, nn.MaxPool2d: 1, nn.AdaptiveAvgPool2d: 1}
    assert layers["conv1"].kernel_size == (7, 7)


# --- small networks ---


class Block(nn.Module):
    """Two convolutions with batch normalisation; ``forward`` of its subclasses differs in what is between them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.first, self.second = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(2))
        self.norm, self.other = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.block(self.stem(images)).mean((2, 3)))
        return logits

    def block(self, maps: Tensor) -> Tensor:
        raise NotImplementedError


class Residual(Block):
    def block(self, maps: Tensor) -> Tensor:
        return nn.functional.relu(self.other(self.second(self.norm(self.first(maps)).relu())) + maps)


class ResidualInPlace(Block):
    def block(self, maps: Tensor) -> Tensor:
        hidden = torch.relu(self.norm(self.first(maps)))
        hidden = self.other(self.second(hidden))
        hidden += maps
        return hidden.relu_()


class OtherAddend(Block):
    def block(self, maps: Tensor) -> Tensor:
        return torch.add(maps, self.other(self.second(maps))).relu()


class Accumulating(Block):
    """Adds to a tensor that is read again."""

    def block(self, maps: Tensor) -> Tensor:
        hidden = maps.sigmoid()
        hidden += self.norm(self.first(maps))
        return hidden.relu() * hidden


class Scaled(Block):
    def block(self, maps: Tensor) -> Tensor:
        return torch.add(self.first(maps), maps, alpha=3).relu()


class WithConstant(Block):
    def block(self, maps: Tensor) -> Tensor:
        return (self.first(maps) + 1).relu()


class Doubled(Block):
    def block(self, maps: Tensor) -> Tensor:
        hidden = self.first(maps)
        return (hidden + hidden).relu()


class Shared(Block):
    """Calls a convolution and a batch normalisation twice."""

    def block(self, maps: Tensor) -> Tensor:
        hidden = self.norm(self.first(maps)).relu()
        return self.norm(self.second(self.first(hidden))).relu()


class ReadTwice(Block):
    """Also uses the output of the convolution itself."""

    def block(self, maps: Tensor) -> Tensor:
        hidden = self.first(maps)
        return self.norm(hidden).relu() + self.second(hidden) + hidden.relu()


class WithoutStatistics(Block):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(8, track_running_stats=False)

    def block(self, maps: Tensor) -> Tensor:
        return self.norm(self.first(maps)).relu()


class Branching(Residual):
    def block(self, maps: Tensor) -> Tensor:
        return super().block(maps) if maps.sum() > 0 else maps


@pytest.mark.parametrize(
    ("kind", "norms", "fused"),
    [
        (Residual, 0, 2),
        (ResidualInPlace, 0, 2),
        (OtherAddend, 0, 1),
        (Accumulating, 0, 0),
        (Scaled, 0, 0),
        (WithConstant, 0, 0),
        (Doubled, 0, 0),
        (Shared, 2, 0),
        (ReadTwice, 1, 0),
        (WithoutStatistics, 1, 0),
        (Branching, 2, 0),
    ],
)
def test_only_what_computes_the_same_is_rewritten(kind: type[Block], norms: int, fused: int) -> None:
    found = assert_folds_and_fuses(network_of(kind), 16)
    layers = dict(found.backbone.named_modules())
    calls = found.backbone.graph.nodes if isinstance(found.backbone, fx.GraphModule) else ()
    assert count(found, ConvolutionReLU) == fused
    if calls:
        called = [layers[node.target] for node in calls if node.op == "call_module"]
        assert sum(isinstance(layer, nn.BatchNorm2d) for layer in called) == norms


def test_what_cannot_be_traced_is_returned_as_it_is() -> None:
    branching = network_of(Branching)
    assert fold(branching) is branching
    assert fuse(branching, REFERENCE) is branching
    several = network_of(lambda: timm.create_model("deit_tiny_distilled_patch16_224"))
    assert isinstance(several, SeveralHeads)
    assert fuse(several, REFERENCE) is several


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@torch.inference_mode()
def test_cudnn_computes_what_the_written_out_operations_do(dtype: torch.dtype) -> None:
    network = network_of(torchvision.models.resnet50).cuda().to(memory_format=torch.channels_last)
    inputs = images(224, 4).cuda().to(memory_format=torch.channels_last)
    expected = network(inputs)[1]
    fused = fuse(fold(network))
    fused.backbone.to(dtype)
    found = fused(inputs.to(dtype))[1]
    span = float(expected.max() - expected.min())
    assert float((found - expected).abs().max()) < {torch.bfloat16: 0.05}.get(dtype, 0.01) * span
