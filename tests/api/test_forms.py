"""Images as text in raw bodies and forms, and what forms send beside them: the answer is that of the plain image."""

import base64
import codecs
import io
import json
import urllib.parse
from typing import Any

import httpx2
import pytest
from PIL import Image

from tests.api.conftest import InProcess, served
from tests.api.wire import multipart
from tests.conftest import CAT

PHOTO = CAT.read_bytes()
MODEL = "efficientnet_lite0"


def saved(format: str, size: int = 300) -> bytes:
    buffer = io.BytesIO()
    with Image.open(CAT) as cat:
        cat.resize((size, size)).save(buffer, format, **({"lossless": True} if format == "WEBP" else {}))
    return buffer.getvalue()


PNG = saved("PNG")
BASE64 = base64.b64encode(PNG).decode()
PHOTO64 = base64.b64encode(PHOTO).decode()
DATA_URL = f"data:image/png;base64,{BASE64}"
Part = tuple[str, str | None, bytes]


def post(server: InProcess, body: bytes, kind: str = "", path: str = "/v1/predict") -> httpx2.Response:
    headers = {"Content-Type": kind} if kind else {}
    return httpx2.post(server.url + path, content=body, headers=headers, timeout=60)


def form(server: InProcess, *parts: Part, path: str = "/v1/predict") -> httpx2.Response:
    kind, body = multipart(*parts)
    return post(server, body, kind, path)


@pytest.fixture(scope="module")
def plain(app_server: InProcess) -> dict[str, Any]:
    """The answer to the PNG as a raw body."""
    answer: dict[str, Any] = post(app_server, PNG, "image/png").json()
    assert answer["predictions"]
    return answer


# Images as text

TEXTS = {
    "base64": BASE64,
    "base64 in lines": base64.encodebytes(PNG).decode(),
    "base64 in CRLF lines": base64.encodebytes(PNG).decode().replace("\n", "\r\n"),
    "URL-safe base64": base64.urlsafe_b64encode(PNG).decode(),
    "base64 without padding": BASE64.rstrip("="),
    "percent-encoded base64": urllib.parse.quote(BASE64, safe=""),
    "base64 behind a mark": "\ufeff" + BASE64,
    "base64 behind white space": "\r\n " + BASE64,
    "a data: URL": DATA_URL,
    "a data: URL in capitals": DATA_URL.replace("data:image/png", "DATA:;charset=utf-8"),
    "a data: URL behind a mark": "\ufeff" + DATA_URL,
    "a percent-encoded data: URL": urllib.parse.quote(DATA_URL, safe=""),
    "a data: URL that is not base64": "data:image/png," + urllib.parse.quote(PNG),
}
KINDS = ["image/png", "image/jpeg", "application/octet-stream", "text/plain", "text/plain; charset=utf-8", ""]


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_raw_body_may_be_text(app_server: InProcess, plain: dict[str, Any], name: str, kind: str) -> None:
    answer = post(app_server, TEXTS[name].encode(), kind)
    assert (answer.status_code, answer.json()) == (200, plain)


@pytest.mark.parametrize("format", ["GIF", "BMP", "TIFF", "WEBP", "JPEG"])
def test_base64_of_any_format_is_recognised(app_server: InProcess, format: str) -> None:
    content = saved(format)
    right = post(app_server, content).json()
    assert right["predictions"]
    assert post(app_server, base64.b64encode(content), "text/plain").json() == right
    assert form(app_server, ("file", None, base64.b64encode(content))).json() == right


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("filename", [None, "image.txt"])
def test_so_may_a_part(app_server: InProcess, plain: dict[str, Any], name: str, filename: str | None) -> None:
    answer = form(app_server, ("image", filename, TEXTS[name].encode()), ("top_k", None, b"5"))
    assert (answer.status_code, answer.json()) == (200, plain)


def test_also_a_text_as_short_as_a_file_name(app_server: InProcess) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (1, 1), "red").save(buffer, "PNG")
    text = b"data:image/png;base64," + base64.b64encode(buffer.getvalue())
    assert len(text) < 256
    answer = form(app_server, ("file", None, text))
    assert (answer.status_code, answer.json()) == (200, post(app_server, buffer.getvalue()).json())


@pytest.mark.parametrize("name", TEXTS)
def test_so_may_the_field_of_a_url_encoded_form(app_server: InProcess, plain: dict[str, Any], name: str) -> None:
    fields = {"note": "a & b", "images[]": TEXTS[name], "file": "", "top_k": "3"}
    answer = httpx2.post(f"{app_server.url}/v1/predict", data=fields)
    assert (answer.status_code, answer.json()["predictions"]) == (200, plain["predictions"][:3])


@pytest.mark.parametrize("text", [BASE64, DATA_URL])
def test_pluses_that_are_not_escaped_are_kept(app_server: InProcess, plain: dict[str, Any], text: str) -> None:
    assert "+" in text
    assert post(app_server, f"image={text}".encode(), "application/x-www-form-urlencoded").json() == plain
    assert post(app_server, text.encode(), "application/x-www-form-urlencoded").json() == plain


def test_several_fields_of_a_url_encoded_form_are_a_batch(app_server: InProcess, plain: dict[str, Any]) -> None:
    body = urllib.parse.urlencode([("file", BASE64), ("file", "cat.jpg"), ("file", DATA_URL)]).encode()
    kind = "application/x-www-form-urlencoded"
    first, second, third = post(app_server, body, kind, "/v1/predict/batch").json()["results"]
    assert first["predictions"] == third["predictions"] == plain["predictions"]
    assert second["error"]["code"] == "unsupported_media_type"
    assert "/v1/predict/batch" in post(app_server, body, kind).json()["detail"]


def test_in_a_batch_each_part_is_decoded_or_fails_alone(app_server: InProcess, plain: dict[str, Any]) -> None:
    parts: list[Part] = [
        ("file", "a.png", PNG),
        ("file", "b.txt", BASE64.encode()),
        ("file", "c.txt", f"{DATA_URL}?".encode()),
        ("file", "d.png", codecs.BOM_UTF8 + PNG),
        ("file", None, DATA_URL.encode()),
    ]
    results = form(app_server, *parts, path="/v1/predict/batch").json()["results"]
    assert [result["filename"] for result in results] == ["a.png", "b.txt", "c.txt", "d.png", None]
    assert [result.get("predictions") for result in results] == [
        *[plain["predictions"]] * 2,
        None,
        None,
        plain["predictions"],
    ]
    assert [results[at]["error"]["code"] for at in (2, 3)] == ["malformed_request", "unsupported_media_type"]


def test_the_limit_of_an_image_applies_to_what_a_part_holds_in_base64() -> None:
    with served(model=MODEL, max_upload_bytes=len(PNG)) as server:
        right = post(server, PNG).json()
        for text in (DATA_URL.encode(), base64.encodebytes(PNG)):
            assert form(server, ("file", None, text)).json() == right
        for content in (base64.b64encode(PNG + b"\0\0\0"), PNG + b"\0", b"x" + base64.b64encode(PNG)):
            answer = form(server, ("file", None, content))
            assert (answer.status_code, answer.json()["code"]) == (413, "payload_too_large")


BROKEN = {
    "a mark": (codecs.BOM_UTF8 + PHOTO, "like a JPEG image that begins at byte 3, behind white space"),
    "a line break": (b"\r\n" + PNG, "like a PNG image that begins at byte 2, behind white space"),
    "read as text": (PHOTO.decode("utf-8", "replace").encode(), "an image that was read as text"),
    "encoded twice": (PNG.decode("latin-1").encode(), "an image that was read as text"),
    "base64 of base64": (base64.b64encode(BASE64.encode()), "are not a JPEG"),
    "a text": (b"data:text/plain;base64,aGVsbG8gd29ybGQ=", "are not a JPEG"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_refused_is_named(app_server: InProcess, name: str) -> None:
    content, reason = BROKEN[name]
    for answer in (
        post(app_server, content, "image/png"),
        post(app_server, content),
        form(app_server, ("file", "cat.jpg", content)),
        post(app_server, json.dumps({"image": base64.b64encode(content).decode()}).encode(), "application/json"),
    ):
        assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media_type")
        assert reason in answer.json()["detail"]


def test_broken_base64_is_a_400(app_server: InProcess) -> None:
    for content in (f"{BASE64}!".encode(), f"{DATA_URL}%4".encode()):
        for answer in (post(app_server, content), form(app_server, ("file", None, content))):
            assert (answer.status_code, answer.json()["code"]) == (400, "malformed_request")
            assert "base64" in answer.json()["detail"]


@pytest.mark.parametrize("url", [b"https://example.com/cat.jpg", b" HTTP://example.com/a", b"s3://bucket/cat.jpg"])
def test_an_image_url_is_refused_with_the_reason(app_server: InProcess, url: bytes) -> None:
    for answer in (post(app_server, url, "text/plain"), form(app_server, ("image", None, url))):
        assert (answer.status_code, answer.json()["code"]) == (400, "malformed_request")
        assert "image URLs are not fetched" in answer.json()["detail"]


# What forms send beside the image

NAMES = ["files", "files[]", "images", "images[]", "file[]", "image[]", "data[]", "files[0]", "image[12]"]


@pytest.mark.parametrize("path", ["/v1/predict", "/v1/embed", "/predict", f"/predictions/{MODEL}"])
@pytest.mark.parametrize("name", NAMES)
def test_the_usual_names_are_accepted(app_server: InProcess, name: str, path: str) -> None:
    usual = form(app_server, ("file", "a.png", PNG), path=path)
    answer = form(app_server, (name, "a.png", PNG), path=path)
    assert (answer.status_code, answer.json()) == (200, usual.json())


def test_several_of_them_are_a_batch_in_their_order(app_server: InProcess, plain: dict[str, Any]) -> None:
    parts: list[Part] = [("images[]", "a.png", PNG), ("files[1]", "b.jpg", PHOTO), ("file", "c.png", PNG)]
    results = form(app_server, *parts, path="/v1/predict/batch").json()["results"]
    assert [result["filename"] for result in results] == ["a.png", "b.jpg", "c.png"]
    assert results[0]["predictions"] == results[2]["predictions"] == plain["predictions"]
    answer = form(app_server, *parts)
    assert (answer.status_code, answer.json()["code"]) == (400, "malformed_request")
    assert "/v1/predict/batch" in answer.json()["detail"]


@pytest.mark.parametrize("name", ["filesystem", "images[a]", "[]", "file]", "file[]x", "imagess", "Files[][]"])
def test_other_names_are_not(app_server: InProcess, name: str) -> None:
    assert form(app_server, (name, None, b"x")).status_code == 400
    assert form(app_server, (name, None, b"x"), ("file", "a.png", PNG)).status_code == 200


def blank(name: str) -> bytes:
    """The part that browsers send for an input without a file."""
    return (
        f'--b\r\nContent-Disposition: form-data; name="{name}"; filename=""\r\n'
        "Content-Type: application/octet-stream\r\n\r\n\r\n"
    ).encode()


PART = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n' + PNG + b"\r\n"
EMPTY = b'--b\r\nContent-Disposition: form-data; name="image"\r\n\r\n\r\n'
BARE = b'--b\r\nContent-Disposition: form-data; name="image"; filename=""\r\n\r\n'
KIND = "multipart/form-data; boundary=b"


@pytest.mark.parametrize(
    "body",
    [
        blank("file") + PART,
        PART + blank("file"),
        blank("image") + blank("files[]") + PART + blank("data"),
        PART + EMPTY,
        EMPTY + PART,
        BARE + PART,
        blank("second") + PART,
    ],
)
def test_a_blank_input_is_ignored(app_server: InProcess, plain: dict[str, Any], body: bytes) -> None:
    answer = post(app_server, body + b"--b--\r\n", KIND)
    assert (answer.status_code, answer.json()) == (200, plain)
    batch = post(app_server, body + b"--b--\r\n", KIND, "/v1/predict/batch").json()
    assert batch["results"] == [{"filename": "a.png", "predictions": plain["predictions"]}]


def test_a_form_with_only_blank_inputs_has_an_empty_image(app_server: InProcess) -> None:
    answer = post(app_server, blank("file") + blank("image") + b"--b--\r\n", KIND)
    assert (answer.status_code, answer.json()["code"]) == (400, "empty_body")


def test_an_empty_file_with_a_name_is_not_blank(app_server: InProcess) -> None:
    parts: list[Part] = [("file", "a.png", PNG), ("file", "b.png", b"")]
    assert "more than one image" in form(app_server, *parts).json()["detail"]
    second = form(app_server, *parts, path="/v1/predict/batch").json()["results"][1]
    assert (second["filename"], second["error"]["code"]) == ("b.png", "empty_body")


def test_blank_inputs_do_not_count_as_images(app_server: InProcess) -> None:
    body = blank("file") * 32 + PART.replace(PNG, b"x") * 32 + b"--b--\r\n"
    assert len(post(app_server, body, KIND, "/v1/predict/batch").json()["results"]) == 32
    answer = post(app_server, blank("file") + body, KIND, "/v1/predict/batch")
    assert (answer.status_code, "more than 64 parts" in answer.json()["detail"]) == (400, True)
