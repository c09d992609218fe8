"""The metrics of each answer, through a real server."""

from pathlib import Path

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests import tiny
from tests.conftest import CAT, Server
from tests.workers.conftest import Service

PHOTO = CAT.read_bytes()


def metrics(server: Server) -> dict[str, float]:
    """Counts and sums by name; a counter with labels is summed."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(httpx2.get(f"{server.url}/metrics").text):
        for sample in family.samples:
            found[sample.name] = found.get(sample.name, 0.0) + sample.value
    return found


@pytest.mark.slow
def test_each_classified_image_is_observed_once(tmp_path: Path) -> None:
    env = {"TOPK_SAMPLE_DIR": str(tmp_path / "samples"), "TOPK_SAMPLE_RATE": "1"}
    server = Server(*tiny.calibrated(), env=env)
    url = server.url
    httpx2.post(f"{url}/v1/predict?coverage=0.9", content=PHOTO)
    httpx2.post(f"{url}/v1/embed", content=PHOTO)
    httpx2.post(f"{url}/v1/predict/batch", files=[("file", PHOTO), ("file", b"no image"), ("file", PHOTO)])
    raw = {"Content-Type": "application/octet-stream"}
    httpx2.post(f"{url}/v2/models/tiny-calibrated/infer", content=PHOTO, headers=raw)
    found = metrics(server)
    assert found["topk_top_score_count"] == found["topk_typicality_count"] == 5
    assert found["topk_predicted_group_total"] == 5
    assert found["topk_set_size_count"] == 1
    assert server.stop() == 0
    assert len(list((tmp_path / "samples").rglob("*.jpg"))) == 1


@pytest.mark.slow
def test_several_processes_are_observed_and_share_a_folder(tmp_path: Path) -> None:
    env = {"TOPK_SAMPLE_DIR": str(tmp_path / "samples"), "TOPK_SAMPLE_RATE": "1"}
    service = Service(*tiny.calibrated(), env=env)
    assert {service.predict().status_code for _ in range(20)} == {200}
    found = metrics(service)
    assert found["topk_top_score_count"] == found["topk_typicality_count"] == 20
    assert found["topk_predicted_group_total"] == found["topk_samples_total"] == 20
    assert service.stop() == 0
    assert len(list((tmp_path / "samples").rglob("*.jpg"))) == 1


@pytest.mark.slow
def test_samples_need_a_folder_that_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    server = Server(*tiny.model(), env={"TOPK_SAMPLE_DIR": str(tmp_path / "file")})
    assert server.process.wait(60) == 1
    server.stop()
    assert "TOPK_SAMPLE_DIR" in str(server.log)
