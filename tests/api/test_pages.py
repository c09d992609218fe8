"""The page's files: small, asking nobody else, cached by their content, under a strict policy."""

import re
from importlib import resources

import httpx2
import pytest

from tests.api.conftest import InProcess

FILES = [file for file in (resources.files("app") / "web").iterdir() if file.is_file()]
TEXTS = [file for file in FILES if not file.name.endswith(".webp")]


def test_the_page_is_small() -> None:
    assert sum(len(file.read_bytes()) for file in FILES) < 100 * 1024


@pytest.mark.parametrize("file", TEXTS, ids=lambda file: file.name)
def test_no_file_names_another_host(file: object) -> None:
    text = file.read_text(encoding="utf-8")  # type: ignore[attr-defined]
    assert set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+", text)) <= {"http://www.w3.org"}  # SVG's namespace


def test_every_module_is_loaded_at_once() -> None:
    page = (resources.files("app") / "web" / "index.html").read_text(encoding="utf-8")
    named = set(re.findall(r'(?:src|href)="web/(\w+\.js)"', page))
    assert named == {file.name for file in FILES if file.name.endswith(".js")}


@pytest.mark.parametrize("path", ["/", "/web/app.js", "/docs-assets/swagger-ui.css"])
def test_what_has_not_changed_costs_a_304(app_server: InProcess, path: str) -> None:
    first = httpx2.get(app_server.url + path)
    again = httpx2.get(app_server.url + path, headers={"If-None-Match": first.headers["etag"]})
    other = httpx2.get(app_server.url + path, headers={"If-None-Match": '"another"'})
    assert (first.status_code, again.status_code, other.status_code) == (200, 304, 200)
    assert again.content == b""
    for answer in (first, again):
        assert answer.headers["cache-control"] == "no-cache"
        assert answer.headers["etag"] == first.headers["etag"]
        assert "last-modified" not in answer.headers  # an installed file's says nothing
    assert again.headers["content-security-policy"] == first.headers["content-security-policy"]


def test_the_pages_policy_is_strict(app_server: InProcess) -> None:
    headers = httpx2.get(f"{app_server.url}/").headers
    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert (policy["script-src"], policy["style-src"], policy["connect-src"]) == ("'self'", "'self'", "'self'")
    assert policy["require-trusted-types-for"] == "'script'"
    assert headers["permissions-policy"].startswith("camera=(self), microphone=()")


def test_info_has_whether_there_is_a_taxonomy(app_server: InProcess) -> None:
    assert httpx2.get(f"{app_server.url}/v1/info").json()["taxonomy"] is True
