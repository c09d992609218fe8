"""Class activation maps on a GPU. A machine that runs only these tests needs no OpenVINO."""

import pytest

from app.engine.torch import TorchEngine
from tests.engine.maps import MODULES, close, crop, expected, mapped, model_of


@pytest.mark.gpu
@pytest.mark.parametrize("architecture", MODULES)
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-3), ("bfloat16", 0.1), ("float16", 0.02)])
def test_maps_on_a_gpu(architecture: str, precision: str, tolerance: float) -> None:
    engine, image = TorchEngine(model_of(architecture), "cuda", precision).explaining(), crop()
    engine.load()
    maps, logits = expected(architecture, image)
    assert close(mapped(engine, image, 7), maps[7], tolerance)
    assert close(mapped(engine, image, int(logits.argmax())), maps[logits.argmax()], tolerance)
