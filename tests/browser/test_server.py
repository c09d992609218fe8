"""The page of a server that is full, gone, starting, locked or under a prefix."""

import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import KEY, expect_cat, keep, opened, unlocked
from tests.conftest import CAT, Server

pytestmark = pytest.mark.browser


@contextmanager
def _full(server: Server) -> Iterator[None]:
    """The server holds an upload that does not end, and has no memory for another."""
    head = f"POST /vision/v1/predict HTTP/1.1\r\nHost: x\r\nX-API-Key: {KEY}\r\nContent-Length: 89000\r\n\r\n"
    with socket.create_connection(("127.0.0.1", urlsplit(server.url).port)) as held:
        held.sendall(head.encode() + bytes(88_000))
        assert any(server.metric("topk_inflight_bytes") >= 88_000 for _ in range(1000))
        yield


def test_an_overloaded_server_is_reported_and_the_request_retried(blank: Page, walled_server: Server) -> None:
    page = unlocked(blank, walled_server)
    with _full(walled_server):
        page.set_input_files("#file", CAT)
        expect(page.locator("#problem-title")).to_have_text("The server is busy")
        expect(page.locator("#problem-detail")).to_have_text(re.compile(r"Retrying in \d+ s\.$"))
        expect(page.locator("#problem-code")).to_have_text("503 overloaded")
        keep(page, "overloaded")
    expect_cat(page)
    expect(page.locator("#problem")).to_be_hidden()


def test_a_server_that_is_gone_is_waited_for(blank: Page) -> None:
    server = Server("--model", "efficientnet_lite0")
    address, port = server.url, server.port
    page = opened(blank, address)
    assert server.stop() == 0
    page.set_input_files("#file", CAT)
    expect(page.locator("#served")).to_have_attribute("data-state", "unreachable")
    expect(page.locator("#problem-title")).to_have_text("No answer")
    expect(page.locator("#problem-detail")).to_contain_text("The photo is sent again when the server is ready.")
    keep(page, "gone")
    back = Server("--model", "efficientnet_lite0", "--port", str(port))
    try:
        expect_cat(page)
        expect(page.locator("#served")).to_have_attribute("data-state", "ready")
    finally:
        assert back.stop() == 0


def test_a_model_that_loads_is_waited_for(blank: Page, embedded_server: Server) -> None:
    problem = {"code": "not_ready", "detail": "the model is being loaded"}
    starting = True

    blank.route(
        "**/readyz",
        lambda route: (
            route.fulfill(status=503, content_type="application/problem+json", json=problem)
            if starting
            else route.continue_()
        ),
    )
    blank.goto(f"{embedded_server.url}/")
    expect(blank.locator("#served")).to_have_text("The model is being loaded.")
    blank.set_input_files("#file", CAT)
    expect(blank.locator("#result")).to_have_attribute("aria-busy", "true")
    starting = False
    expect_cat(blank)


def test_a_lost_connection_is_tried_again(page: Page) -> None:
    page.route("**/v1/predict*", lambda route: route.abort("connectionreset"), times=1)
    page.set_input_files("#file", CAT)
    expect_cat(page)


def test_a_request_that_is_always_lost_is_given_up(page: Page) -> None:
    page.route("**/v1/predict*", lambda route: route.abort("connectionreset"), times=5)
    page.set_input_files("#file", CAT)
    expect(page.locator("#problem-title")).to_have_text("No answer")
    page.get_by_role("button", name="Try again").click()
    expect_cat(page)


def test_a_key_is_asked_for_until_it_is_right(blank: Page, walled_server: Server) -> None:
    blank.goto(f"{walled_server.url}/")
    expect(blank.locator("#key-hint")).to_have_text("The key is stored until you close this tab.")
    blank.get_by_label("API key").fill("wrong")
    blank.keyboard.press("Enter")
    expect(blank.locator("#key-hint")).to_have_text("The API key is not valid.")
    expect(blank.locator("#key")).to_be_focused()
    keep(blank, "key")
    blank.get_by_label("API key").fill(KEY)
    blank.keyboard.press("Enter")
    expect(blank.locator("#key-form")).to_be_hidden()
    blank.set_input_files("#file", CAT)
    expect_cat(blank)


def test_a_key_is_never_shown_and_can_be_forgotten(blank: Page, walled_server: Server) -> None:
    page = unlocked(blank, walled_server)
    for tab in ("curl", "JavaScript", "Python"):
        page.get_by_role("tab", name=tab).click()
        expect(page.locator("#code")).to_contain_text("API_KEY")
    assert KEY not in page.content()
    assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
    page.reload()
    expect(page.locator("#served")).to_have_attribute("data-state", "ready")
    page.click("#forget")
    expect(page.get_by_label("API key")).to_be_visible()
    assert page.evaluate("sessionStorage.length") == 0


def test_everything_is_asked_for_under_the_prefix(blank: Page, walled_server: Server) -> None:
    outside: list[str] = []
    prefix = f"{walled_server.url}/"
    blank.on("request", lambda asked: None if asked.url.startswith((prefix, "blob:")) else outside.append(asked.url))
    page = unlocked(blank, walled_server)
    page.click("#sample")
    expect_cat(page)
    expect(page.locator("#code")).to_contain_text(f"{prefix}v1/predict")
    assert outside == []
