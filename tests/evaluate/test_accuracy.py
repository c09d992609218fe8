"""Real weights on real photographs."""

import pytest
from rich.console import Console

from app.evaluate.evaluation import Asked, evaluated
from app.evaluate.progress import Live
from app.settings import Settings
from tests.conftest import PHOTOGRAPHS, RESNET50

pytestmark = pytest.mark.shared


def test_resnet50_in_float32_is_as_good_as_it_is_known_to_be() -> None:
    settings = Settings(
        _env_file=None, model="resnet50", weights=RESNET50, engine="torch", precision="float32", fast_decode=False
    )
    with evaluated(Asked(PHOTOGRAPHS[0].parents[1]), settings, Live(Console(stderr=True))) as found:
        metrics = found.metrics
    assert metrics.n == 200
    assert metrics.top1 == pytest.approx(0.85, abs=0.005)
    assert metrics.top5 == pytest.approx(0.975, abs=0.005)
    shown = {level.label: level.accuracy for level in metrics.levels if level.indent is not None}
    assert shown["animal"] >= shown["dog"] > metrics.top1
