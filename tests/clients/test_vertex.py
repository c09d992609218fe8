"""Vertex AI's requests to a container, whose paths it tells in the environment."""

from typing import Any

import httpx2

from tests.clients.conftest import BASE64, ENDPOINT, LABELS
from tests.conftest import Server


def predict(container: Server, json: Any) -> httpx2.Response:
    return httpx2.post(f"{container.url}{ENDPOINT}:predict", json=json, timeout=30)


def test_its_health_route_is_served(vertex_container: Server, counts: Any) -> None:
    with counts(vertex_container, "vertex"):
        assert httpx2.get(vertex_container.url + ENDPOINT).status_code == 200


def test_instances_are_predicted_in_order(vertex_container: Server, counts: Any) -> None:
    with counts(vertex_container, "vertex"):
        answer = predict(vertex_container, {"instances": [{"b64": BASE64}] * 3, "parameters": {"top_k": 4}})
    assert answer.headers["content-type"] == "application/json"
    assert answer.json().keys() == {"predictions"}
    assert [[entry["label"] for entry in row] for row in answer.json()["predictions"]] == [LABELS] * 3


def test_the_error_names_what_is_wrong(vertex_container: Server) -> None:
    refused = predict(vertex_container, {"instances": [{"b64": BASE64}, {"b64": "?"}]})
    assert (refused.status_code, refused.json()["error"][:12]) == (400, "instances[1]")
    refused = predict(vertex_container, {"instances": [{"b64": BASE64}], "parameters": {"top_k": 1001}})
    assert (refused.status_code, refused.json()["error"][:5]) == (400, "top_k")
