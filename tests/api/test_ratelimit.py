"""Rate limits by key, by address, and by image."""

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


def test_a_key_has_its_own_limit_and_retry_after() -> None:
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


def test_a_batch_that_is_refused_costs_one_image() -> None:
    with served(rate_limit="4/hour") as server, httpx2.Client(base_url=server.url) as client:
        too_many = client.post("/v1/predict/batch", files=files(5))
        assert (too_many.status_code, "retry-after" in too_many.headers) == (429, False)
        assert too_many.json()["detail"].startswith("the request has 5 images, more than the rate limit of 4/hour")
        assert client.post("/v1/predict/batch", files=files(2)).status_code == 200
        later = client.post("/v1/predict/batch", files=files(3))
        assert (later.status_code, 3500 < int(later.headers["retry-after"]) <= 3600) == (429, True)
        assert client.post("/v1/predict", content=PHOTO).status_code == 429


def test_batches_above_the_limit_are_read_only_as_often_as_uploads() -> None:
    with served(rate_limit="3/hour") as server, httpx2.Client(base_url=server.url) as client:
        refused = [client.post("/v1/predict/batch", files=files(4)).json()["detail"] for _ in range(5)]
        assert [detail.startswith("the request has 4 images") for detail in refused] == [True] * 3 + [False] * 2
        assert client.post("/v1/predict", content=PHOTO).status_code == 429


def test_what_is_no_upload_costs_nothing_and_one_that_comes_to_nothing_costs_one() -> None:
    with served(rate_limit="1/hour") as server, httpx2.Client(base_url=server.url) as client:
        assert client.post("/v1/predict?top_k=0", content=PHOTO).status_code == 400
        assert client.post("/v1/predict", json={"image": 1}).status_code == 400
        assert client.post("/v1/predict", content=PHOTO).status_code == 429


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def limited(rate: str, **settings: object) -> tuple[RateLimit, Clock]:
    clock = Clock()
    return RateLimit(Settings(_env_file=None, rate_limit=rate, **settings), clock), clock


def test_a_request_larger_than_the_limit_gets_no_retry_after() -> None:
    limit, _ = limited("4/hour")
    with pytest.raises(RateLimited, match="5 images") as refused:
        limit.charge("somebody", 5)
    assert refused.value.headers == {}


def test_a_batch_gets_the_time_when_all_of_it_fits() -> None:
    limit, clock = limited("4/minute")
    for images in (1, 2, 1):
        limit.charge("somebody", images)
        clock.now += 10
    for images, seconds in ((1, 30), (2, 40), (3, 40), (4, 50)):
        with pytest.raises(RateLimited, match="4/minute") as refused:
            limit.charge("somebody", images)
        assert refused.value.retry_after_s == seconds
    clock.now += 40
    limit.charge("somebody", 3)


def test_only_the_charge_that_is_given_back_counts_no_more() -> None:
    limit, clock = limited("2/minute")
    slow = limit.charge("somebody", 1)
    clock.now += 30
    limit.charge("somebody", 1)
    limit.give_back(slow)
    limit.give_back(slow)
    clock.now += 30
    limit.charge("somebody", 1)  # the later one counts on
    with pytest.raises(RateLimited):
        limit.charge("somebody", 1)


def test_a_charge_that_replaces_another_counts_alone() -> None:
    limit, _ = limited("4/minute")
    first = limit.charge("somebody", 1)
    limit.charge("somebody", 4, instead=first)
    with pytest.raises(RateLimited):
        limit.charge("somebody", 1)


def test_a_refused_replacement_leaves_the_charge() -> None:
    limit, clock = limited("4/minute")
    limit.charge("somebody", 2)
    first = limit.charge("somebody", 1)
    with pytest.raises(RateLimited):
        limit.charge("somebody", 3, instead=first)
    limit.charge("somebody", 1)
    with pytest.raises(RateLimited):
        limit.charge("somebody", 1)
    clock.now += 60
    limit.charge("somebody", 4, instead=first)  # which counts no more


def test_callers_are_forgotten_once_nothing_of_theirs_counts() -> None:
    limit, clock = limited("2/second")
    for number in range(100):
        limit.give_back(limit.charge(str(number), 1))
    clock.now += 1
    limit.charge("somebody", 1)
    assert list(limit._windows) == ["somebody"]


def test_each_of_several_processes_grants_all_that_was_set() -> None:
    limit, _ = limited("8/minute", workers=4)
    limit.charge("somebody", 8)
    with pytest.raises(RateLimited, match="8/minute"):
        limit.charge("somebody", 1)


def test_without_keys_an_address_is_a_caller_and_only_a_trusted_proxy_names_another() -> None:
    with served(rate_limit="1/hour", trusted_proxies="127.0.0.1") as server:
        for address in ("192.0.2.1", "192.0.2.2", "[2001:db8::1]:4711", "2001:db8:0:1::1"):
            asked = {"content": PHOTO, "headers": {"X-Forwarded-For": address}}
            assert [httpx2.post(f"{server.url}/v1/predict", **asked).status_code for _ in range(2)] == [200, 429]
    with served(rate_limit="1/hour") as server:
        statuses = [
            httpx2.post(f"{server.url}/v1/predict", content=PHOTO, headers={"X-Forwarded-For": address}).status_code
            for address in ("192.0.2.1", "192.0.2.2")
        ]
        assert statuses == [200, 429]


@pytest.mark.parametrize(
    "setting",
    [
        *(
            {"rate_limit": rate}
            for rate in ("fast", "-1/second", "0/second", "1/0second", "2/minute,1/second", "1/week")
        ),
        {"trusted_proxies": "nginx"},
    ],
    ids=str,
)
def test_what_is_no_rate_or_network_is_refused_at_start(setting: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        Settings(_env_file=None, **setting)


def test_a_network_of_ipv6_is_one_caller_however_it_is_written() -> None:
    same = ("2001:db8::1", "2001:db8::2:3", "2001:0DB8:0:0:ffff::", "[2001:db8::4]:80", "192.0.2.9, 2001:db8::5")
    with served(rate_limit="1/hour", trusted_proxies="127.0.0.1") as server:
        statuses = [
            httpx2.post(f"{server.url}/v1/predict", content=PHOTO, headers={"X-Forwarded-For": address}).status_code
            for address in same
        ]
    assert statuses == [200, 429, 429, 429, 429]
