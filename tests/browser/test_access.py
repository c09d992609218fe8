"""For everyone: axe-core's audit, the keyboard alone, screen readers, phones, the dark, people who want calm."""

import re
from typing import Literal

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from tests.browser.conftest import expect_cat, keep, opened
from tests.browser.test_page import BROKEN, PHOTO
from tests.conftest import CAT, Server

pytestmark = pytest.mark.browser

AXE = Axe()
ANIMATED = "document.getAnimations().length"


def _audit(page: Page) -> None:
    results = AXE.run(page)
    assert results.violations_count == 0, results.generate_report()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(
    browser: Browser, embedded_server: Server, scheme: Literal["light", "dark"], request: pytest.FixtureRequest
) -> None:
    context = browser.new_context(color_scheme=scheme, reduced_motion="reduce")
    request.addfinalizer(context.close)
    page = opened(context.new_page(), embedded_server.url)
    _audit(page)
    page.set_input_files("#file", [PHOTO, BROKEN])
    expect_cat(page)
    _audit(page)
    keep(page, f"audited-{scheme}")
    page.locator("#visit .shot").nth(1).click()
    expect(page.locator("#problem")).to_be_visible()
    _audit(page)
    page.click("#camera")
    expect_cat(page)
    _audit(page)


def test_axe_finds_nothing_where_a_key_is_asked_for(blank: Page, walled_server: Server) -> None:
    blank.goto(f"{walled_server.url}/")
    expect(blank.get_by_label("API key")).to_be_visible()
    _audit(blank)


def test_everything_is_reached_by_keyboard(page: Page) -> None:
    page.keyboard.press("Tab")
    expect(page.locator("#file")).to_be_focused()
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files([PHOTO, BROKEN])
    expect_cat(page)
    reached = ["#camera", "#sample", "#explain", "#clear", "#visit :checked", "#tab-curl", "#copy", "#code"]
    for one in [*reached, "a[href=docs]", "a[href='openapi.json']"]:
        page.keyboard.press("Tab")
        expect(page.locator(one)).to_be_focused()


def test_tabs_turn_by_arrow_keys(page: Page) -> None:
    page.focus("#tab-curl")
    page.keyboard.press("ArrowLeft")
    expect(page.get_by_role("tab", name="Response")).to_be_focused()
    expect(page.get_by_role("tab", name="Response")).to_have_attribute("aria-selected", "true")
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("tabpanel", name="JavaScript")).to_contain_text("await fetch(")


def test_the_camera_is_used_by_keyboard(page: Page) -> None:
    page.focus("#camera")
    page.keyboard.press("Enter")
    expect(page.locator("#stop")).to_be_focused()
    expect(page.locator("#rate")).to_contain_text("frames/s")
    page.keyboard.press("Enter")
    expect(page.locator("#camera")).to_be_focused()


def test_a_result_is_announced_to_screen_readers_once(page: Page) -> None:
    page.set_input_files("#file", CAT)
    expect(page.get_by_role("status").last).to_have_text(re.compile(r"^Most likely .* cat, \d+ percent\.$"))
    page.set_input_files("#file", [BROKEN])
    expect(page.get_by_role("status").last).to_have_text(re.compile("^The image is damaged"))


def test_a_narrow_screen_does_not_scroll_sideways(page: Page) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    page.set_input_files("#file", [PHOTO] * 6)
    expect(page.locator("#visit-count")).to_have_text("6")
    for width in (360, 320):
        page.set_viewport_size({"width": width, "height": 740})
        assert page.evaluate("document.documentElement.scrollWidth") == width
        for tab in page.get_by_role("tab").all():
            tab.click()
            assert page.evaluate("document.documentElement.scrollWidth") == width
    page.set_viewport_size({"width": 360, "height": 740})
    keep(page, "phone")


def test_in_the_dark_it_is_dark(browser: Browser, embedded_server: Server, request: pytest.FixtureRequest) -> None:
    context = browser.new_context(color_scheme="dark")
    request.addfinalizer(context.close)
    page = opened(context.new_page(), embedded_server.url)
    red, green, blue = map(int, re.findall(r"\d+", page.evaluate("getComputedStyle(document.body).backgroundColor")))
    assert max(red, green, blue) < 40
    page.set_input_files("#file", CAT)
    expect_cat(page)
    keep(page, "dark")


@pytest.mark.parametrize(("motion", "moves"), [("no-preference", True), ("reduce", False)])
def test_bars_move_unless_calm_is_wished_for(
    browser: Browser,
    embedded_server: Server,
    request: pytest.FixtureRequest,
    motion: Literal["no-preference", "reduce"],
    moves: bool,
) -> None:
    context = browser.new_context(reduced_motion=motion)
    request.addfinalizer(context.close)
    page = context.new_page()
    page.add_init_script(
        "const {animate} = Element.prototype; window.animated = 0;"
        "Element.prototype.animate = function (...given) { window.animated++; return animate.apply(this, given); };"
    )
    opened(page, embedded_server.url).set_input_files("#file", CAT)
    expect_cat(page)
    assert (page.evaluate("window.animated") > 0) == moves
