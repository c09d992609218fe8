"""Class activation maps of both engines, next to a slow implementation with hooks."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torchvision import models as zoo

from app.engine import Engine, Row, Want, activation
from app.engine.base import BEST
from app.engine.openvino import OpenVinoEngine
from app.engine.torch import TorchEngine
from app.imagenet.labels import imagenet1k
from app.images import Preprocessing
from app.models import folder
from app.models.model import Model
from app.models.openvino import ov
from tests import tiny
from tests.conftest import slow

PREPROCESSING = Preprocessing(72, 64, "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CROP = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
ops = ov.opset13

Create = Callable[[Model], Engine]
ENGINES = [
    pytest.param(lambda model: TorchEngine(model, "cpu", "float32"), id="torch"),
    slow(lambda model: OpenVinoEngine(model, "float32"), id="openvino"),
]
MAPPED = {  # the module whose output is the input of the final pooling, and a function after it
    "resnet18": ("layer4", None),
    "mobilenet_v2": ("features", None),
    "densenet121": ("features", torch.relu),
    "efficientnet_b0": ("features", None),
    "googlenet": ("inception5b", None),
    "regnet_y_400mf": ("trunk_output", None),
    "shufflenet_v2_x0_5": ("conv5", None),
}


def seeded(architecture: str) -> tuple[Model, nn.Module]:
    torch.manual_seed(0)
    options = {"init_weights": False} if architecture == "googlenet" else {}
    network = getattr(zoo, architecture)(weights=None, **options).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    labels = imagenet1k()
    model = Model(architecture, architecture, "seeded", "d", PREPROCESSING, labels, lambda: copy.deepcopy(network))
    return model, network


def explain(engine: Engine, class_id: int, crop: Any = CROP) -> Row:
    engine.load()
    wants = [Want(k=2, logits=True, features=True, explain=class_id)]
    return engine.forward([crop], wants).row(0, 2)


@torch.inference_mode()
def slow_map(network: nn.Module, architecture: str, class_id: int) -> np.ndarray[Any, Any]:
    """As in the paper: the maps before the pooling, weighted by the last layer's weights of the class."""
    name, after = MAPPED[architecture]
    kept: list[torch.Tensor] = []
    network.get_submodule(name).register_forward_hook(lambda module, given, output: kept.append(output))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (PREPROCESSING.mean, PREPROCESSING.std))
    network((torch.from_numpy(CROP).permute(2, 0, 1) / 255 - mean)[None] / std)
    maps = after(kept[0]) if after else kept[0]
    last = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    return np.asarray(sum(w * m for w, m in zip(last.weight[class_id], maps[0], strict=True)))


@pytest.mark.parametrize("create", ENGINES)
@pytest.mark.parametrize("architecture", ["resnet18", *map(slow, list(MAPPED)[1:])])
def test_a_map_is_that_of_a_slow_implementation(architecture: str, create: Create) -> None:
    model, network = seeded(architecture)
    row = explain(create(model).explaining(), 7)
    wanted = slow_map(network, architecture, 7)
    assert row.activation is not None
    assert row.activation.dtype == np.float32
    np.testing.assert_allclose(row.activation, wanted, atol=1e-3 * np.abs(wanted).max())


@pytest.mark.parametrize("create", ENGINES)
def test_the_best_class_is_explained_and_its_mean_and_bias_are_the_logit(create: Create) -> None:
    model, network = seeded("resnet18")
    row = explain(create(model).explaining(), BEST)
    best = int(row.class_ids[0])
    assert row.activation is not None
    assert row.logits is not None
    bias = float(network.fc.bias.detach()[best])
    assert row.activation.mean() + bias == pytest.approx(float(row.logits[best]), abs=1e-4)


@pytest.mark.parametrize("create", ENGINES)
def test_it_computes_what_the_serving_engine_does(create: Create) -> None:
    model, _ = seeded("resnet18")
    serving = create(model)
    serving.load()
    mine, theirs = explain(serving.explaining(), 7), serving.forward([CROP], [Want(k=2, logits=True)]).row(0, 2)
    assert mine.class_ids.tolist() == theirs.class_ids.tolist()
    np.testing.assert_allclose(mine.logits, theirs.logits, atol=1e-4)
    assert mine.energy == pytest.approx(theirs.energy, abs=1e-4)
    assert theirs.activation is None


@pytest.mark.parametrize("create", ENGINES)
@pytest.mark.parametrize(
    "architecture", ["mobilenet_v3_small", slow("squeezenet1_1"), slow("convnext_tiny"), slow("alexnet")]
)
def test_a_network_of_another_form_has_none(architecture: str, create: Create) -> None:
    model, _ = seeded(architecture)
    engine = create(model)
    engine.load()
    assert "does not end in global pooling and one linear layer" in (engine.inexplicable or "")


def test_the_serving_network_gains_no_output() -> None:
    engine = OpenVinoEngine(folder.load(Path(tiny.model()[1])), "float32")
    engine.load()
    explain(engine.explaining(), 7, np.zeros((224, 224, 3), np.uint8))
    assert [sorted(output.get_names()) for output in engine._narrow.outputs] == [["features"], ["logits"]]


def test_a_deep_network() -> None:
    """Its graph is deeper than Python's limit of calls within calls."""
    pixels = ops.parameter([-1, 8, 8, 3], np.float32)
    maps = ops.transpose(pixels, np.array([0, 3, 1, 2]))
    for _ in range(2000):
        maps = ops.add(maps, np.float32(1e-3))
    features = ops.reduce_mean(maps, np.array([2, 3]), keep_dims=False)
    logits = ops.matmul(features, ops.constant(np.eye(3, dtype=np.float32)), False, False)
    network = ov.Model([ops.result(features), ops.result(logits)], [pixels], "deep")
    network.outputs[1].get_tensor().set_names({"logits"})
    assert activation.tail(network)


@pytest.mark.parametrize(("transpose", "shape"), [(False, (3, 5)), (True, (5, 3))])
def test_weights_behind_operations_and_of_either_layout(transpose: bool, shape: tuple[int, int]) -> None:
    """As in an int8 network, whose weights are converted and scaled."""
    values = np.random.default_rng(0).integers(-100, 100, shape).astype(np.int8)
    pixels = ops.parameter([-1, 8, 8, 3], np.float32)
    maps = ops.transpose(pixels, np.array([0, 3, 1, 2]))
    features = ops.squeeze(ops.reduce_mean(maps, np.array([2, 3]), keep_dims=True), np.array([2, 3]))
    scaled = ops.multiply(ops.convert(ops.constant(values), "f32"), np.float32(0.5))
    logits = ops.add(ops.matmul(features, scaled, False, transpose), np.zeros((1, 5), np.float32))
    network = ov.Model([ops.result(logits)], [pixels], "scaled")
    network.outputs[0].get_tensor().set_names({"logits"})
    tail = activation.tail(network)
    assert tail
    np.testing.assert_allclose(activation.weights(tail), (values if transpose else values.T) * 0.5)
