"""Prediction sets, unknown images and the map, on the page of calibrated models."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
from playwright.sync_api import Browser, Page, expect

from tests import tiny
from tests.browser.conftest import expect_cat, keep, opened
from tests.browser.test_access import _audit
from tests.conftest import CAT, Server

pytestmark = pytest.mark.browser

INK = """(canvas) => {
    const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    const alpha = (x, y) => data[4 * (y * canvas.width + x) + 3];
    return {size: [canvas.width, canvas.height], corner: alpha(2, canvas.height >> 1), most: Math.max(...Array.from(
        {length: canvas.height}, (_, y) => alpha(canvas.width >> 1, y)))};
}"""


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
    expect(page.locator("#answer-kind")).to_have_text("Most specific answer that contains all of these")
    expect(page.locator("#unknown")).to_be_hidden()
    keep(page, "set")


def test_an_unknown_image_is_called_that(blank: Page, strange: Server) -> None:
    page = opened(blank, strange.url)
    page.set_input_files("#file", CAT)
    expect(page.locator("#unknown")).to_contain_text("Unknown.")
    expect(page.locator("#answer-title")).to_have_text("If it is one of the classes")
    expect(page.locator("#announcement")).to_have_text(re.compile("^Unknown. Most likely "))
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
    page.get_by_label("Show what it looked at").press("Space")
    expect(page.locator("#map")).to_be_visible()
    expect(page.get_by_role("img", name=re.compile("^What .* is based on"))).to_be_visible()
    ink = page.locator("#map").evaluate(INK)
    assert ink["size"] == [451, 300]  # the cat's, whose crop is the square in the middle
    assert ink["corner"] == 0
    assert ink["most"] > 100
    keep(page, "map")
    page.get_by_label("Show what it looked at").uncheck()
    expect(page.locator("#map")).to_be_hidden()


def test_the_map_is_asked_for_once(page: Page) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if "explain=true" in request.url else None)
    page.set_input_files("#file", CAT)
    expect_cat(page)
    for _ in range(2):
        page.get_by_label("Show what it looked at").check()
        expect(page.locator("#map")).to_be_visible()
        page.get_by_label("Show what it looked at").uncheck()
    assert len(asked) == 1


def test_a_model_without_maps_has_no_switch(blank: Page, tmp_path: Path) -> None:
    tiny.write(tmp_path, tiny.network(hidden=True))
    server = Server("--model", str(tmp_path))
    page = opened(blank, server.url)
    page.set_input_files("#file", CAT)
    expect(page.locator("#classes li")).to_have_count(5)
    expect(page.get_by_label("Show what it looked at")).to_be_hidden()
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
        page.get_by_label("Show what it looked at").check()
        expect(page.locator("#map")).to_be_visible()
        _audit(page)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
