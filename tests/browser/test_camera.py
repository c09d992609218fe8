"""The live camera: Chromium's, which shows the cat."""

import re
from itertools import pairwise

import pytest
from playwright.sync_api import Page, Request, Route, expect

from tests.browser.conftest import INSECURE, Launch, expect_cat, keep, new_page, opened
from tests.conftest import CAT, Server

pytestmark = pytest.mark.browser

RATE = re.compile(r"^[\d.]+ frames/s$")
KEEP_SENT = """(() => {
    const {append} = FormData.prototype;
    FormData.prototype.append = function (...given) { window.sent = given[1]; return append.apply(this, given); };
})()"""
SENT = "createImageBitmap(window.sent).then(({width, height}) => [window.sent.type, width, height])"
FRAMES_LATER = """new Promise((resolve) => {
    let frames = 30;
    const next = () => (frames-- ? requestAnimationFrame(next) : resolve());
    next();
})"""
HIDE = """(hidden) => {
    Object.defineProperty(document, "hidden", {value: hidden, configurable: true});
    document.dispatchEvent(new Event("visibilitychange"));
}"""
TRACK = "document.querySelector('#video').srcObject?.getTracks()[0].readyState ?? 'none'"
DEVICE = "document.querySelector('#video').srcObject?.getTracks()[0].getSettings().deviceId"
SIMULATED = """async ([round_trip, seconds, wait]) => {
    const {Pace} = await import("/web/pace.js");
    const pace = new Pace();
    const sent = [];
    for (let now = 0, last = -1e9; now < seconds * 1000; now = Math.max(now + round_trip, pace.due(last))) {
        last = now;
        sent.push(now);
        if (wait !== null) pace.refused(wait, now);
        else pace.answered(round_trip);
    }
    return sent;
}"""


def _live(page: Page) -> Page:
    page.click("#camera")
    expect(page.locator("#rate")).to_have_text(RATE)
    return page


def test_the_camera_is_classified_live(page: Page) -> None:
    expect_cat(_live(page))
    expect(page.locator("#timing")).to_be_visible()
    keep(page, "camera")


def test_frames_are_as_small_as_the_model_needs_them(blank: Page, embedded_server: Server) -> None:
    blank.add_init_script(KEEP_SENT)
    _live(opened(blank, embedded_server.url))
    assert blank.evaluate(SENT) == ["image/jpeg", 341, 256]


def test_one_frame_is_under_way_at_a_time(page: Page) -> None:
    under_way, most, answered = 0, 0, 0

    def begun(request: Request) -> None:
        nonlocal under_way, most
        if request.method == "POST":
            under_way += 1
            most = max(most, under_way)

    def over(request: Request) -> None:
        nonlocal under_way, answered
        if request.method == "POST":
            under_way -= 1
            answered += 1

    page.on("request", begun)
    page.on("requestfinished", over)
    _live(page)
    for _ in range(5):
        page.wait_for_event("requestfinished")
    assert answered >= 5
    assert most == 1


def test_a_picture_is_taken_at_the_cameras_own_size(page: Page) -> None:
    _live(page).click("#picture")
    expect(page.locator("#caption")).to_have_text(re.compile(r"^camera-[\d-]+\.jpg, 640 . 480 pixels"))
    expect_cat(page)
    expect(page.locator("#live")).to_be_hidden()
    assert page.evaluate(TRACK) == "none"


def test_the_camera_stops_and_nothing_more_is_sent(page: Page) -> None:
    track = _live(page).evaluate_handle("document.querySelector('#video').srcObject.getTracks()[0]")
    page.click("#stop")
    expect(page.locator("#camera")).to_be_focused()
    assert track.evaluate("track => track.readyState") == "ended"
    sent: list[Request] = []
    page.on("request", lambda request: sent.append(request))
    page.evaluate(FRAMES_LATER)
    assert [request.url for request in sent if request.method == "POST"] == []


def test_a_hidden_page_watches_nobody(page: Page) -> None:
    track = _live(page).evaluate_handle("document.querySelector('#video').srcObject.getTracks()[0]")
    page.evaluate(HIDE, True)
    assert track.evaluate("track => track.readyState") == "ended"
    assert page.evaluate(TRACK) == "none"
    with page.expect_response("**/v1/predict*"):
        page.evaluate(HIDE, False)
    assert page.evaluate(TRACK) == "live"


def test_a_busy_server_is_asked_less(page: Page) -> None:
    """It refuses one frame, which is said; then all is well again."""

    def refuse(route: Route) -> None:
        route.fulfill(
            status=503,
            content_type="application/problem+json",
            json={"code": "overloaded", "detail": "busy", "retry_after_ms": 700},
        )

    page.route("**/v1/predict*", refuse, times=1)
    page.click("#camera")
    expect(page.locator("#rate")).to_have_text("The server is busy…")
    expect_cat(page)
    expect(page.locator("#rate")).to_have_text(RATE)


def test_the_rate_rises_to_what_the_server_can_follow(page: Page) -> None:
    sent = page.evaluate(SIMULATED, [100, 10, None])
    gaps = [b - a for a, b in pairwise(sent[-20:])]
    assert min(gaps) == pytest.approx(111, abs=1)  # nine frames a second at a round trip of 100 ms, and steady
    assert max(gaps) == pytest.approx(111, abs=1)


def test_the_rate_halves_with_every_refusal(page: Page) -> None:
    sent = page.evaluate(SIMULATED, [10, 8, 0])
    assert [b - a for a, b in pairwise(sent)] == [500, 1000, 2000, 2000, 2000]


def test_no_frame_is_sent_before_the_server_wants_one(page: Page) -> None:
    sent = page.evaluate(SIMULATED, [10, 20, 5000])
    assert [b - a for a, b in pairwise(sent)] == [5000, 5000, 5000]


def test_without_a_secure_context_the_reason_is_shown(blank: Page, embedded_server: Server) -> None:
    blank.goto(f"http://{INSECURE}:{embedded_server.port}/")
    blank.click("#camera")
    expect(blank.locator("#problem-title")).to_have_text("The camera cannot be used")
    expect(blank.locator("#problem-detail")).to_have_text("Browsers allow cameras on https and on localhost only.")
    expect(blank.locator("#camera")).to_be_visible()


def test_a_camera_without_permission_is_reported(launch: Launch, embedded_server: Server) -> None:
    with launch(may=False) as browser:
        page = opened(new_page(browser), embedded_server.url)
        page.click("#camera")
        expect(page.locator("#problem-title")).to_have_text("The camera cannot be used")
        expect(page.locator("#problem-detail")).to_have_text("Access was not allowed in the browser.")
        expect(page.locator("#camera")).to_be_visible()
        page.set_input_files("#file", CAT)
        expect_cat(page)


def test_without_a_camera_the_reason_is_shown(launch: Launch, embedded_server: Server) -> None:
    with launch(cameras=0) as browser:
        page = opened(new_page(browser), embedded_server.url)
        page.click("#camera")
        expect(page.locator("#problem-detail")).to_have_text("No camera was found.")


def test_the_other_camera_takes_over(launch: Launch, embedded_server: Server) -> None:
    with launch(cameras=2) as browser:
        page = _live(opened(new_page(browser), embedded_server.url))
        first = page.evaluate_handle("document.querySelector('#video').srcObject.getTracks()[0]")
        before = page.evaluate(DEVICE)
        page.get_by_role("button", name="Switch camera").click()
        page.wait_for_function(f"(before) => {DEVICE} && {DEVICE} !== before", arg=before)
        assert first.evaluate("track => track.readyState") == "ended"
        with page.expect_response("**/v1/predict*"):
            pass
        expect(page.locator("#rate")).to_have_text(RATE)


def test_one_camera_has_no_other(page: Page) -> None:
    expect(_live(page).locator("#turn")).to_be_hidden()
