"""Rate limits by key, by address, and by image."""

import asyncio

import httpx2
import pytest
from pydantic import ValidationError

from app.api.ratelimit import RateLimit
from app.errors import RateLimited
from app.settings import Settings
from tests.api.conftest import served
from tests.conftest import CAT

PHOTO = CAT.read_bytes()


def files(n: int) -> list[tuple[str, tuple[str, bytes]]]:
    return [("file", (f"{i}.jpg", PHOTO)) for i in range(n)]


def test_a_key_has_its_own_limit_and_is_told_when_to_come_again() -> None:
    with served(api_keys="mine,yours", rate_limit="2/hour") as server:
        mine, yours = (httpx2.Client(base_url=server.url, headers={"X-API-Key": key}) for key in ("mine", "yours"))
        with mine, yours:
            assert [mine.post("/v1/predict", content=PHOTO).status_code for _ in range(3)] == [200, 200, 429]
            limited = mine.post("/v1/predict", content=PHOTO)
            assert limited.json()["code"] == "rate_limited"
            assert 3500 < int(limited.headers["retry-after"]) <= 3600
            assert 3_500_000 < limited.json()["retry_after_ms"] <= 3_600_000
            assert yours.post("/v1/predict", content=PHOTO).status_code == 200
            assert mine.get("/v1/info").status_code == 200  # asking costs nothing
            wrong = httpx2.post(f"{server.url}/v1/predict", content=PHOTO, headers={"X-API-Key": "wrong"})
            assert wrong.status_code == 401


def test_a_batch_costs_its_images() -> None:
    with served(rate_limit="4/hour") as server, httpx2.Client(base_url=server.url) as client:
        assert client.post("/v1/predict/batch", files=files(3)).status_code == 200
        assert client.post("/v1/predict/batch", files=files(3)).status_code == 429


def test_what_is_over_the_limit_even_alone_is_not_told_to_come_again() -> None:
    limit = RateLimit(Settings(_env_file=None, rate_limit="4/hour"))
    with pytest.raises(RateLimited, match="5 images") as refused:
        asyncio.run(limit.charge("somebody", 5))
    assert refused.value.headers == {}


def test_without_keys_an_address_is_a_caller_and_only_a_trusted_proxy_tells_another() -> None:
    with served(rate_limit="1/hour", trusted_proxies="127.0.0.1") as server:
        for address in ("192.0.2.1", "192.0.2.2"):
            asked = {"content": PHOTO, "headers": {"X-Forwarded-For": address}}
            assert [httpx2.post(f"{server.url}/v1/predict", **asked).status_code for _ in range(2)] == [200, 429]
    with served(rate_limit="1/hour") as server:
        statuses = [
            httpx2.post(f"{server.url}/v1/predict", content=PHOTO, headers={"X-Forwarded-For": address}).status_code
            for address in ("192.0.2.1", "192.0.2.2")
        ]
        assert statuses == [200, 429]


@pytest.mark.parametrize(
    "setting", [{"rate_limit": "fast"}, {"rate_limit": "-1/second"}, {"trusted_proxies": "nginx"}], ids=str
)
def test_what_is_no_rate_or_network_is_refused_at_start(setting: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        Settings(_env_file=None, **setting)
