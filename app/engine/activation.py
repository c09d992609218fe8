"""Class activation maps of a network for OpenVINO (Zhou et al. 2016, arXiv:1512.04150).

If the features are the mean of maps over their positions, and the logits are linear in the features, then the logit of
a class is its bias plus the mean of a weighted sum of the maps. That sum shows what each position contributes.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from app.engine.base import Floats
from app.models.openvino import ov

_SAME_VALUES = ("Reshape", "Squeeze", "Unsqueeze", "Convert", "FakeQuantize")
_AFTER_PRODUCT = ("Add", "Reshape", "Convert")
_NONZERO = 1e-6
_SPATIAL = {(2, 3): False, (1, 2): True}  # axes of the positions -> whether the channels come last


class Tail(NamedTuple):
    """The end of a network: ``maps`` -> global pooling -> linear layer -> logits.

    ``channels_last``: the maps are [n, rows, columns, dim] rather than [n, dim, rows, columns]. ``weights`` are those
    of the linear layer: [classes, dim], or [dim, classes] if they are ``transposed``.
    """

    maps: Any
    channels_last: bool
    weights: Any
    transposed: bool


def has_maps(network: ov.Model, crop: int) -> bool:
    """Whether there are class activation maps of a network from pixels, [n, crop, crop, 3], to ``logits``."""
    sized = network.clone()  # it shares the weights
    fix_size(sized, crop)
    return tail(sized) is not None


def fix_size(network: ov.Model, crop: int) -> None:
    """Compute the shapes in a converted network, which may be for pixels of any size, for one size of crop."""
    network.reshape([-1, crop, crop, 3])


def tail(network: ov.Model) -> Tail | None:
    """The end of a network with the output ``logits``, for one size of crop; None if it has another form."""
    product = _linear(network.output("logits").get_node().input_value(0))
    if product is None:
        return None
    features, weights = product.input_value(0), product.input_value(1)
    while features.get_node().get_type_name() in _SAME_VALUES or _is_view(features.get_node()):
        features = features.get_node().input_value(0)
    axes = _pooled(features.get_node())
    if axes not in _SPATIAL:
        return None
    maps = features.get_node().input_value(0)
    if all(maps.partial_shape[axis] == 1 for axis in axes):
        return None
    attributes = product.get_attributes()
    transposed = not attributes["transpose_b"]
    return None if attributes["transpose_a"] else Tail(maps, _SPATIAL[axes], weights, transposed)


def weights(found: Tail) -> Floats:
    """The weights of the linear layer, float32 [classes, dim]. In an int8 network a few operations compute them."""
    compiled = ov.Core().compile_model(ov.Model([found.weights], []), "CPU", {"INFERENCE_PRECISION_HINT": ov.Type.f32})
    values = np.asarray(compiled([])[0], np.float32)
    return np.ascontiguousarray(values.T if found.transposed else values)


def deviation(maps: Floats, features: Floats, logits: Floats, weights: Floats) -> float:
    """How far a network is from features that are the mean of its maps, and from logits that are linear in them.

    For two or more images: ``maps`` [n, dim, rows, columns], ``features`` [n, dim], ``logits`` [n, classes] and the
    ``weights`` [classes, dim] of the linear layer, whose bias need not be known: it is the same for all images.
    Returns the largest difference as a fraction of the largest feature or of the range of the logits.
    """
    means = maps.mean((2, 3))
    if means.shape != features.shape or features.shape[1] != weights.shape[1]:
        return math.inf
    biases = logits - features @ weights.T
    of_features = np.abs(means - features).max() / max(np.abs(features).max(), _NONZERO)
    of_logits = np.abs(biases - biases[0]).max() / max(np.ptp(logits), _NONZERO)
    return float(np.max([of_features, of_logits]))


def _linear(logits: Any) -> Any | None:
    """The multiplication by constant weights that computes the logits, before the bias; None if there is none."""
    node = logits.get_node()
    while node.get_type_name() in _AFTER_PRODUCT:
        values = node.input_values() if node.get_type_name() == "Add" else node.input_values()[:1]
        computed = [value for value in values if not _is_constant(value)]
        if len(computed) != 1:  # two: the sum of several heads
            return None
        node = computed[0].get_node()
    return node if node.get_type_name() == "MatMul" and _is_constant(node.input_value(1)) else None


def _is_view(node: Any) -> bool:
    """Whether a node only adds and removes axes of length 1 by way of a flat tensor, as torch's ``as_strided`` may."""
    flat = node.input_value(0).get_node() if node.get_type_name() == "Gather" else None
    if flat is None or flat.get_type_name() != "Reshape" or flat.output(0).partial_shape.rank.get_length() != 1:
        return False
    before, after = flat.input_value(0).partial_shape, node.output(0).partial_shape
    return [length for length in before if length != 1] == [length for length in after if length != 1]


def _pooled(node: Any) -> tuple[int, ...] | None:
    """The axes over which a node takes the mean of a tensor of four; None if it does something else."""
    if node.get_input_size() == 0 or node.input_value(0).partial_shape.rank.get_length() != 4:
        return None
    if node.get_type_name() == "ReduceMean":
        axes = node.input_value(1).get_node()
        if axes.get_type_name() != "Constant":
            return None
        return tuple(sorted(int(axis) % 4 for axis in np.atleast_1d(axes.get_data())))
    before, after = node.input_value(0).partial_shape, node.output(0).partial_shape
    if node.get_type_name() == "AdaptiveAvgPool":
        return (2, 3) if after[2] == after[3] == 1 else None
    if node.get_type_name() == "AvgPool":
        kernel = node.get_attributes()["kernel"]
        return (2, 3) if [before[2], before[3]] == list(kernel) and after[2] == after[3] == 1 else None
    return None


def _is_constant(value: Any) -> bool:
    """Whether a value does not depend on the input of the network."""
    return all(node.get_type_name() != "Parameter" for node in _ancestors(value.get_node()))


def _ancestors(node: Any) -> Iterator[Any]:
    """A node and all that it depends on. Deep networks have more nodes than Python allows calls within calls."""
    seen: set[str] = set()
    waiting = [node]
    while waiting:
        node = waiting.pop()
        name = node.get_name()  # unique in a network
        if name not in seen:
            seen.add(name)
            yield node
            waiting += [value.get_node() for value in node.input_values()]
