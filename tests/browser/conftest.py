"""One browser with a camera that shows the cat, and the servers its pages come from."""

import io
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

from app.imagenet.labels import Label
from app.images import Preprocessing
from app.models import folder
from app.models.model import Model
from tests.browser.origin import Origin
from tests.conftest import CAT, CHROMIUM, REPOSITORY, Server
from tests.models.seeded import seeded

SCREENSHOTS = REPOSITORY / "tests" / "browser" / "screenshots"
KEY = "sesame"
CATS = re.compile("^(tabby|tiger cat|Egyptian cat)$")
INSECURE = "page.example"  # a name of this machine's that is no secure context to a browser


Launch = Callable[..., Browser]


@pytest.fixture(scope="package")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launch]:
    """Starts a browser: with a camera that shows the cat, or ``cameras`` of Chromium's; ``may`` a page use them?"""
    expect.set_options(timeout=20_000)
    film = tmp_path_factory.mktemp("camera") / "cat.mjpeg"
    film.write_bytes(_film())
    with sync_playwright() as playwright:

        def start(cameras: int | None = None, may: bool = True) -> Browser:
            devices = "--use-fake-device-for-media-stream"
            seen = [f"--use-file-for-fake-video-capture={film}", devices]
            return playwright.chromium.launch(
                executable_path=CHROMIUM,
                args=[
                    "--no-sandbox",
                    "--disable-gpu",
                    "--disable-dev-shm-usage",
                    "--disable-background-networking",
                    *(seen if cameras is None else [f"{devices}=device-count={cameras}"]),
                    f"--use-fake-ui-for-media-stream{'' if may else '=deny'}",
                    f"--host-resolver-rules=MAP {INSECURE} 127.0.0.1",
                ],
            )

        yield start


@pytest.fixture(scope="package")
def browser(launch: Launch) -> Iterator[Browser]:
    with launch() as chromium:
        yield chromium


def _film() -> bytes:
    """A second of the cat, as a camera sees it."""
    frame = io.BytesIO()
    with Image.open(CAT) as cat:
        cat.convert("RGB").resize((722, 480)).crop((41, 0, 681, 480)).save(frame, "JPEG")
    return frame.getvalue() * 30


@pytest.fixture
def blank(browser: Browser) -> Iterator[Page]:
    """A page not yet opened, in a context of its own."""
    page = new_page(browser)
    page.on("filechooser", lambda chooser: None)  # from here on choosers are intercepted, before any test presses a key
    yield page
    page.context.close()


def new_page(browser: Browser) -> Page:
    context = browser.new_context(reduced_motion="reduce")
    context.set_default_timeout(20_000)
    return context.new_page()


@pytest.fixture
def page(blank: Page, embedded_server: Server) -> Page:
    """The page at ``/``, its model shown."""
    return opened(blank, embedded_server.url)


def opened(page: Page, url: str) -> Page:
    page.goto(f"{url}/")
    expect(page.locator("#served")).to_have_attribute("data-state", "ready")
    return page


def unlocked(page: Page, server: Server) -> Page:
    """The page of a server that asks for a key, which it was given."""
    page.goto(f"{server.url}/")
    page.get_by_label("API key").fill(KEY)
    page.keyboard.press("Enter")
    expect(page.locator("#served")).to_have_attribute("data-state", "ready")
    return page


def expect_cat(page: Page) -> None:
    expect(page.locator("#classes .label").first).to_have_text(CATS)
    expect(page.locator("#classes li")).to_have_count(5)
    expect(page.locator("#result")).to_have_attribute("aria-busy", "false")


def keep(page: Page, name: str) -> Path:
    """A screenshot of the whole page, for people to look at."""
    SCREENSHOTS.mkdir(exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)
    return SCREENSHOTS / f"{name}.png"


@pytest.fixture(scope="package")
def origin() -> Iterator[Origin]:
    """A page of another origin."""
    with Origin() as origin:
        yield origin


@pytest.fixture(scope="package")
def own_classes_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Two classes of one's own, without a place in WordNet."""
    import torchvision

    path = tmp_path_factory.mktemp("own") / "dog-or-not"
    build = partial(seeded, partial(torchvision.models.resnet18, num_classes=2))
    crop = Preprocessing(64, 64, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    labels = (Label("a dog"), Label("anything else"))
    folder.write(Model("dog-or-not", "resnet18", "seeded", "0" * 64, crop, labels, build), path, weights=False)
    server = Server("--model", str(path))
    yield server
    assert server.stop() == 0


@pytest.fixture(scope="package")
def walled_server(origin: Origin) -> Iterator[Server]:
    """Under a prefix, with a key, open to another origin's pages, and soon full."""
    env = {
        "TOPK_ROOT_PATH": "/vision",
        "TOPK_API_KEYS": KEY,
        "TOPK_CORS_ORIGINS": origin.url,
        "TOPK_MAX_INFLIGHT_BYTES": "100000",
        "TOPK_MAX_UPLOAD_BYTES": "90000",
    }
    server = Server("--model", "efficientnet_lite0", env=env)
    yield server
    assert server.stop() == 0
