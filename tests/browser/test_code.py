"""The code that the page shows, run as it stands."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import CATS, KEY, expect_cat, unlocked
from tests.conftest import CAT, Server

pytestmark = pytest.mark.browser

NAME = 'it\'s; a "cat", &.jpg'  # what a shell, curl and Python would each misread


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    return Path(shutil.copy(CAT, tmp_path / NAME))


@pytest.fixture
def asked(blank: Page, walled_server: Server, photograph: Path) -> Page:
    """A page that has its answer, from a server that wants a key."""
    page = unlocked(blank, walled_server)
    page.set_input_files("#file", photograph)
    expect_cat(page)
    return page


def _shown(page: Page, tab: str) -> str:
    page.get_by_role("tab", name=tab).click()
    return page.locator("#code").inner_text()


def _run(command: list[str], folder: Path) -> str:
    environment = {"API_KEY": KEY, "PATH": "/usr/local/bin:/usr/bin:/bin"}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=True
    ).stdout


def test_the_command_is_the_request(asked: Page, photograph: Path) -> None:
    answer = json.loads(_run(["bash", "-c", _shown(asked, "curl")], photograph.parent))
    assert CATS.match(answer["predictions"][0]["label"])
    assert json.loads(_shown(asked, "Response").removeprefix("HTTP 200\n")) == answer


def test_the_python_is_the_request(asked: Page, photograph: Path) -> None:
    printed = _run([sys.executable, "-c", _shown(asked, "Python")], photograph.parent)
    assert printed.splitlines()[0].endswith("cat")


def test_the_javascript_is_the_request(asked: Page) -> None:
    code = _shown(asked, "JavaScript")
    with asked.expect_response("**/v1/predict*") as answered:
        asked.evaluate(
            f"async (API_KEY) => {{ const file = await (await fetch('web/cat.webp')).blob();\n{code} }}", KEY
        )
    assert answered.value.ok


def test_the_javascript_of_the_camera_is_the_request(page: Page) -> None:
    page.click("#camera")
    expect_cat(page)
    code = _shown(page, "JavaScript")
    page.evaluate(f"async () => {{ const video = document.querySelector('video');\n{code} }}")


def test_it_is_copied_with_one_click(page: Page) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    shown = _shown(page, "Python")
    page.click("#copy")
    expect(page.locator("#copy")).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()").rstrip() == shown.rstrip()
