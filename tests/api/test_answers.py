"""Large answers and documents: their size is known before, and they are worked on beside the event loop."""

import asyncio
import base64
import threading
from typing import Any

import httpx2
import pytest
from starlette.requests import Request

from app.api.answers import build, check_size
from app.api.documents import Body, Desk, loads
from app.api.exchange import Exchange
from app.engine import Want
from app.engine.base import BEST
from app.errors import PayloadTooLarge
from tests.api.conftest import InProcess
from tests.conftest import CAT

PHOTO = CAT.read_bytes()
BASE64 = base64.b64encode(PHOTO).decode()


def infer(server: InProcess, outputs: list[dict[str, Any]]) -> httpx2.Response:
    document = {
        "inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": [BASE64]}],
        "outputs": outputs,
    }
    return httpx2.post(f"{server.url}/v2/models/efficientnet_lite0/infer", json=document)


ALL = [
    {"name": name, "parameters": parameters}
    for name in ("scores", "logits")
    for parameters in ({}, {"classification": 1000})
]


@pytest.mark.slow
def test_an_answer_is_no_larger_than_foreseen(app_server: InProcess) -> None:
    classifier = app_server.app.state.service.classifier
    whole = Want(k=1000, logits=True, probabilities=True)
    for answer, want in (
        (infer(app_server, ALL), whole),
        (httpx2.post(f"{app_server.url}/v1/predict?top_k=1000", content=PHOTO), Want(k=1000)),
        (httpx2.post(f"{app_server.url}/v1/embed", content=PHOTO), Want(features=True)),
    ):
        assert answer.status_code == 200
        foreseen = check_size(classifier, want, 1, 32)
        assert foreseen / 3 < len(answer.content) < foreseen


def test_all_outputs_of_as_many_images_as_there_may_be_fit(app_server: InProcess) -> None:
    whole = Want(k=1000, logits=True, probabilities=True)
    for most in (1, 32, 1000):
        assert check_size(app_server.app.state.service.classifier, whole, most, most) > 100_000 * most


def test_an_explanation_is_no_larger_than_foreseen(app_server: InProcess) -> None:
    classifier = app_server.app.state.service.classifier
    url = f"{app_server.url}/v1/predict?explain=true&explain_png=true"
    foreseen = check_size(classifier, Want(k=5, explain=BEST), 1, 32)
    assert 8000 < foreseen - check_size(classifier, Want(k=5), 1, 32) < 9000
    assert len(httpx2.post(url, content=PHOTO, timeout=60).content) < foreseen


def test_an_answer_that_would_be_larger_is_refused_with_what_to_do(app_server: InProcess) -> None:
    with pytest.raises(PayloadTooLarge, match="request fewer images, classes or outputs"):
        check_size(app_server.app.state.service.classifier, Want(k=10**9, features=True), 150, 32)


@pytest.mark.parametrize(("size", "beside"), [(1000, False), (10**6, True)])
def test_a_large_answer_is_built_beside_the_event_loop(size: int, beside: bool) -> None:
    scope: dict[str, Any] = {"type": "http"}
    Exchange("id", response_bytes=size).attach(scope)

    async def thread() -> threading.Thread:
        return await build(Request(scope), threading.current_thread)

    assert (asyncio.run(thread()) is not threading.current_thread()) == beside


@pytest.mark.parametrize(("size", "beside"), [(1000, False), (100_000, True), (2_000_000, True)])
def test_a_large_document_is_parsed_beside_the_event_loop(size: int, beside: bool) -> None:
    async def thread() -> threading.Thread:
        return await Desk().parse(lambda _: threading.current_thread(), bytes(size))

    assert (asyncio.run(thread()) is not threading.current_thread()) == beside


def test_large_documents_are_parsed_one_at_a_time() -> None:
    """Each takes some ten milliseconds, so that two at once would meet."""
    parsing = threading.Lock()
    document = str(list(range(400_000))).encode()

    def parse(content: Body) -> int:
        assert parsing.acquire(blocking=False)
        try:
            return len(loads(content, 400_000))
        finally:
            parsing.release()

    async def several() -> list[int]:
        desk = Desk()
        return await asyncio.gather(*(desk.parse(parse, document) for _ in range(6)))

    assert asyncio.run(several()) == [400_000] * 6
