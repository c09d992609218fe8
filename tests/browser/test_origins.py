"""A page of another origin that uploads straight from its canvas."""

import re

import pytest
from playwright.sync_api import Error, Page

from tests.browser.conftest import KEY
from tests.browser.origin import Origin
from tests.conftest import Server

pytestmark = pytest.mark.browser

UPLOAD = """async ([api, key, type]) => {
    const canvas = document.querySelector("canvas");
    canvas.getContext("2d").fillRect(10, 10, 50, 50);
    const body = await new Promise((resolve) => canvas.toBlob(resolve, type));
    const headers = {"Content-Type": type, "X-Request-ID": "from-a-canvas", "X-Request-Timeout-Ms": "9000"};
    if (key) headers["X-API-Key"] = key;
    const seen = new Promise((resolve) => {
        const observed = (list) => list.getEntries().filter(({name}) => name.includes("predict")).forEach(resolve);
        new PerformanceObserver(observed).observe({type: "resource"});
    });
    const response = await fetch(`${api}/v1/predict?top_k=2`, {method: "POST", body, headers});
    const entry = await seen;
    return {
        status: response.status,
        answer: await response.json(),
        id: response.headers.get("X-Request-ID"),
        timing: response.headers.get("Server-Timing"),
        stages: entry.serverTiming.map(({name}) => name),
        seen: entry.responseStart > 0,
    };
}"""


@pytest.mark.parametrize("kind", ["image/jpeg", "image/webp", "image/png"])
def test_a_canvas_is_uploaded_from_another_origin(
    blank: Page, origin: Origin, walled_server: Server, kind: str
) -> None:
    blank.goto(origin.url)
    got = blank.evaluate(UPLOAD, [walled_server.url, KEY, kind])
    assert (got["status"], len(got["answer"]["predictions"]), got["id"]) == (200, 2, "from-a-canvas")
    assert re.search(r"decode;dur=", got["timing"])
    assert {"upload", "decode", "queue", "inference", "total"} <= set(got["stages"])  # allowed by Timing-Allow-Origin
    assert got["seen"]


def test_a_refusal_can_be_read_from_another_origin(blank: Page, origin: Origin, walled_server: Server) -> None:
    blank.goto(origin.url)
    got = blank.evaluate(UPLOAD, [walled_server.url, "", "image/jpeg"])
    assert (got["status"], got["answer"]["code"], got["id"]) == (401, "unauthorized", "from-a-canvas")


def test_an_origin_that_is_not_named_is_kept_out(blank: Page, origin: Origin, embedded_server: Server) -> None:
    blank.goto(origin.url)
    with pytest.raises(Error, match="Failed to fetch"):
        blank.evaluate(UPLOAD, [embedded_server.url, "", "image/jpeg"])
