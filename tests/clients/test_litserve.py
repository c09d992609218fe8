"""Requests as LitServe's documentation has them, by ``requests`` as its generated client does."""

from typing import Any

import pytest
import requests

from tests.clients.conftest import BASE64, LABELS, PHOTO
from tests.conftest import Server


@pytest.mark.parametrize(
    "request_",
    [
        {"files": {"request": PHOTO}},
        {"files": {"content": PHOTO}},
        {"files": {"file": ("cat.jpg", PHOTO, "image/jpeg")}},
        {"json": {"image": BASE64}},
        {"json": {"image_bytes": BASE64}},
        {"data": PHOTO},
    ],
)
def test_an_image_is_classified(embedded_server: Server, counts: Any, request_: dict[str, Any]) -> None:
    with counts(embedded_server, "litserve"):
        answer = requests.post(f"{embedded_server.url}/predict", timeout=30, **request_)
    assert answer.status_code == 200
    assert [entry["label"] for entry in answer.json()["predictions"][:4]] == LABELS


def test_an_error_has_its_detail(embedded_server: Server) -> None:
    """Where FastAPI, which LitServe is made of, has it."""
    answer = requests.post(f"{embedded_server.url}/predict", files={"request": b"text"}, timeout=30)
    assert answer.status_code == 415
    assert "JPEG" in answer.json()["detail"]
