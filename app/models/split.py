"""A classification network as (features, logits): cut before its last classifying layer."""

from typing import Any, cast

from torch import Tensor, nn
from torchvision.models import SqueezeNet


class FeaturesAndLogits(nn.Module):
    """Maps a normalised [n, 3, crop, crop] batch to features [n, dim] and logits [n, classes].

    Features are the input of the last classifying layer; where that is a convolution (SqueezeNet), their mean over
    the positions. They and the last layer are float32 whatever the backbone computes in: logits rounded to bfloat16
    would tie where classes are close.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module, dim: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.dim = dim

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.backbone(images).float()
        logits = self.head(features)
        return (features.mean((2, 3)) if features.dim() == 4 else features), logits


class SeveralHeads(FeaturesAndLogits):
    """One of timm's with more than one classifying layer (distilled, or of several scales), which it combines itself.

    Features are what timm calls so, and the heads compute in the backbone's precision.
    """

    def __init__(self, network: nn.Module, dim: int) -> None:
        super().__init__(network, nn.Identity(), dim)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        network = cast(Any, self.backbone)
        seen = network.forward_features(images)
        return network.forward_head(seen, pre_logits=True).float(), network.forward_head(seen).float()


def split(network: nn.Module) -> FeaturesAndLogits:
    """Cut a torchvision or timm classifier; its parameters are shared, and ``network`` is no longer to be used."""
    if isinstance(network, SqueezeNet):
        convolution = cast(nn.Conv2d, network.classifier[1])
        return FeaturesAndLogits(
            network.features, nn.Sequential(network.classifier, nn.Flatten()), convolution.in_channels
        )
    classifier = cast(Any, network).get_classifier() if hasattr(network, "get_classifier") else network
    if _several(network, classifier):
        return SeveralHeads(network, cast(Any, network).head_hidden_size)
    kinds = nn.Linear if classifier is network else nn.Linear | nn.Conv2d
    layer = [module for module in classifier.modules() if isinstance(module, kinds)][-1]
    name = next(name for name, module in network.named_modules() if module is layer)
    network.set_submodule(name, nn.Identity())
    head = _linear(layer) if isinstance(layer, nn.Conv2d) else layer
    return FeaturesAndLogits(network, head, head.in_features)


def _several(network: nn.Module, classifier: Any) -> bool:
    """Whether timm adds up the logits of more than one layer."""
    if not isinstance(classifier, nn.Module) or isinstance(classifier, nn.ModuleList):
        return True
    return hasattr(classifier, "head_dist") or getattr(network, "aux_head", None) is not None


def _linear(convolution: nn.Conv2d) -> nn.Linear:
    """The same layer for features that have been pooled to one position."""
    head = nn.Linear(convolution.in_channels, convolution.out_channels, device=convolution.weight.device)
    head.weight = nn.Parameter(convolution.weight.detach().flatten(1))
    head.bias = nn.Parameter(cast(Tensor, convolution.bias).detach())
    return head
