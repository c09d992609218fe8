"""Batch normalisation folded into convolutions, and convolutions fused with the addition and the ReLU after them.

torch.fx rewrites the backbone. A network that cannot be traced stays as it is, for example because its control flow
depends on the images.
"""

import operator
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from app.models.split import FeaturesAndLogits, SeveralHeads

_FOLDABLE = ("Conv2d", "Conv2dSame")  # timm's second one pads its input; others change their weights in each pass
_ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")
_RELUS = (torch.relu, torch.relu_, nn.functional.relu, "relu", "relu_")
_ALIGNED = 8  # channels of 16 bits that a tensor core loads at once


class Operations(NamedTuple):
    """A convolution with ReLU, and one with addition and ReLU: functions with the arguments of cuDNN's."""

    relu: Callable[..., Tensor]
    add_relu: Callable[..., Tensor]


CUDNN = Operations(torch.cudnn_convolution_relu, torch.cudnn_convolution_add_relu)


class ConvolutionReLU(nn.Module):
    """A convolution, the addition of another tensor if there is one, and a ReLU, in one operation."""

    def __init__(self, convolution: nn.Conv2d, operations: Operations) -> None:
        super().__init__()
        self.convolution = convolution
        self.operations = operations

    def forward(self, images: Tensor, added: Tensor | None = None) -> Tensor:
        layer = self.convolution
        geometry = (layer.stride, layer.padding, layer.dilation, layer.groups)
        if added is None:
            return self.operations.relu(images, layer.weight, layer.bias, *geometry)
        return self.operations.add_relu(images, layer.weight, added, 1, layer.bias, *geometry)


def fold(network: FeaturesAndLogits) -> FeaturesAndLogits:
    """Fold each batch normalisation into the convolution before it, in the precision of the network.

    Returns ``network`` itself if it has no batch normalisation or cannot be traced. ``network`` stays as it is; the
    result shares its other layers.
    """
    norms = any(isinstance(layer, nn.BatchNorm2d) for layer in network.backbone.modules())
    if not norms or (traced := _trace(network)) is None:
        return network
    layers = _layers(traced)
    calls = Counter(layers.values())
    for node, norm in layers.items():
        before = _only_source(node)
        convolution: Any = layers.get(before)
        if not _is_foldable(convolution, norm) or calls[convolution] > 1 or calls[norm] > 1:
            continue
        traced.set_submodule(before.target, fuse_conv_bn_eval(convolution, norm))
        if activation := getattr(norm, "act", None):
            traced.set_submodule(node.target, activation)
        else:
            _remove(node)
    return _network(traced, network)


def fuse(network: FeaturesAndLogits, operations: Operations = CUDNN) -> FeaturesAndLogits:
    """Fuse each convolution with the ReLU after it, and with an addition between the two.

    Convolutions of few channels, such as the stem's, are left out, because cuDNN is slow there (pytorch#68506). So are
    grouped ones. See ``fold`` for the result.
    """
    if (traced := _trace(network)) is None:
        return network
    layers = _layers(traced)
    calls = Counter(layers.values())
    for relu in list(traced.graph.nodes):
        source = _only_source(relu) if _is_relu(relu, layers) else None
        inputs = _addends(source) or [source] if source else []
        fusable = (node for node in inputs if len(node.users) == 1 and _is_fusable(layers.get(node)))
        convolution = next((node for node in fusable if calls[layers[node]] == 1), None)
        if convolution is None:
            continue
        added = [node for node in inputs if node is not convolution]
        with traced.graph.inserting_before(relu):
            fused = traced.graph.call_module(convolution.target, (convolution.args[0], *added))
        traced.set_submodule(convolution.target, ConvolutionReLU(layers[convolution], operations))
        relu.replace_all_uses_with(fused)
        for node in dict.fromkeys((relu, source, convolution)):
            traced.graph.erase_node(node)
    return _network(traced, network)


class _Tracer(fx.Tracer):
    """Also keeps timm's kinds of convolutions and batch normalisation whole."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, nn.Conv2d | nn.BatchNorm2d) or super().is_leaf_module(module, name)


def _trace(network: FeaturesAndLogits) -> fx.GraphModule | None:
    """The backbone as a graph without identities, or None. Its layers are those of ``network``."""
    if isinstance(network, SeveralHeads):
        return None
    try:
        traced = fx.GraphModule(network.backbone, _Tracer().trace(network.backbone))
    except Exception:  # it runs the network's own code on placeholders
        return None
    for node, layer in _layers(traced).items():
        if isinstance(layer, nn.Identity):
            _remove(node)
    return traced


def _network(traced: fx.GraphModule, network: FeaturesAndLogits) -> FeaturesAndLogits:
    """The network with the rewritten backbone, without the layers that it no longer calls."""
    return FeaturesAndLogits(fx.GraphModule(traced, traced.graph), network.head, network.dim).eval()


def _layers(traced: fx.GraphModule) -> dict[Any, Any]:
    """The layers by the nodes that call them, in the order of the calls."""
    layers = dict(traced.named_modules())
    return {node: layers[node.target] for node in traced.graph.nodes if node.op == "call_module"}


def _remove(node: fx.Node) -> None:
    """Replace a node by its only input."""
    node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]
    node.graph.erase_node(node)


def _only_source(node: fx.Node) -> Any:
    """The node that is the first argument of ``node``, if no other node uses it."""
    source = node.args[0] if node.args else None
    return source if isinstance(source, fx.Node) and len(source.users) == 1 else None


def _is_foldable(convolution: Any, norm: Any) -> bool:
    """Whether ``norm`` is a batch normalisation with known statistics, in timm perhaps with an activation ``act``."""
    if type(convolution).__name__ not in _FOLDABLE or not isinstance(norm, nn.BatchNorm2d) or norm.running_mean is None:
        return False
    return type(norm) is nn.BatchNorm2d or isinstance(getattr(norm, "drop", None), nn.Identity)


def _is_relu(node: fx.Node, layers: dict[Any, Any]) -> bool:
    return node.target in _RELUS or type(layers.get(node)) is nn.ReLU


def _addends(node: fx.Node) -> list[Any]:
    """The two nodes that ``node`` adds; empty if it does something else, or changes a tensor that others use."""
    addends = [addend for addend in node.args if isinstance(addend, fx.Node)]
    if node.target not in _ADDITIONS or node.kwargs or len(set(addends)) != 2:
        return []
    in_place = node.target in (operator.iadd, "add_")
    return [] if in_place and len(addends[0].users) > 1 else addends


def _is_fusable(layer: Any) -> bool:
    return (
        type(layer) is nn.Conv2d
        and layer.groups == 1
        and layer.in_channels % _ALIGNED == 0
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
    )
