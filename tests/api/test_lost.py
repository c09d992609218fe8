"""A server whose device is lost, until its process ends."""

import httpx2
import pytest

from app.errors import DeviceLost
from tests.api.conftest import served
from tests.conftest import CAT

PHOTO = CAT.read_bytes()


def test_it_refuses_everything_but_its_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    def lose(*_: object) -> None:
        raise DeviceLost("the device has failed")

    with served() as server, httpx2.Client(base_url=server.url, timeout=60) as client:
        assert client.get("/readyz").status_code == 200
        monkeypatch.setattr(server.engine, "forward", lose)
        answers = [client.post("/v1/predict", content=PHOTO), client.get("/readyz"), client.get("/livez")]
        answers += [client.post("/v1/predict", content=PHOTO), client.post("/v1/embed", content=PHOTO)]
        answers.append(client.post("/v1/predict/batch", files=[("file", PHOTO), ("file", PHOTO)]))
        for answer in answers:
            problem = answer.json()
            assert (answer.status_code, problem["code"]) == (503, "not_ready")
            assert problem["detail"] == "the device has failed"
            assert int(answer.headers["retry-after"]) >= 1
        metrics = client.get("/metrics")
        assert metrics.status_code == 200
        assert "topk_ready 0.0" in metrics.text
