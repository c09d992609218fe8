"""The end of a network in OpenVINO's graph: which forms have class activation maps, and their weights."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest

from app.engine import activation
from app.engine.openvino import OpenVinoEngine
from app.errors import ModelError
from app.models import folder
from tests import tiny

ops = ov.opset13
DIM, CLASSES, EDGE = 4, 6, 7
WEIGHTS = np.random.default_rng(0).standard_normal((DIM, CLASSES)).astype(np.float32)


def product(features: Any, weights: Any = WEIGHTS, transposed: bool = False) -> Any:
    return ops.matmul(features, weights, False, transposed)


def mean(maps: Any, axes: tuple[int, ...] = (2, 3)) -> Any:
    return ops.reduce_mean(maps, np.array(axes), keep_dims=False)


def network(build: Callable[[Any], Any], shape: tuple[int, ...] = (-1, DIM, EDGE, EDGE)) -> ov.Model:
    """A network from maps to ``logits``."""
    maps = ops.parameter(shape, np.float32)
    made = ov.Model([ops.result(build(maps))], [maps])
    made.output(0).get_tensor().set_names({"logits"})
    return made


def found(build: Callable[[Any], Any], shape: tuple[int, ...] = (-1, DIM, EDGE, EDGE)) -> activation.Tail | None:
    return activation.tail(network(build, shape))


def average(maps: Any, kernel: int = EDGE) -> Any:
    return ops.avg_pool(maps, [1, 1], [0, 0], [0, 0], [kernel, kernel], exclude_pad=True)


def flat(pooled: Any, dim: int = DIM) -> Any:
    return ops.reshape(pooled, np.array([-1, dim]), special_zero=False)


def compressed() -> Any:
    """int8 weights as quantised networks store them, (stored - 3) * scale: ``WEIGHTS`` but for rounding."""
    stored = np.round(WEIGHTS / 0.02 + 3).astype(np.int8)
    return ops.multiply(ops.subtract(ops.convert(ops.constant(stored), np.float32), np.float32(3)), np.float32(0.02))


def same(maps: Any) -> Any:
    return ops.convert(ops.fake_quantize(mean(maps), -4.0, 4.0, -4.0, 4.0, 256), np.float32)


@pytest.mark.parametrize(
    "build",
    [
        lambda maps: product(mean(maps)),
        lambda maps: product(mean(maps, (-1, -2))),
        lambda maps: ops.add(product(mean(maps)), np.ones((1, CLASSES), np.float32)),
        lambda maps: product(flat(average(maps))),
        lambda maps: product(ops.squeeze(ops.adaptive_avg_pool(maps, np.array([1, 1])), np.array([2, 3]))),
        lambda maps: product(same(maps)),
        lambda maps: product(mean(ops.relu(maps))),
    ],
)
def test_global_pooling_and_a_linear_layer(build: Callable[[Any], Any]) -> None:
    tail = found(build)
    assert tail
    assert not tail.channels_last
    assert np.allclose(activation.weights(tail), WEIGHTS.T)


def test_channels_may_come_last() -> None:
    tail = found(lambda maps: product(mean(maps, (1, 2))), (-1, EDGE, EDGE, DIM))
    assert tail
    assert tail.channels_last


@pytest.mark.parametrize(
    "build",
    [
        lambda maps: product(ops.relu(mean(maps))),
        lambda maps: product(ops.multiply(mean(maps), np.float32(2))),
        lambda maps: product(ops.reduce_max(maps, np.array([2, 3]))),
        lambda maps: product(
            ops.reshape(average(maps, EDGE - 1), [-1, 4 * DIM], False), np.ones((4 * DIM, CLASSES), np.float32)
        ),
        lambda maps: product(mean(average(maps))),
        lambda maps: ops.relu(product(mean(maps))),
        lambda maps: ops.add(product(mean(maps)), product(mean(ops.relu(maps)))),
        lambda maps: product(mean(maps), ops.reshape(mean(maps), np.array([DIM, -1]), special_zero=False)),
        lambda maps: product(mean(maps, (1, 3)), np.ones((EDGE, CLASSES), np.float32)),
    ],
    ids=["relu", "scale", "max", "part", "1x1", "end", "heads", "computed", "axes"],
)
def test_other_forms_have_no_maps(build: Callable[[Any], Any]) -> None:
    assert found(build) is None


def test_weights_may_be_transposed() -> None:
    transposed = found(lambda maps: product(mean(maps), WEIGHTS.T.copy(), transposed=True))
    assert transposed
    assert np.allclose(activation.weights(transposed), WEIGHTS.T)


def test_weights_may_be_compressed() -> None:
    quantised = found(lambda maps: product(mean(maps), compressed()))
    assert quantised
    assert np.allclose(activation.weights(quantised), WEIGHTS.T, atol=0.011)


def test_a_network_deeper_than_python_recurses() -> None:
    def deep(maps: Any) -> Any:
        for _ in range(2000):
            maps = ops.relu(maps)
        return product(mean(maps))

    assert found(deep)


def coarse() -> ov.Model:
    """The tiny network with the features of its linear layer rounded to two levels."""
    made = tiny.network()
    linear = made.output("logits").get_node().input_value(0).get_node()
    features = linear.input_value(0)
    linear.input(0).replace_source_output(ops.fake_quantize(features, 0.0, 40.0, 0.0, 40.0, 2).output(0))
    return made


def tiny_engine(path: Path, made: ov.Model) -> OpenVinoEngine:
    tiny.write(path, made)
    engine = OpenVinoEngine(replace(folder.load(path), name="mine"), "float32")
    engine.load()
    return engine


def test_maps_that_do_not_explain_the_logits_are_refused(tmp_path: Path) -> None:
    engine = tiny_engine(tmp_path, coarse()).explaining()
    with pytest.raises(ModelError, match=r"the class activation maps of mine deviate from its logits by \d+\.\d%"):
        engine.load()


def test_the_reason_names_the_model(tmp_path: Path) -> None:
    engine = tiny_engine(tmp_path, tiny.network(hidden=True))
    assert engine.inexplicable == (
        "the network of mine does not end in global pooling and one linear layer, so it has no class activation maps"
    )
    with pytest.raises(ModelError, match="the network of mine does not end in global pooling"):
        engine.explaining().load()


def test_a_network_with_maps_has_no_reason(tmp_path: Path) -> None:
    assert tiny_engine(tmp_path, tiny.network()).inexplicable is None
