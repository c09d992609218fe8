"""Vertex AI's requests to a container, whose paths it tells in the environment."""

from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from tests.clients.conftest import BASE64, LABELS, MODEL, PHOTO
from tests.conftest import Server

ENDPOINT = "/v1/endpoints/1234/deployedModels/5678"


@pytest.fixture(scope="module")
def container() -> Iterator[Server]:
    env = {
        "AIP_MODE": "PREDICTION",
        "AIP_STORAGE_URI": "",
        "AIP_HEALTH_ROUTE": ENDPOINT,
        "AIP_PREDICT_ROUTE": f"{ENDPOINT}:predict",
        "TOPK_API_KEYS": "some-key",
    }
    server = Server("--model", MODEL, env=env)
    yield server
    assert server.stop() == 0


def predict(container: Server, json: Any) -> httpx2.Response:
    return httpx2.post(f"{container.url}{ENDPOINT}:predict", json=json, headers={"X-API-Key": "some-key"}, timeout=30)


def test_its_health_route_needs_no_key(container: Server, counts: Any) -> None:
    with counts(container, "vertex"):
        assert httpx2.get(container.url + ENDPOINT).status_code == 200


def test_instances_are_predicted_in_order(container: Server, counts: Any) -> None:
    with counts(container, "vertex"):
        answer = predict(container, {"instances": [{"b64": BASE64}] * 3, "parameters": {"top_k": 4}})
    assert answer.headers["content-type"] == "application/json"
    assert answer.json().keys() == {"predictions"}
    assert [[entry["label"] for entry in row] for row in answer.json()["predictions"]] == [LABELS] * 3


def test_what_is_wrong_is_said(container: Server) -> None:
    refused = predict(container, {"instances": [{"b64": BASE64}, {"b64": "?"}]})
    assert (refused.status_code, refused.json()["error"][:12]) == (400, "instances[1]")
    refused = predict(container, {"instances": [{"b64": BASE64}], "parameters": {"top_k": 1001}})
    assert (refused.status_code, refused.json()["error"][:5]) == (400, "top_k")
    refused = httpx2.post(f"{container.url}{ENDPOINT}:predict", content=PHOTO)
    assert (refused.status_code, list(refused.json())) == (401, ["error"])
