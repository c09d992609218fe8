"""Class activation maps of a network for OpenVINO (Zhou et al. 2016, arXiv:1512.04150).

If the features are the mean of maps over their positions, and the logits are linear in the features, then the logit of
a class is its bias plus the mean of a weighted sum of the maps. That sum shows what each position contributes.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from app.engine.base import Floats
from app.models.openvino import ov

_SAME_VALUES = ("Reshape", "Squeeze", "Unsqueeze", "Convert", "FakeQuantize")
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


def tail(network: ov.Model) -> Tail | None:
    """The end of a network with the output ``logits``; None if it has another form."""
    product = _linear(network.output("logits").get_node().input_value(0))
    if product is None:
        return None
    features, weights = product.input_value(0), product.input_value(1)
    while features.get_node().get_type_name() in _SAME_VALUES:
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


def _linear(logits: Any) -> Any | None:
    """The multiplication by constant weights that computes the logits, before the bias; None if there is none."""
    node = logits.get_node()
    while node.get_type_name() in ("Add", "Convert", "Reshape"):
        node = next((value.get_node() for value in node.input_values() if not _is_constant(value)), None)
        if node is None:
            return None
    return node if node.get_type_name() == "MatMul" and _is_constant(node.input_value(1)) else None


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
