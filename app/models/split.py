"""A classification network as (features, logits): cut before its last classifying layer."""

from typing import cast

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


AUXILIARY = ("aux1", "aux2", "AuxLogits")  # heads of GoogLeNet and Inception that only their first training had


def split(network: nn.Module) -> FeaturesAndLogits:
    """Cut a torchvision or timm classifier; its parameters are shared, and ``network`` is no longer to be used."""
    if isinstance(network, SqueezeNet):
        convolution = cast(nn.Conv2d, network.classifier[1])
        return FeaturesAndLogits(
            network.features, nn.Sequential(network.classifier, nn.Flatten()), convolution.in_channels
        )
    name, head = _last_linear(network)
    network.set_submodule(name, nn.Identity())
    return FeaturesAndLogits(network, head, head.in_features)


def set_classes(network: nn.Module, classes: int) -> nn.Linear | nn.Conv2d:
    """Give a torchvision or timm classifier a new last layer of ``classes`` outputs, and return that.

    Its logits are linear in the features that ``split`` has: SqueezeNet loses the ReLU that it ends with. Auxiliary
    heads are dropped.
    """
    for name in AUXILIARY:
        if getattr(network, name, None) is not None:
            setattr(network, name, None)
            setattr(network, "aux_logits", False)  # noqa: B010
    if isinstance(network, SqueezeNet):
        convolution = nn.Conv2d(cast(nn.Conv2d, network.classifier[1]).in_channels, classes, kernel_size=1)
        network.classifier[1], network.classifier[2] = convolution, nn.Identity()
        return convolution
    name, head = _last_linear(network)
    linear = nn.Linear(head.in_features, classes)
    network.set_submodule(name, linear)
    return linear


def _last_linear(network: nn.Module) -> tuple[str, nn.Linear]:
    return [(name, module) for name, module in network.named_modules() if isinstance(module, nn.Linear)][-1]
