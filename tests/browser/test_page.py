"""Photographs on the page in a real browser, against a real server."""

import base64
import io
import re

import pillow_heif
import pytest
from PIL import Image
from playwright.sync_api import FilePayload, Page, Route, expect

from tests.browser.conftest import CATS, expect_cat, keep, opened, unlocked
from tests.conftest import CAT, Server

pytestmark = pytest.mark.browser

PHOTO: FilePayload = {"name": "cat.jpg", "mimeType": "image/jpeg", "buffer": CAT.read_bytes()}
BROKEN: FilePayload = {"name": "broken.jpg", "mimeType": "image/jpeg", "buffer": CAT.read_bytes()[:3000]}
TEXT: FilePayload = {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"no picture"}
PERCENT = re.compile(r"^\d+\.\d%$")
HAND_OVER = """([type, base64]) => {
    const transfer = new DataTransfer();
    const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
    transfer.items.add(new File([bytes], "cat.jpg", {type: "image/jpeg"}));
    const init = {bubbles: true, cancelable: true, dataTransfer: transfer, clipboardData: transfer};
    const event = type === "paste" ? new ClipboardEvent(type, init) : new DragEvent(type, init);
    document.querySelector("main").dispatchEvent(event);
}"""
COUNT_URLS = """(() => {
    const live = new Set();
    const {createObjectURL, revokeObjectURL} = URL;
    URL.createObjectURL = (of) => { const url = createObjectURL.call(URL, of); live.add(url); return url; };
    URL.revokeObjectURL = (url) => { live.delete(url); revokeObjectURL.call(URL, url); };
    window.liveUrls = () => live.size;
})()"""


def _png(name: str, color: tuple[int, int, int]) -> FilePayload:
    content = io.BytesIO()
    Image.new("RGB", (32, 32), color).save(content, "PNG")
    return {"name": name, "mimeType": "image/png", "buffer": content.getvalue()}


def _silent(page: Page, origin: str) -> list[str]:
    """A list that fills with what the page must not do: complain, or ask another origin."""
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda asked: None if asked.url.startswith((f"{origin}/", "blob:")) else wrong.append(asked.url))
    return wrong


def test_a_picked_photograph_gets_five_bars_and_a_time(page: Page) -> None:
    page.set_input_files("#file", CAT)
    expect_cat(page)
    expect(page.locator("#classes .score").first).to_have_text(PERCENT)
    expect(page.locator("#stages dt")).to_have_text(["Network", "Upload", "Decode", "Queue", "Device", "Other"])
    assert page.locator("#stack i").count() == page.locator("#stages dt").count()
    expect(page.locator("#round-trip")).to_have_text(re.compile(r"^[\d.]+ ms$"))
    expect(page.locator("#preview")).to_be_visible()
    expect(page.locator("#caption")).to_have_text("cat.jpg, 451 \u00d7 300 pixels, 30 KiB")
    keep(page, "light")


@pytest.mark.parametrize("way", ["drop", "paste"])
def test_a_photograph_can_be_handed_over(page: Page, way: str) -> None:
    page.evaluate(HAND_OVER, [way, base64.b64encode(CAT.read_bytes()).decode()])
    expect_cat(page)


def test_the_cat_can_be_tried(page: Page) -> None:
    page.click("#sample")
    expect_cat(page)


def test_the_served_model_is_named(page: Page) -> None:
    expect(page.locator("#served")).to_have_text(re.compile("efficientnet_lite0 · .+ · cpu · "))


@pytest.mark.parametrize(
    ("file", "title", "code"),
    [
        (BROKEN, "The image is damaged", "422 undecodable_image"),
        (TEXT, "Unsupported image format", "415 unsupported_media_type"),
    ],
    ids=["broken", "text"],
)
def test_a_bad_file_is_explained_in_plain_words(page: Page, file: FilePayload, title: str, code: str) -> None:
    with page.expect_response("**/v1/predict*") as answered:
        page.set_input_files("#file", file)
    problem = answered.value.json()
    expect(page.locator("#problem-title")).to_have_text(title)
    expect(page.locator("#problem-detail")).to_contain_text(problem["detail"], ignore_case=True)
    expect(page.locator("#problem-code")).to_have_text(code)
    expect(page.locator("#problem-id")).to_contain_text(problem["request_id"])
    for hidden in ("#classes", "#timing", "#again"):
        expect(page.locator(hidden)).to_be_hidden()
    keep(page, "problem")


def test_what_is_larger_than_the_server_takes_is_not_sent(blank: Page, walled_server: Server) -> None:
    page = unlocked(blank, walled_server)
    sent: list[str] = []
    page.on("request", lambda asked: sent.append(asked.method))
    page.set_input_files("#file", {"name": "large.jpg", "mimeType": "image/jpeg", "buffer": bytes(102_400)})
    expect(page.locator("#problem-title")).to_have_text("The file is too large")
    expect(page.locator("#problem-detail")).to_have_text("It has 100 KiB; this server accepts up to 88 KiB.")
    assert "POST" not in sent


def test_what_the_browser_cannot_show_is_classified_all_the_same(page: Page) -> None:
    with Image.open(CAT) as cat:
        heic = io.BytesIO()
        pillow_heif.from_pillow(cat).save(heic)
    page.set_input_files("#file", {"name": "cat.heic", "mimeType": "image/heic", "buffer": heic.getvalue()})
    expect_cat(page)
    expect(page.locator("#placeholder")).to_have_text("cat.heic")
    expect(page.locator("#caption")).to_have_text(re.compile("^cat.heic, .* Your browser cannot display this format.$"))
    expect(page.locator("#preview")).to_be_hidden()


def test_several_files_are_answered_each_and_can_be_chosen(page: Page) -> None:
    red = _png("red.png", (200, 0, 0))
    page.set_input_files("#file", [PHOTO, red, TEXT])
    expect(page.locator("#visit-count")).to_have_text("3")
    expect_cat(page)
    shots = page.locator("#visit .shot")
    expect(shots.nth(0)).to_have_text(re.compile(r"Egyptian cat\d+\.\d%"))
    expect(shots.nth(2)).to_have_text("txtUnsupported image format")
    keep(page, "several")
    shots.nth(2).click()
    expect(page.locator("#problem-code")).to_have_text("415 unsupported_media_type")
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#caption")).to_contain_text("red.png")
    expect(page.locator("#classes")).to_be_visible()
    expect(page.locator("#problem")).to_be_hidden()


def test_a_cats_place_in_wordnet_is_shown(page: Page) -> None:
    page.set_input_files("#file", CAT)
    expect_cat(page)
    expect(page.locator("#confident")).to_have_text("domestic cat")
    expect(page.locator("#path [aria-current]")).to_have_text("domestic cat")
    expect(page.locator("#path li").last).to_have_text(CATS)


def test_a_model_of_two_classes_of_its_own(blank: Page, own_classes_server: Server) -> None:
    page = opened(blank, own_classes_server.url)
    page.set_input_files("#file", CAT)
    expect(page.locator("#classes li")).to_have_count(2)
    assert set(page.locator("#classes .label").all_inner_texts()) == {"a dog", "anything else"}
    expect(page.locator("#wordnet")).to_be_hidden()
    expect(page.locator("#count")).to_have_text("2")


def test_a_visits_history_is_bounded_and_leaves_nothing_in_memory(blank: Page, embedded_server: Server) -> None:
    blank.add_init_script(COUNT_URLS)
    page = opened(blank, embedded_server.url)
    page.set_input_files("#file", [_png(f"{i}.png", (i, i, i)) for i in range(50)])
    expect(page.locator("#left-out")).to_have_text("Only the first 48 photos were added; 2 were not.")
    expect(page.locator("#visit-count")).to_have_text("48")
    page.set_input_files("#file", CAT)
    expect_cat(page)
    expect(page.locator("#left-out")).to_be_empty()
    expect(page.locator("#visit li")).to_have_count(48)
    expect(page.locator("#visit img")).to_have_count(48)
    assert page.evaluate("liveUrls()") == 49  # thumbnails, and the photograph on the stage
    page.click("#clear")
    expect(page.locator("#strip")).to_be_hidden()
    expect(page.locator("#classes")).to_be_hidden()
    assert page.evaluate("liveUrls()") == 0


def test_a_warning_is_shown_as_text(blank: Page, embedded_server: Server) -> None:
    def warn(route: Route) -> None:
        answer = route.fetch()
        route.fulfill(response=answer, json=answer.json() | {"warning": "made up <b>weights</b>"})

    blank.route("**/v1/info", warn)
    opened(blank, embedded_server.url)
    expect(blank.locator("#warning")).to_have_text("Made up <b>weights</b>.")


def test_the_page_is_silent_and_asks_nobody_else(blank: Page, embedded_server: Server) -> None:
    wrong = _silent(blank, embedded_server.url)
    page = opened(blank, embedded_server.url)
    page.set_input_files("#file", CAT)
    expect_cat(page)
    page.click("#camera")
    expect(page.locator("#rate")).to_contain_text("frames/s")
    assert wrong == []


def test_a_page_seen_before_is_not_loaded_again(page: Page, embedded_server: Server) -> None:
    page.goto(page.url)
    page.set_input_files("#file", CAT)
    expect_cat(page)  # under the policy that came with the 304
    for path in ("/", "/web/app.js", "/web/camera.js", "/web/style.css"):
        embedded_server.wait_for("request", path=path, status=304)


def test_the_documentation_works_offline(blank: Page, embedded_server: Server) -> None:
    wrong = _silent(blank, embedded_server.url)
    blank.goto(f"{embedded_server.url}/docs")
    expect(blank.locator(".opblock-summary-path", has_text="predict").first).to_be_visible()
    assert wrong == []
