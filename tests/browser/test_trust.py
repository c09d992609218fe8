"""Prediction sets, unknown images and the map, on the page of calibrated models."""

import io
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
from PIL import ExifTags, Image
from playwright.sync_api import Browser, FilePayload, Page, expect

from tests import tiny
from tests.browser.conftest import expect_cat, keep, opened
from tests.browser.test_access import _audit
from tests.conftest import CAT, Server

pytestmark = pytest.mark.browser

INK = """(canvas) => {
    const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    const alpha = (x, y) => data[4 * (y * canvas.width + x) + 3];
    const across = Array.from({length: canvas.width}, (_, x) => alpha(x, canvas.height >> 1));
    const down = Array.from({length: canvas.height}, (_, y) => alpha(canvas.width >> 1, y));
    return {shape: canvas.width / canvas.height, left: across[2], top: down[2], most: Math.max(...across, ...down)};
}"""
STEADY = """async (seen) => {
    const {Steady} = await import("/web/average.js");
    const steady = new Steady();
    return seen.map((unknown, at) => steady.add(unknown, 1000 + 170 * at));
}"""
SWITCH = "Show what supports the class"


def serving(path: Path, energy: float, spread: float) -> Server:
    shutil.copytree(tiny.model()[1], path)
    tiny.calibrate(path, energy=energy, spread=spread)
    return Server("--model", str(path))


@pytest.fixture(scope="module")
def typical(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = serving(tmp_path_factory.mktemp("typical") / "typical", 60, 20)
    yield server
    assert server.stop() == 0


@pytest.fixture(scope="module")
def strange(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Every image is unlike those of its calibration."""
    server = serving(tmp_path_factory.mktemp("strange") / "strange", 1e6, 1)
    yield server
    assert server.stop() == 0


def test_a_bracket_is_around_the_set(blank: Page, typical: Server) -> None:
    page = opened(blank, typical.url)
    with page.expect_response(lambda response: "coverage=0.95" in response.url) as answered:
        page.set_input_files("#file", CAT)
    found = answered.value.json()["set"]
    expect(page.locator("#classes [data-in-set]")).to_have_count(min(5, len(found)))
    expect(page.locator(".among")).to_have_text(re.compile(r"^The right class is (among )?th.*, 95%$"))
    expect(page.locator("#answer-kind")).to_have_text("Most specific answer that contains the whole set")
    expect(page.locator("#unknown")).to_be_hidden()
    keep(page, "set")


def test_an_unknown_image_is_called_that(blank: Page, strange: Server) -> None:
    page = opened(blank, strange.url)
    page.set_input_files("#file", CAT)
    expect(page.locator("#unknown")).to_contain_text("Unknown.")
    expect(page.locator("#answer-title")).to_have_text("If it is one of the classes")
    expect(page.locator("#announcement")).to_have_text(
        re.compile("^Unknown. If it is one of the classes: Most likely ")
    )
    expect(page.locator("#wordnet")).to_be_hidden()
    expect(page.locator(".among")).to_have_count(0)
    keep(page, "unknown")


def test_a_model_without_a_calibration_shows_none_of_it(page: Page) -> None:
    with page.expect_request(re.compile("/v1/predict")) as asked:
        page.set_input_files("#file", CAT)
    assert "coverage" not in asked.value.url
    expect_cat(page)
    expect(page.locator(".among, [data-in-set]")).to_have_count(0)
    expect(page.locator("#unknown")).to_be_hidden()
    expect(page.locator("#answer-title")).to_have_text("Most likely")


def test_the_map_is_drawn_over_the_photograph_and_taken_away(page: Page) -> None:
    page.set_input_files("#file", CAT)
    expect_cat(page)
    expect(page.locator("#map")).to_be_hidden()
    page.get_by_label(SWITCH).press("Space")
    expect(page.locator("#map")).to_be_visible()
    expect(page.get_by_role("img", name=re.compile("^Map of .* cat$"))).to_be_visible()
    ink = page.locator("#map").evaluate(INK)
    assert ink["shape"] == pytest.approx(451 / 300, rel=0.01)  # the cat's, whose crop is the square in the middle
    assert ink["left"] == 0
    assert ink["most"] > 100
    expect(page.locator("#map-status")).to_have_text(re.compile("^Colour: parts that support .* cat. Frame: what"))
    keep(page, "map")
    page.get_by_label(SWITCH).uncheck()
    expect(page.locator("#map")).to_be_hidden()


def test_the_map_is_asked_for_once(page: Page) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if "explain=" in request.url else None)
    page.set_input_files("#file", CAT)
    expect_cat(page)
    for _ in range(2):
        page.get_by_label(SWITCH).check()
        expect(page.locator("#map")).to_be_visible()
        page.get_by_label(SWITCH).uncheck()
    assert len(asked) == 1


def test_the_map_of_another_class_is_chosen_by_keyboard(page: Page) -> None:
    page.set_input_files("#file", CAT)
    expect_cat(page)
    page.get_by_label(SWITCH).check()
    expect(page.get_by_role("radio", name="Map of").first).to_be_checked()
    second = page.locator("#classes .label").nth(1).inner_text()
    page.get_by_role("radio", name="Map of").first.focus()
    page.keyboard.press("ArrowDown")
    expect(page.get_by_role("radio", name=f"Map of {second}")).to_be_focused()
    expect(page.get_by_role("img", name=f"Map of {second}")).to_be_visible()
    page.get_by_label(SWITCH).uncheck()
    expect(page.get_by_role("radio", name="Map of")).to_have_count(0)


def test_the_map_of_another_class_is_chosen_by_a_click_anywhere_in_its_row(page: Page) -> None:
    page.set_input_files("#file", CAT)
    expect_cat(page)
    page.get_by_label(SWITCH).check()
    expect(page.locator("#map")).to_be_visible()
    third = page.locator("#classes .label").nth(2).inner_text()
    page.locator("#classes .score").nth(2).click(force=True)
    expect(page.locator("#map-status")).to_contain_text(f"support {third}.")


def test_the_map_fits_a_photograph_turned_by_exif(page: Page) -> None:
    page.set_input_files("#file", _turned())
    expect(page.locator("#caption")).to_contain_text(re.compile("300 . 451 pixels"))
    page.get_by_label(SWITCH).check()
    expect(page.locator("#map")).to_be_visible()
    ink = page.locator("#map").evaluate(INK)
    assert ink["shape"] == pytest.approx(300 / 451, rel=0.01)
    assert ink["top"] == 0
    assert ink["most"] > 100


def _turned() -> FilePayload:
    """The cat, stored upright and displayed as a portrait."""
    exif, content = Image.Exif(), io.BytesIO()
    exif[ExifTags.Base.Orientation] = 6
    with Image.open(CAT) as cat:
        cat.save(content, "JPEG", exif=exif)
    return {"name": "turned.jpg", "mimeType": "image/jpeg", "buffer": content.getvalue()}


def test_a_photograph_that_the_browser_cannot_display_has_no_map(page: Page) -> None:
    content = io.BytesIO()
    with Image.open(CAT) as cat:
        cat.save(content, "TIFF")
    page.set_input_files("#file", {"name": "cat.tiff", "mimeType": "image/tiff", "buffer": content.getvalue()})
    expect_cat(page)
    page.get_by_label(SWITCH).check()
    expect(page.locator("#map-status")).to_have_text("No map: your browser cannot display this format.")


def test_the_reason_is_shown_where_there_is_no_map(page: Page) -> None:
    page.set_input_files("#file", CAT)
    expect_cat(page)
    page.route(re.compile("explain="), lambda route: route.abort())
    page.get_by_label(SWITCH).check()
    expect(page.locator("#map-status")).to_have_text(re.compile("^No map: "))
    expect(page.locator("#map")).to_be_hidden()


def test_the_camera_calls_the_unknown_by_its_name_and_has_no_switch(blank: Page, strange: Server) -> None:
    page = opened(blank, strange.url)
    page.click("#camera")
    expect(page.locator("#unknown")).to_be_visible()
    expect(page.locator("#announcement")).to_have_text("Unknown")
    expect(page.get_by_label(SWITCH)).to_be_hidden()
    expect(page.locator(".among")).to_have_count(0)


@pytest.mark.parametrize(
    ("seen", "shown"),
    [([True], [True]), ([False, True, False], [False] * 3), ([False, True, True, True], [False, False, False, True])],
)
def test_the_state_of_live_video_does_not_flicker(page: Page, seen: list[bool], shown: list[bool]) -> None:
    assert page.evaluate(STEADY, seen) == shown


def test_a_model_without_maps_has_no_switch(blank: Page, tmp_path: Path) -> None:
    tiny.write(tmp_path, tiny.network(hidden=True))
    server = Server("--model", str(tmp_path))
    page = opened(blank, server.url)
    page.set_input_files("#file", CAT)
    expect(page.locator("#classes li")).to_have_count(5)
    expect(page.get_by_label(SWITCH)).to_be_hidden()
    assert server.stop() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_axe_finds_nothing_in_any_state(
    browser: Browser,
    typical: Server,
    strange: Server,
    scheme: Literal["light", "dark"],
    width: int,
    request: pytest.FixtureRequest,
) -> None:
    context = browser.new_context(
        color_scheme=scheme, reduced_motion="reduce", viewport={"width": width, "height": 900}
    )
    request.addfinalizer(context.close)
    page = context.new_page()
    for server in (typical, strange):
        opened(page, server.url)
        page.set_input_files("#file", CAT)
        expect(page.locator("#classes li")).to_have_count(5)
        page.get_by_label(SWITCH).check()
        expect(page.locator("#map")).to_be_visible()
        _audit(page)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
