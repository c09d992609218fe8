"""Class activation maps of both engines, beside those of a slow implementation."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor, nn

from app.calibration import Calibration
from app.calibration.conformal import Regularisation
from app.engine import Engine, Want
from app.engine.base import BEST
from app.engine.openvino import OpenVinoEngine
from app.engine.torch import TorchEngine
from app.errors import ModelError
from app.models import folder
from app.models.convert import to_openvino
from app.models.model import Model
from app.models.quantize import quantize
from tests import tiny
from tests.conftest import slow
from tests.engine.maps import MODULES, PREPROCESSING, build, close, crop, expected, forward, linear, mapped, model_of
from tests.engine.test_openvino import BFLOAT16
from tests.models.seeded import seeded

ALL = Want(k=5, features=True, logits=True, probabilities=True)
KINDS = ("torch", "openvino")
SLOW = [slow("openvino", "resnet18"), *(slow(kind, name) for name in list(MODULES)[1:] for kind in KINDS)]
INEXPLICABLE = ("squeezenet1_1", "alexnet", "vgg11", "mobilenet_v3_small", "convnext_tiny", "vit_b_32")


def serving(kind: str, model: Model, precision: str = "float32") -> Engine:
    return OpenVinoEngine(model, precision) if kind == "openvino" else TorchEngine(model, "cpu", precision)


@cache
def explaining(kind: str, architecture: str, precision: str = "float32") -> Engine:
    engine = serving(kind, model_of(architecture), precision).explaining()
    engine.load()
    return engine


@cache
def tiny_model() -> Model:
    return folder.load(Path(tiny.model()[1]))


@pytest.mark.parametrize(("kind", "architecture"), [("torch", "resnet18"), *SLOW])
def test_maps_are_those_of_hooks_on_the_network(kind: str, architecture: str) -> None:
    engine, image = explaining(kind, architecture), crop()
    maps, logits = expected(architecture, image)
    assert close(mapped(engine, image, 7), maps[7])
    assert close(mapped(engine, image, 999), maps[999])
    assert close(mapped(engine, image, BEST), maps[logits.argmax()])
    assert mapped(engine, image, 7).dtype == np.float32


@pytest.mark.parametrize(("kind", "architecture"), [("torch", "resnet18"), *SLOW])
def test_the_mean_of_a_map_and_the_bias_are_the_logit(kind: str, architecture: str) -> None:
    engine, bias = explaining(kind, architecture), linear(build(architecture)).bias
    row = forward(engine, crop(1), replace(ALL, explain=BEST))
    best = row.class_ids[0]
    assert row.activation.mean() + bias[best].item() == pytest.approx(row.logits[best], rel=1e-3, abs=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(not BFLOAT16, reason="the CPU does not compute in bfloat16")
@pytest.mark.parametrize("kind", KINDS)
def test_maps_in_bfloat16_are_near_those_in_float32(kind: str) -> None:
    image = crop()
    maps, _ = expected("resnet18", image)
    assert close(mapped(explaining(kind, "resnet18", "bfloat16"), image, 7), maps[7], 0.05)


def tiny_engines() -> tuple[Engine, Engine]:
    """The serving engine and the explaining one, calibrated to a temperature."""
    calibration = Calibration("", 1.7, Regularisation(0.1, 1), np.zeros(1), np.zeros(1))
    engine = OpenVinoEngine(replace(tiny_model(), calibrations={"float32": calibration}), "float32")
    other = engine.explaining()
    engine.load()
    other.load()
    return engine, other


def test_the_other_outputs_are_those_of_the_serving_engine() -> None:
    image = crop(size=224)
    wanted, found = (forward(engine, image, ALL) for engine in tiny_engines())
    assert found.class_ids.tolist() == wanted.class_ids.tolist()
    for name in ("scores", "features", "logits", "probabilities", "energy"):
        assert np.allclose(getattr(found, name), getattr(wanted, name), rtol=1e-4, atol=1e-4), name
    assert found.activation is None


def test_only_the_explaining_network_has_an_output_more() -> None:
    engine, other = tiny_engines()
    assert [output.any_name for output in engine._narrow.outputs] == ["features", "logits"]
    assert ["maps" in output.names for output in other._narrow.outputs] == [False, False, True]
    assert (other.streams, other.buckets, other.spreads) == (1, (1,), False)


def test_each_image_of_a_batch_is_explained_for_its_own_class() -> None:
    _, engine = tiny_engines()
    images = [crop(seed, size=224) for seed in range(3)]
    rows = engine.forward(images, [Want(explain=5), Want(), Want(explain=BEST)])
    assert list(rows.activations) == [0, 2]
    assert np.allclose(rows.activations[0], mapped(engine, images[0], 5), atol=1e-4)
    assert np.allclose(rows.activations[2], mapped(engine, images[2], int(rows.class_ids[2, 0])), atol=1e-4)


def test_a_map_is_upright_and_not_mirrored() -> None:
    """The only bright corner of a picture is the only one of its map: the tiny network has no biases."""
    _, engine = tiny_engines()
    image = np.zeros((224, 224, 3), np.uint8)
    image[:40, -40:] = crop(size=40)
    contributions = np.abs(mapped(engine, image, BEST))
    assert contributions[0, -1] > 0
    assert not contributions[3:].any()
    assert not contributions[:, :-3].any()


REFUSED = [slow("torch", name) for name in INEXPLICABLE]
REFUSED += [slow("openvino", name) for name in ("squeezenet1_1", "vgg11", "convnext_tiny", "vit_b_32")]


@pytest.mark.parametrize(("kind", "architecture"), REFUSED)
def test_networks_without_pooling_before_one_linear_layer_are_refused(kind: str, architecture: str) -> None:
    engine = serving(kind, model_of(architecture))
    engine.load()
    assert f"the network of {architecture} does not end in global pooling and one linear layer" in engine.inexplicable
    with pytest.raises(ModelError, match="has no class activation maps"):
        engine.explaining().load()


@pytest.mark.parametrize("kind", [slow("torch"), slow("openvino")])
def test_maps_of_one_position_are_refused(kind: str) -> None:
    engine = serving(kind, replace(model_of("resnet18"), preprocessing=replace(PREPROCESSING, resize=32, crop=32)))
    engine.load()
    assert "has no class activation maps" in engine.inexplicable


class Convolutions(nn.Module):
    """Several hundred layers before the pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=16)
        self.deep = nn.Sequential(*(nn.Sequential(nn.Hardtanh(-9, 9), nn.Conv2d(8, 8, 1)) for _ in range(400)))
        self.fc = nn.Linear(8, 1000)

    def forward(self, images: Tensor) -> Any:
        maps = self.stem(images)
        return self.fc((maps + 1e-3 * self.deep(maps)).mean((2, 3)))


@pytest.mark.parametrize("kind", ["torch", slow("openvino")])
def test_a_deep_network_has_maps(kind: str) -> None:
    engine = serving(kind, replace(model_of("deep"), build=lambda: seeded(Convolutions)))
    engine.load()
    assert engine.inexplicable is None


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Model]:
    """Model folders of the seeded ResNet-18, exported in ``auto`` or in int8, without weights for torch."""

    @cache
    def export(precision: str) -> Model:
        model, path = model_of("resnet18"), tmp_path_factory.mktemp("exported") / precision
        network = to_openvino(model)
        if precision == "int8":
            network = quantize(network, np.stack([crop(seed) for seed in range(8)]).astype(np.float32))
        folder.write(model, path, weights=False, precision=precision, network=network)
        return folder.load(path)

    return export


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "tolerance"), [("auto", 1e-3), ("int8", 0.2)])
def test_maps_of_an_exported_folder(exported: Callable[[str], Model], precision: str, tolerance: float) -> None:
    engine = OpenVinoEngine(exported(precision), "int8" if precision == "int8" else "float32").explaining()
    engine.load()
    maps, logits = expected("resnet18", crop())
    assert close(mapped(engine, crop(), 7), maps[7], tolerance)
    best = int(logits.argmax())
    assert close(mapped(engine, crop(), best), maps[best], tolerance)


@pytest.mark.slow
def test_maps_in_int8_explain_the_logits_in_int8(exported: Callable[[str], Model]) -> None:
    engine = OpenVinoEngine(exported("int8"), "auto").explaining()
    engine.load()
    row = forward(engine, crop(1), replace(ALL, explain=BEST))
    best, bias = row.class_ids[0], linear(build("resnet18")).bias
    assert row.activation.mean() + bias[best].item() == pytest.approx(
        row.logits[best], abs=0.02 * float(np.ptp(row.logits))
    )
