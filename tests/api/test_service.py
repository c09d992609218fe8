"""What all routes share: the estimate of a start, the probes' log lines, refused preflight requests."""

from collections.abc import Iterator

import httpx2
import pytest
from fastapi.testclient import TestClient
from structlog.testing import capture_logs
from structlog.typing import EventDict

from app.api.service import StartEstimate
from app.main import create_app
from app.readiness import Readiness
from app.settings import Settings
from tests.api.conftest import InProcess


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_start_is_expected_to_take_three_seconds_and_then_as_long_again_as_it_has_taken() -> None:
    clock = Clock()
    start = StartEstimate(clock)
    expected = []
    for elapsed in (0, 2, 4, 10, 40, 100):
        clock.now = 1000.0 + elapsed
        expected.append(start.seconds())
    assert expected == [3, 2, 4, 10, 40, 60]


def test_another_start_is_estimated_anew() -> None:
    clock = Clock()
    start = StartEstimate(clock)
    clock.now += 100
    assert start.seconds() == 60
    clock.now += 3600
    assert start.seconds() == 3


def test_a_client_that_honours_retry_after_outlasts_a_start_of_a_minute() -> None:
    clock = Clock()
    start = StartEstimate(clock)
    tries = 0
    while clock.now < 1060:
        clock.now += start.seconds()
        tries += 1
    assert tries <= 6


@pytest.mark.parametrize("path", ["/readyz", "/v1/predict", "/v1/info"])
def test_while_loading_the_expected_time_is_in_the_response(path: str) -> None:
    with TestClient(create_app(Settings(_env_file=None), Readiness(), lambda *_: None)) as client:
        answer = client.request("POST" if path == "/v1/predict" else "GET", path, content=b"x")
        assert (answer.status_code, answer.json()["code"]) == (503, "not_ready")
        assert answer.headers["retry-after"] == "3"
        assert 2000 < answer.json()["retry_after_ms"] <= 3000


@pytest.fixture
def log() -> Iterator[list[EventDict]]:
    """Everything that is logged, also at debug level."""
    with capture_logs() as entries:
        yield entries


def test_probes_are_logged_at_debug_level(log: list[EventDict]) -> None:
    settings = Settings(_env_file=None, aip_health_route="/aip/health")
    with TestClient(create_app(settings, Readiness(), lambda *_: None)) as client:
        for path in ("/livez", "/readyz", "/metrics", "/ping", "/v2/models/resnet50/ready", "/aip/health", "/v1/info"):
            client.get(path)
            client.head(path)
    lines = {entry["path"]: entry["log_level"] for entry in log if entry["event"] == "request"}
    assert lines.pop("/v1/info") == "info"
    assert len(lines) == 6
    assert set(lines.values()) == {"debug"}


PREFLIGHT = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}


@pytest.mark.parametrize(
    ("origins", "headers", "reason"),
    [
        ("https://page.example", {}, "Disallowed CORS origin"),
        ("https://evil.example", {"Access-Control-Request-Method": "PATCH"}, "Disallowed CORS method"),
        ("", {}, "TOPK_CORS_ORIGINS is not set"),
    ],
)
def test_a_refused_preflight_is_logged_with_its_origin_and_the_reason(
    log: list[EventDict], origins: str, headers: dict[str, str], reason: str
) -> None:
    settings = Settings(_env_file=None, **({"cors_origins": origins} if origins else {}))
    with TestClient(create_app(settings, Readiness(), lambda *_: None)) as client:
        assert client.options("/v1/predict", headers=PREFLIGHT | headers).status_code in (400, 405)
    [line] = [entry for entry in log if entry["event"] == "CORS preflight refused"]
    assert (line["origin"], line["reason"], line["log_level"]) == ("https://evil.example", reason, "warning")


def test_an_accepted_preflight_is_not_logged_as_refused(log: list[EventDict]) -> None:
    settings = Settings(_env_file=None, cors_origins="https://evil.example")
    with TestClient(create_app(settings, Readiness(), lambda *_: None)) as client:
        assert client.options("/v1/predict", headers=PREFLIGHT).status_code == 200
    assert "CORS preflight refused" not in [entry["event"] for entry in log]


def test_the_documentation_begins_with_classification(app_server: InProcess) -> None:
    document = httpx2.get(f"{app_server.url}/openapi.json").json()
    tags = [tag["name"] for tag in document["tags"]]
    assert tags[:4] == ["classify", "embed", "wordnet", "info"]
    assert tags.index("health") < tags.index("v2")
    assert next(iter(document["paths"])) == "/v1/predict"
    places = [
        min(tags.index(operation["tags"][0]) for operation in operations.values())
        for operations in document["paths"].values()
    ]
    assert places == sorted(places)
    assert all(tag["description"] for tag in document["tags"])
