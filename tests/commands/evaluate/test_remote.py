"""A running service is asked, and asked again where it wants that."""

import asyncio
from typing import Any

import pytest

from app.commands.bench.target import Target
from app.commands.evaluate.remote import Remote, RetryLimits
from app.commands.evaluate.source import TopClasses, Unreadable
from app.errors import EvaluationError
from tests.commands.evaluate.service import LABELS, Problem, Service

NO_RETRY = RetryLimits(0, 0)


def ask(service: Service, *images: bytes, limits: RetryLimits | None = None, **headers: str) -> list[Any]:
    """Meet it, then ask for each image in turn: answers, and what was raised."""

    async def all_of_them() -> list[Any]:
        remote = Remote(Target(service.url), headers, limits)
        await remote.connect()
        assert tuple(label.label for label in remote.labels) == LABELS
        async with remote.opened() as one:
            return [(await asyncio.gather(one(image), return_exceptions=True))[0] for image in images]

    return asyncio.run(all_of_them())


def test_five_classes_of_each_image_are_asked_for() -> None:
    with Service() as service:
        [answer] = ask(service, b"\x02", **{"Authorization": "Bearer k"})
    assert answer == TopClasses((2, 0, 1, 3, 4), (0.75, 0.05, 0.05, 0.05, 0.05))
    [headers] = service.headers
    assert headers["Authorization"] == "Bearer k"
    assert headers["X-Request-Timeout-Ms"] == "4321"
    assert headers["User-Agent"].startswith("topk-evaluate/")


@pytest.mark.parametrize("status", [503, 429, 504, 502])
def test_a_refusal_is_obeyed_and_asked_again(status: int) -> None:
    refusals = iter([(status, {"retry_after_ms": 10}, {}), (status, {}, {"Retry-After": "0"})])
    with Service(problem=lambda content: next(refusals, None) if content == b"\x01" else None) as service:
        [answer] = ask(service, b"\x01")
    assert answer.class_ids[0] == 1
    assert service.images == [b"\x01"] * 3


def test_refusals_for_ever_end_the_run() -> None:
    refused: Problem = (503, {"detail": "too much", "retry_after_ms": 5}, {})
    with Service(problem=lambda content: refused if content == b"\x01" else None) as service:
        [error] = ask(service, b"\x01", limits=RetryLimits(0.05, 10))
    assert isinstance(error, EvaluationError)
    assert "503 Service Unavailable: too much" in error.detail
    assert len(service.images) > 1


@pytest.mark.parametrize("status", [400, 413, 415, 422, 500])
def test_what_is_wrong_with_a_picture_is_its_own_outcome(status: int) -> None:
    problem: Problem = (status, {"code": "some_code", "detail": "some words"}, {})
    with Service(problem=lambda content: problem if content == b"\x01" else None) as service:
        first, second = ask(service, b"\x01", b"\x02")
    assert isinstance(first, Unreadable)
    assert (first.code, first.detail) == ("some_code", "some words")
    assert isinstance(second, TopClasses)


@pytest.mark.parametrize("status", [401, 403, 404, 302])
def test_what_no_other_picture_would_change_ends_the_run(status: int) -> None:
    with Service(problem=lambda content: (status, {}, {"Location": "/"}) if content == b"\x01" else None) as service:
        [error] = ask(service, b"\x01")
    assert isinstance(error, EvaluationError)
    assert str(status) in error.detail


def test_another_model_behind_the_same_url_ends_the_run() -> None:
    def change(content: bytes) -> None:
        if content == b"\x01":
            service.info["model"] = "other"

    with Service(problem=change) as service:
        [error] = ask(service, b"\x01")
    assert isinstance(error, EvaluationError)
    assert "now serves another model, other" in error.detail


def test_a_service_that_is_gone_ends_the_run() -> None:
    async def lose_it() -> None:
        with Service() as service:
            remote = Remote(Target(service.url), {}, NO_RETRY)
            await remote.connect()
        async with remote.opened() as one:
            await one(b"\x01")

    with pytest.raises(EvaluationError, match="does not respond"):
        asyncio.run(lose_it())


@pytest.mark.parametrize("info", [{"model": "x"}, {}])
def test_a_server_that_is_not_topk_is_one_plain_error(info: dict[str, Any]) -> None:
    with Service(info=info) as service, pytest.raises(EvaluationError, match="not a topk service"):
        ask(service)


def test_a_service_that_cannot_classify_a_grey_square_is_one_plain_error() -> None:
    broken: Problem = (500, {"code": "internal", "detail": "a defect"}, {})
    with Service(problem=lambda content: broken) as service, pytest.raises(EvaluationError, match="a defect"):
        ask(service)
