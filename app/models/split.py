"""Classification networks that return features and logits, split before their last classification layer."""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torchvision.models import SqueezeNet

from app.errors import ModelError

AUXILIARY = ("aux1", "aux2", "AuxLogits")  # heads of GoogLeNet and Inception, used only in their original training


class FeaturesAndLogits(nn.Module):
    """Maps a normalised [n, 3, crop, crop] batch to features [n, dim] and logits [n, classes].

    Features are the input of the last classification layer; if that is a convolution (SqueezeNet), their mean over the
    positions. Features and logits are float32 even if the backbone computes in bfloat16, because logits rounded to
    bfloat16 would tie if classes are close.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module, dim: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.dim = dim

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = _exact(self.backbone(images))
        logits = self.head(features)
        return (features.mean((2, 3)) if features.dim() == 4 else features), logits


class SeveralHeads(FeaturesAndLogits):
    """A timm network that combines the logits of several classification layers (distilled, or multi-scale).

    Features are timm's ``pre_logits``. The heads compute in the backbone's precision.
    """

    def __init__(self, network: nn.Module, dim: int) -> None:
        super().__init__(network, nn.Identity(), dim)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        network = cast(Any, self.backbone)
        maps = network.forward_features(images)
        return _exact(network.forward_head(maps, pre_logits=True)), _exact(network.forward_head(maps))


def _exact(tensor: Tensor) -> Tensor:
    """Convert to float32, unless the tensor is float64."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def split(network: nn.Module) -> FeaturesAndLogits:
    """Split a torchvision or timm classifier. The result shares its parameters; ``network`` must not be used again."""
    if isinstance(network, SqueezeNet):
        convolution = cast(nn.Conv2d, network.classifier[1])
        return FeaturesAndLogits(
            network.features, nn.Sequential(network.classifier, nn.Flatten()), convolution.in_channels
        )
    if _several(network):
        return SeveralHeads(network, cast(Any, network).head_hidden_size)
    name, layer = _last_layer(network)
    network.set_submodule(name, nn.Identity())
    head = _linear(layer) if isinstance(layer, nn.Conv2d) else layer
    return FeaturesAndLogits(network, head, head.in_features)


def set_classes(network: nn.Module, classes: int) -> nn.Linear | nn.Conv2d:
    """Replace the last layer of a torchvision or timm classifier by one with ``classes`` outputs. Return the new layer.

    The logits become linear in the features of ``split``: SqueezeNet loses its final ReLU. Auxiliary heads are removed.
    Raises ModelError if the network has several classification layers.
    """
    for name in AUXILIARY:
        if getattr(network, name, None) is not None:
            setattr(network, name, None)
            setattr(network, "aux_logits", False)  # noqa: B010
    if isinstance(network, SqueezeNet):
        convolution = nn.Conv2d(cast(nn.Conv2d, network.classifier[1]).in_channels, classes, kernel_size=1)
        network.classifier[1], network.classifier[2] = convolution, nn.Identity()
        return convolution
    if _several(network):
        raise ModelError(
            "a network with several classification layers cannot be trained for other classes; choose another model"
        )
    name, layer = _last_layer(network)
    new: nn.Linear | nn.Conv2d = (
        nn.Conv2d(layer.in_channels, classes, kernel_size=1)
        if isinstance(layer, nn.Conv2d)
        else nn.Linear(layer.in_features, classes)
    )
    network.set_submodule(name, new)
    return new


def _several(network: nn.Module) -> bool:
    """Whether timm combines the logits of several layers."""
    classifier = _classifier(network)
    if not isinstance(classifier, nn.Module) or isinstance(classifier, nn.ModuleList):
        return True
    return hasattr(classifier, "head_dist") or getattr(network, "aux_head", None) is not None


def _last_layer(network: nn.Module) -> tuple[str, nn.Linear | nn.Conv2d]:
    """The name and the module of the classification layer: linear, or in timm a convolution of pooled features."""
    classifier = _classifier(network)
    kinds = nn.Linear if classifier is network else nn.Linear | nn.Conv2d
    layer = [module for module in classifier.modules() if isinstance(module, kinds)][-1]
    return next(name for name, module in network.named_modules() if module is layer), layer


def _classifier(network: nn.Module) -> Any:
    """timm's classifier module, or the whole network if it declares none."""
    return cast(Any, network).get_classifier() if hasattr(network, "get_classifier") else network


def _linear(convolution: nn.Conv2d) -> nn.Linear:
    """The equivalent linear layer for features pooled to one position."""
    head = nn.Linear(convolution.in_channels, convolution.out_channels, device=convolution.weight.device)
    head.weight = nn.Parameter(convolution.weight.detach().flatten(1))
    head.bias = nn.Parameter(cast(Tensor, convolution.bias).detach())
    return head
