"""Drift by real metrics: a stream of photographs, then noise and grey cards, watched by a real Prometheus."""

import asyncio
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import numpy as np
import pytest
from PIL import Image

from app.calibration import Calibration, stored
from app.calibration.conformal import Regularisation
from app.classifier import Classifier
from app.commands import inference
from app.engine import Want
from app.models import cache, folder
from app.settings import Settings
from tests.conftest import Server, convert_embedded
from tests.deploy.manifests import document
from tests.production.photographs import jpeg, photograph
from tests.production.test_alerts import RULES
from tests.production.test_dashboard import Prometheus, scraping

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("prometheus"), reason="no prometheus is installed"),
]

IMAGES = 150  # in each part of the stream
[EXPRESSION] = [
    rule["expr"] for group in document(RULES)["groups"] for rule in group["rules"] if rule["alert"] == "TopkDrift"
]


def unlike(seed: int) -> bytes:
    """Noise or a grey card."""
    noise = np.random.default_rng(seed)
    if seed % 2:
        return jpeg(Image.fromarray(noise.integers(0, 256, (300, 400, 3), np.uint8)))
    return jpeg(Image.new("RGB", (400, 300), (int(noise.integers(0, 256)),) * 3))


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model, calibrated on such photographs."""
    convert_embedded()
    settings = Settings(_env_file=None, model="efficientnet_lite0", precision="float32")
    source = cache.converted("efficientnet_lite0", None, settings.cache_dir).openvino
    assert source
    target = Path(shutil.copytree(source.parent, tmp_path_factory.mktemp("drift") / "model"))
    classifier = inference.load(settings)
    energies = np.sort(asyncio.run(measured(classifier)))
    classifier.close()
    scores = np.sort(np.random.default_rng(0).uniform(0.3, 1.3, len(energies)))
    made = Calibration("2026-11-28T09:30:00+00:00", 1.0, Regularisation(0.1, 1), scores, energies)
    stored.write(target, folder.identity(target), {"float32": made})
    return target


async def measured(classifier: Classifier) -> list[float]:
    async with asyncio.TaskGroup() as group:
        work = [
            group.create_task(inference.classify(classifier, photograph(seed), Want())) for seed in range(1000, 1300)
        ]
    return [task.result().row.energy for task in work]


@pytest.fixture
def watched(calibrated: Path, tmp_path: Path) -> Iterator[tuple[Server, Prometheus]]:
    server = Server("--model", str(calibrated), "--precision", "float32")
    prometheus = Prometheus(scraping([server.port], tmp_path / "prometheus.yml"), tmp_path / "data")
    yield server, prometheus
    prometheus.stop()
    assert server.stop() == 0


def test_a_stream_that_changes_is_above_the_alert_s_limit(watched: tuple[Server, Prometheus]) -> None:
    server, prometheus = watched
    shares = [share_below_5_percent(server, prometheus, images) for images in (photograph, unlike)]
    assert shares[0] < 0.15 < shares[1]


def share_below_5_percent(server: Server, prometheus: Prometheus, image: Callable[[int], bytes]) -> float:
    """The left side of the alert's comparison, over the time of a part of the stream."""
    wait_for_scrape(prometheus, server)
    began = time.time()
    with httpx2.Client(base_url=server.url, timeout=60) as client:
        for seed in range(IMAGES):
            assert client.post("/v1/predict", content=image(seed)).status_code == 200
    wait_for_scrape(prometheus, server)
    share = EXPRESSION.split(">")[0]
    seconds = round(time.time() - began) + 1
    [found] = prometheus.query(re.sub(r"\[10m\]", f"[{seconds}s]", share))
    return float(found["value"][1])


def wait_for_scrape(prometheus: Prometheus, server: Server) -> None:
    """Until Prometheus has seen all images that were classified."""
    while True:
        seen = prometheus.query('topk_images_total{outcome="accepted"}')
        if seen and float(seen[0]["value"][1]) == server.metric("topk_images_total", outcome="accepted"):
            return
