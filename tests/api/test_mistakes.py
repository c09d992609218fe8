"""What beginners send by mistake, and that the error names the mistake."""

import subprocess
from pathlib import Path

import httpx2
import pytest

from tests.api.conftest import InProcess
from tests.conftest import CAT
from tests.names import HUMAN

PHOTO = CAT.read_bytes()


def detail(answer: httpx2.Response, status: int, code: str) -> str:
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    found: str = answer.json()["detail"]
    return found


def curl(server: InProcess, *arguments: str, cwd: Path = CAT.parent.parent) -> str:
    """The detail of the error that curl's request gets."""
    command = ["curl", "-s", *arguments, f"{server.url}/v1/predict"]
    ran = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60, check=True)
    return httpx2.Response(200, text=ran.stdout).json()["detail"]


def test_a_file_name_without_an_at_sign(app_server: InProcess) -> None:
    found = curl(app_server, "-F", "file=docs/cat.jpg")
    assert "the field `file` contains the text 'docs/cat.jpg' instead of a file" in found
    assert "-F file=@docs/cat.jpg" in found


@HUMAN
def test_a_human_file_name_without_an_at_sign(app_server: InProcess, name: str) -> None:
    assert f"-F file=@{name}.jpg" in curl(app_server, "-F", f"file={name}.jpg")


def test_a_file_name_fails_alone_in_a_batch(app_server: InProcess) -> None:
    files = [("file", (None, b"cat.jpg")), ("file", ("cat.jpg", PHOTO))]
    name, cat = httpx2.post(f"{app_server.url}/v1/predict/batch", files=files).json()["results"]
    assert (name["error"]["code"], "@cat.jpg" in name["error"]["detail"]) == ("unsupported_media_type", True)
    assert cat["predictions"]


def test_an_image_without_a_file_name_is_still_an_image(app_server: InProcess) -> None:
    assert httpx2.post(f"{app_server.url}/v1/predict", files={"file": (None, PHOTO)}).status_code == 200


@pytest.mark.parametrize("argument", ["@docs/cat.jpg", "file=@docs/cat.jpg"])
def test_a_file_sent_as_form_data(app_server: InProcess, argument: str) -> None:
    found = curl(app_server, "-d", argument)
    assert "application/x-www-form-urlencoded" in found
    assert "-F file=@FILE" in found
    assert "--data-binary @FILE" in found


def test_a_file_sent_as_binary_form_data_is_classified(app_server: InProcess) -> None:
    kind = {"Content-Type": "application/x-www-form-urlencoded"}  # what curl sends with --data-binary
    assert httpx2.post(f"{app_server.url}/v1/predict", content=PHOTO, headers=kind).status_code == 200


def test_json_sent_as_form_data(app_server: InProcess) -> None:
    assert "Content-Type: application/json" in curl(app_server, "-d", '{"image": "aGk="}')


def test_a_content_type_without_a_boundary(app_server: InProcess) -> None:
    headers = {"Content-Type": "multipart/form-data"}
    answer = httpx2.post(f"{app_server.url}/v1/predict", content=PHOTO, headers=headers)
    found = detail(answer, 400, "malformed_request")
    assert "has no boundary; do not set this header yourself" in found


@pytest.mark.parametrize(
    ("fields", "received"),
    [
        ({"picture": (None, b"x")}, "got the field `picture`"),
        ({"picture": (None, b"x"), "name": (None, b"y")}, "got the fields `picture`, `name`"),
        ({"picture": ("cat.jpg", PHOTO)}, "the field `picture` has more than 256 bytes"),
    ],
)
def test_an_unknown_field(app_server: InProcess, fields: dict[str, tuple[str | None, bytes]], received: str) -> None:
    answer = httpx2.post(f"{app_server.url}/v1/predict", files=fields)
    found = detail(answer, 400, "malformed_request")
    assert received in found
    assert "the field `file`, `image` or `data`" in found


@pytest.mark.parametrize(
    ("document", "received"),
    [
        ({"picture": "aGk="}, "got an object with 'picture'"),
        ({}, "got an empty object"),
        (["aGk="], "got a list"),
        (5, "got a number"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/predict", "/v1/predict/batch"])
def test_an_unknown_member(app_server: InProcess, path: str, document: object, received: str) -> None:
    found = detail(httpx2.post(app_server.url + path, json=document), 400, "malformed_request")
    assert found.startswith("the JSON body must be {")
    assert found.endswith(received)


def test_what_was_sent_is_shown_shortened(app_server: InProcess) -> None:
    for body in (
        {"files": {"x" * 200: (None, b"y")}},
        {"files": {"file": (None, b"y" * 200)}},
        {"json": {"z" * 500: 1}},
    ):
        answer = httpx2.post(f"{app_server.url}/v1/predict", **body)
        assert 400 <= answer.status_code < 500
        assert len(answer.json()["detail"]) < 300
