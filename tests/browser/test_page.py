"""The page and the documentation in a real browser, against a real server."""

import base64
import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, FilePayload, Page, Route, expect, sync_playwright

from tests.conftest import CAT, CHROMIUM, Server

pytestmark = pytest.mark.browser

BROKEN: FilePayload = {"name": "broken.jpg", "mimeType": "image/jpeg", "buffer": CAT.read_bytes()[:3000]}
TEXT: FilePayload = {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"no picture"}
CATS = ("tabby", "tiger cat", "Egyptian cat")
PERCENT = re.compile(r"^\d+\.\d%$")
HAND_OVER = """([type, base64]) => {
    const transfer = new DataTransfer();
    const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
    transfer.items.add(new File([bytes], "cat.jpg", {type: "image/jpeg"}));
    const init = {bubbles: true, cancelable: true, dataTransfer: transfer, clipboardData: transfer};
    const event = type === "paste" ? new ClipboardEvent(type, init) : new DragEvent(type, init);
    document.querySelector("main").dispatchEvent(event);
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    expect.set_options(timeout=20_000)
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking"]
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield chromium
        chromium.close()


@pytest.fixture
def blank(browser: Browser) -> Iterator[Page]:
    """A page not yet opened, in a context of its own."""
    context = browser.new_context(reduced_motion="reduce")
    context.set_default_timeout(20_000)
    page = context.new_page()
    page.on("filechooser", lambda chooser: None)  # from here on choosers are intercepted, before any test presses a key
    yield page
    context.close()


@pytest.fixture
def page(blank: Page, embedded_server: Server) -> Page:
    """The page at ``/``, its model shown."""
    return _open(blank, embedded_server.url)


def _open(page: Page, url: str) -> Page:
    page.goto(f"{url}/")
    expect(page.locator("#served")).to_have_attribute("data-state", "ready")
    return page


def _expect_cat(page: Page) -> None:
    expect(page.locator("#classes li")).to_have_count(5)
    assert page.locator("#classes .label").first.text_content() in CATS


def _answers(page: Page, path: str, status: int, times: int | None = None, **body: object) -> None:
    """Answer ``path`` with this problem instead of the server's answer."""

    def answer(route: Route) -> None:
        route.fulfill(status=status, content_type="application/problem+json", json=body)

    page.route(f"**/{path}*", answer, times=times)


def _silent(page: Page, origin: str) -> list[str]:
    """A list that fills with what the page must not do: complain, or ask another origin."""
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda asked: None if asked.url.startswith((f"{origin}/", "blob:")) else wrong.append(asked.url))
    return wrong


def test_a_picked_photograph_gets_five_bars_and_a_time(page: Page) -> None:
    page.set_input_files("#file", CAT)
    _expect_cat(page)
    expect(page.locator("#classes .score").first).to_have_text(PERCENT)
    expect(page.locator("#timing")).to_have_text(
        re.compile(r"Round trip\d+ ms.*Decode.* ms.*Queue.* ms.*Inference.* ms")
    )
    expect(page.locator("#preview")).to_be_visible()


@pytest.mark.parametrize("way", ["drop", "paste"])
def test_a_photograph_can_be_handed_over(page: Page, way: str) -> None:
    page.evaluate(HAND_OVER, [way, base64.b64encode(CAT.read_bytes()).decode()])
    _expect_cat(page)


def test_the_served_model_is_named(page: Page) -> None:
    expect(page.locator("#served")).to_have_text(re.compile("efficientnet_lite0 · .+ · cpu · "))


@pytest.mark.parametrize("file", [BROKEN, TEXT], ids=["broken", "text"])
def test_a_bad_file_shows_what_the_server_says(page: Page, file: FilePayload) -> None:
    with page.expect_response("**/v1/predict*") as answered:
        page.set_input_files("#file", file)
    expect(page.locator("#problem-detail")).to_contain_text(answered.value.json()["detail"], ignore_case=True)
    expect(page.locator("#classes")).to_be_hidden()
    expect(page.locator("#again")).to_be_hidden()


def test_what_the_browser_cannot_show_is_not_shown(page: Page) -> None:
    page.set_input_files("#file", TEXT)
    expect(page.locator("#caption")).to_have_text("notes.txt, 10 bytes. Your browser cannot show it.")
    expect(page.locator("#preview")).to_be_hidden()


def test_a_busy_server_says_when_to_try_again(page: Page) -> None:
    _answers(
        page, "v1/predict", 503, times=1, code="overloaded", title="Overloaded", detail="busy", retry_after_ms=2300
    )
    page.set_input_files("#file", CAT)
    expect(page.locator("#problem-detail")).to_have_text("Busy. Try again in 3 s.")
    page.click("#again")
    _expect_cat(page)


def test_a_lost_connection_is_told(page: Page) -> None:
    page.route("**/v1/predict*", lambda route: route.abort("connectionreset"), times=1)
    page.set_input_files("#file", CAT)
    expect(page.locator("#problem-title")).to_have_text("No answer")
    page.click("#again")
    _expect_cat(page)


def test_a_model_that_loads_is_waited_for(blank: Page, embedded_server: Server) -> None:
    for path in ("v1/info", "v1/predict"):
        _answers(blank, path, 503, times=1, code="not_ready", detail="the model is being loaded")
    blank.goto(f"{embedded_server.url}/")
    expect(blank.locator("#served")).to_have_text("The model is being loaded.")
    blank.set_input_files("#file", CAT)
    _expect_cat(blank)


def test_a_key_is_asked_for_and_sent(blank: Page, embedded_server: Server) -> None:
    _answers(blank, "v1/info", 401, times=1, code="unauthorized", detail="send a key")
    blank.goto(f"{embedded_server.url}/")
    blank.get_by_label("API key").fill("sesame")
    with blank.expect_request("**/v1/info") as asked:
        blank.keyboard.press("Enter")
    assert asked.value.headers["x-api-key"] == "sesame"
    expect(blank.locator("#key-form")).to_be_hidden()
    expect(blank.locator("#curl")).to_contain_text("X-API-Key: $API_KEY")


def test_a_wrong_key_is_asked_for_again(blank: Page, embedded_server: Server) -> None:
    _answers(blank, "v1/info", 401, times=2, code="unauthorized", detail="the API key is not known")
    blank.goto(f"{embedded_server.url}/")
    blank.get_by_label("API key").fill("wrong")
    blank.keyboard.press("Enter")
    expect(blank.locator("#key-hint")).to_have_text("The API key is not known.")
    expect(blank.locator("#key")).to_be_focused()


def test_a_warning_is_shown_as_text(blank: Page, embedded_server: Server) -> None:
    def warn(route: Route) -> None:
        answer = route.fetch()
        route.fulfill(response=answer, json=answer.json() | {"warning": "made up <b>weights</b>"})

    blank.route("**/v1/info", warn)
    _open(blank, embedded_server.url)
    expect(blank.locator("#warning")).to_have_text("Made up <b>weights</b>.")


def test_a_second_photograph_aborts_the_first(page: Page) -> None:
    page.route("**/v1/predict*", lambda route: None, times=1)  # never answered
    with page.expect_request("**/v1/predict*"):
        page.set_input_files("#file", TEXT)
    with page.expect_event("requestfailed") as aborted:
        page.set_input_files("#file", CAT)
    assert aborted.value.failure == "net::ERR_ABORTED"
    _expect_cat(page)


def test_everything_is_reached_by_keyboard(page: Page) -> None:
    page.keyboard.press("Tab")
    expect(page.locator("#file")).to_be_focused()
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(CAT)
    _expect_cat(page)
    for reached in ("#curl", "#copy", "a[href=docs]", "a[href='openapi.json']"):
        page.keyboard.press("Tab")
        expect(page.locator(reached)).to_be_focused()


def test_the_command_line_can_be_copied(page: Page, embedded_server: Server) -> None:
    expect(page.locator("#curl")).to_have_text(f"curl -F file=@photo.jpg {embedded_server.url}/v1/predict")
    page.click("#copy")
    expect(page.locator("#copy")).to_have_text("Copied")


def test_the_page_is_silent_and_asks_nobody_else(blank: Page, embedded_server: Server) -> None:
    wrong = _silent(blank, embedded_server.url)
    _open(blank, embedded_server.url).set_input_files("#file", CAT)
    _expect_cat(blank)
    assert wrong == []


def test_the_page_works_under_a_prefix(blank: Page, embedded_server: Server) -> None:
    wrong = _silent(blank, f"{embedded_server.url}/vision")
    blank.route("**/vision/**", lambda route: route.continue_(url=route.request.url.replace("/vision/", "/")))
    _open(blank, f"{embedded_server.url}/vision").set_input_files("#file", CAT)
    _expect_cat(blank)
    expect(blank.locator("#curl")).to_contain_text("/vision/v1/predict")
    assert wrong == []


def test_a_narrow_screen_does_not_scroll_sideways(page: Page) -> None:
    page.set_viewport_size({"width": 320, "height": 640})
    page.set_input_files("#file", CAT)
    _expect_cat(page)
    assert page.evaluate("document.documentElement.scrollWidth") == 320


def test_the_documentation_works_offline(blank: Page, embedded_server: Server) -> None:
    wrong = _silent(blank, embedded_server.url)
    blank.goto(f"{embedded_server.url}/docs")
    expect(blank.locator(".opblock-summary-path", has_text="predict").first).to_be_visible()
    assert wrong == []
