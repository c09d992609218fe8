"""Bodies as mail libraries, old stacks and forms write them: the answer is that of the plain image."""

import base64
import binascii
import codecs
import email.policy
import io
import json
import urllib.parse
from email.mime.image import MIMEImage
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from typing import Any

import httpx2
import pytest
from PIL import Image

from tests.api.conftest import InProcess, served
from tests.api.wire import Wire
from tests.conftest import CAT
from tests.names import NAMES as HUMAN_NAMES

PHOTO = CAT.read_bytes()
BASE64 = base64.b64encode(PHOTO).decode()
MODEL = "efficientnet_lite0"


def post(server: InProcess, path: str, body: bytes, *headers: str) -> httpx2.Response:
    """The response to exactly these bytes."""
    with Wire(server.port) as wire:
        wire.head(path, f"Content-Length: {len(body)}", "Connection: close", *headers)
        wire.send(body)
        head, _, content = wire.read_all().partition(b"\r\n\r\n")
    return httpx2.Response(int(head.split()[1]), content=content)


def base64_of(content: bytes) -> str:
    return base64.b64encode(content).decode()


def small_png() -> bytes:
    """A PNG whose base64 contains pluses, not in a multiple of four."""
    for size in range(20, 60):
        buffer = io.BytesIO()
        with Image.open(CAT) as cat:
            cat.resize((size, size)).save(buffer, "PNG")
        if base64_of(buffer.getvalue()).count("+") % 4:
            return buffer.getvalue()
    raise AssertionError


@pytest.fixture(scope="module")
def plain(app_server: InProcess) -> dict[str, Any]:
    """The answer to the photograph as a raw body."""
    answer: dict[str, Any] = post(app_server, "/v1/predict", PHOTO, "Content-Type: image/jpeg").json()
    assert answer["predictions"][0]["label"]
    return answer


# Byte-order marks

MARKED = [
    pytest.param(lambda text: codecs.BOM_UTF8 + text.encode(), id="UTF-8"),
    pytest.param(lambda text: codecs.BOM_UTF16_LE + text.encode("utf-16-le"), id="UTF-16 LE"),
    pytest.param(lambda text: codecs.BOM_UTF16_BE + text.encode("utf-16-be"), id="UTF-16 BE"),
    pytest.param(lambda text: codecs.BOM_UTF32_LE + text.encode("utf-32-le"), id="UTF-32 LE"),
]
DOCUMENTS: dict[str, Any] = {
    "/v1/predict": {"image": BASE64},
    "/v1/predict/batch": {"images": [BASE64]},
    "/v1/embed": {"image": BASE64},
    "/v1/embed/batch": {"images": [BASE64]},
    "/predict": {"image": BASE64},
    "/invocations": {"instances": [{"b64": BASE64}]},
    f"/models/{MODEL}": {"inputs": BASE64},
    f"/predictions/{MODEL}": {"data": BASE64},
    f"/v1/models/{MODEL}:predict": {"instances": [{"b64": BASE64}]},
    f"/v1/models/{MODEL}:classify": {"examples": [{"image": {"b64": BASE64}}]},
    f"/v2/models/{MODEL}/infer": {"inputs": [{"name": "x", "shape": [1], "datatype": "BYTES", "data": [BASE64]}]},
}


@pytest.mark.parametrize("path", DOCUMENTS)
@pytest.mark.parametrize("mark", MARKED)
def test_a_byte_order_mark_before_json_is_accepted_on_every_route(app_server: InProcess, path: str, mark: Any) -> None:
    text = json.dumps(DOCUMENTS[path])
    without = post(app_server, path, text.encode(), "Content-Type: application/json")
    assert without.status_code == 200
    marked = post(app_server, path, mark(text), "Content-Type: application/json; charset=utf-8")
    assert (marked.status_code, marked.json()) == (200, without.json())


def test_a_byte_order_mark_counts_to_the_length_of_the_json_before_binary_tensors(app_server: InProcess) -> None:
    size = len(PHOTO) + 4
    tensor = {"name": "x", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": size}}
    binary = len(PHOTO).to_bytes(4, "little") + PHOTO
    answers = []
    for mark in (b"", codecs.BOM_UTF8):
        head = mark + json.dumps({"inputs": [tensor]}).encode()
        length = f"Inference-Header-Content-Length: {len(head)}"
        answers.append(post(app_server, f"/v2/models/{MODEL}/infer", head + binary, length))
    assert [answer.status_code for answer in answers] == [200, 200]
    assert answers[0].json() == answers[1].json()


def test_json_with_a_mark_and_without_its_content_type_gets_the_hint(app_server: InProcess) -> None:
    answer = post(app_server, "/v1/predict", codecs.BOM_UTF8 + json.dumps({"image": BASE64}).encode())
    assert (answer.status_code, "Content-Type: application/json" in answer.json()["detail"]) == (415, True)


@pytest.mark.parametrize("body", [codecs.BOM_UTF16_LE + b"{", codecs.BOM_UTF8, codecs.BOM_UTF8 * 2 + b"{}"])
def test_a_mark_before_what_is_no_json_is_a_400(app_server: InProcess, body: bytes) -> None:
    answer = post(app_server, "/v1/predict", body, "Content-Type: application/json")
    assert (answer.status_code, answer.json()["code"]) == (400, "malformed_request")


# Multipart bodies

FORM = "Content-Type: multipart/form-data; boundary=b"
HEAD = b'Content-Disposition: form-data; name="file"; filename="a.jpg"\r\nContent-Type: image/jpeg'
PART = b"--b\r\n" + HEAD + b"\r\n\r\n" + PHOTO + b"\r\n"
END = b"--b--\r\n"
LINES = base64.encodebytes(PHOTO).replace(b"\n", b"\r\n")


def encoded(encoding: bytes, content: bytes) -> bytes:
    return b"--b\r\n" + HEAD + b"\r\nContent-Transfer-Encoding: " + encoding + b"\r\n\r\n" + content + b"\r\n" + END


BODIES: dict[str, bytes] = {
    "a preamble": b"This is a multi-part message in MIME format.\r\n" + PART + END,
    "a preamble of several lines": b"MIME-Version: 1.0\r\n\r\n--c\r\n --b\r\n--\r\n" + PART + END,
    "an empty line first": b"\r\n\r\n" + PART + END,
    "an epilogue": PART + END + b"\r\nThe end.\r\n--b\r\n--b--\r\n",
    "no line break at the end": PART + END.rstrip(),
    "white space after the boundaries": PART.replace(b"--b\r\n", b"--b \t\r\n", 1) + b"--b-- \t\r\n",
    "a folded header": PART.replace(b'name="file"; ', b'name="file";\r\n ') + END,
    "a header folded twice": PART.replace(b"form-data; ", b"form-data;\r\n\t").replace(b"; file", b"\r\n ; file") + END,
    "white space before the colon": PART.replace(b"Disposition:", b"disposition :\t") + END,
    "a token for a name": PART.replace(b'"file"', b"file") + END,
    "base64": encoded(b"base64", BASE64.encode()),
    "base64 in lines": encoded(b"BASE64", LINES),
    "base64 without padding": encoded(b"base64", BASE64.rstrip("=").encode()),
    "quoted-printable": encoded(b"quoted-printable", binascii.b2a_qp(PHOTO, istext=False).replace(b"\n", b"\r\n")),
    "binary": encoded(b"binary", PHOTO),
    "8bit": encoded(b"8BIT", PHOTO),
    "an empty part without content": b'--b\r\nContent-Disposition: form-data; name="note"\r\n\r\n' + PART + END,
    "a part without headers": b"--b\r\n\r\nnote\r\n" + PART + END,
}


@pytest.mark.parametrize("name", BODIES)
def test_a_form_is_read_as_rfc_2046_has_it(app_server: InProcess, plain: dict[str, Any], name: str) -> None:
    answer = post(app_server, "/v1/predict", BODIES[name], FORM)
    assert (answer.status_code, answer.json()) == (200, plain)


@pytest.mark.parametrize("name", BODIES)
def test_also_where_its_first_and_last_bytes_come_one_by_one(
    app_server: InProcess, plain: dict[str, Any], name: str
) -> None:
    body = BODIES[name]
    with Wire(app_server.port) as wire:
        wire.head("/v1/predict", f"Content-Length: {len(body)}", "Connection: close", FORM)
        for byte in body[:300]:
            wire.send(bytes([byte]))
        wire.send(body[300:-300])
        for byte in body[-300:]:
            wire.send(bytes([byte]))
        content = wire.read_all().partition(b"\r\n\r\n")[2]
    assert json.loads(content) == plain


@pytest.mark.parametrize("subtype", ["form-data", "mixed", "related"])
def test_what_pythons_mail_library_writes_is_read(app_server: InProcess, plain: dict[str, Any], subtype: str) -> None:
    message = MIMEMultipart(subtype)
    message.preamble = "This is a multi-part message in MIME format."
    message.epilogue = "The end."
    option = MIMEText("3", _charset="utf-8")  # in base64
    option.add_header("Content-Disposition", "form-data", name="top_k")
    picture = MIMEImage(PHOTO, "jpeg")
    picture.add_header("Content-Disposition", "form-data", name="file", filename=("utf-8", "", "naïve.jpg"))
    message.attach(option)
    message.attach(picture)
    head, _, body = message.as_bytes(policy=email.policy.HTTP).partition(b"\r\n\r\n")
    kind = head.decode().replace("\r\n ", " ").split("Content-Type: ")[1].split("\r\n")[0]
    answer = post(app_server, "/v1/predict", body, f"Content-Type: {kind}")
    assert answer.status_code == 200
    assert answer.json()["predictions"] == plain["predictions"][:3]


NAMES = [
    (rb'filename="a\"b\".jpg"', 'a"b".jpg'),
    (rb'filename="a\\b.jpg"', "a\\b.jpg"),
    (b'filename="a;b=c.jpg"', "a;b=c.jpg"),
    (b"filename=cat.jpg", "cat.jpg"),
    (b'FileName = "cat.jpg"', "cat.jpg"),
    ('filename="na\u00efve.jpg"'.encode(), "naïve.jpg"),
    ('filename="na\u00efve.jpg"'.encode("latin-1"), "naïve.jpg"),
    (b"filename*=UTF-8''na%C3%AFve%20cat.jpg", "naïve cat.jpg"),
    (b"filename*=utf-8'en'%E7%8C%AB.jpg", "猫.jpg"),
    (b"filename*=iso-8859-1''na%EFve.jpg", "naïve.jpg"),
    (b"filename=\"naive.jpg\"; filename*=UTF-8''na%C3%AFve.jpg", "naïve.jpg"),
    (b"filename*=UTF-8''na%C3%AFve.jpg; filename=\"naive.jpg\"", "naïve.jpg"),
    (b"filename*0*=UTF-8''na%C3%AF; filename*1=\"ve cat\"; filename*2*=%2Ejpg", "naïve cat.jpg"),
    (b"filename=\"naive.jpg\"; filename*=nonesuch''na%C3%AFve.jpg", "naive.jpg"),
    (b'filename="=?utf-8?B?bmHDr3ZlLmpwZw==?="', "naïve.jpg"),
    (b'filename="=?iso-8859-1?Q?na=EFve_cat?=.jpg"', "naïve cat.jpg"),
    (b'filename="na%C3%AFve.jpg"', "naïve.jpg"),
    (b'filename="a%22b.jpg"', 'a"b.jpg'),
    (b'filename="100%25 wool.jpg"', "100%25 wool.jpg"),
    (b'filename="50% off.jpg"', "50% off.jpg"),
    (rb'filename="C:\pictures\cat.jpg"', "cat.jpg"),
    (b'filename="long;\r\n name.jpg"', "long; name.jpg"),
    (b"filename*=unicode_escape''%5Cud800.jpg", "?.jpg"),
    (b"filename*=utf-7''+2AA-.jpg", "?.jpg"),
    (b'filename="=?utf-7?Q?+2AA-?=.jpg"', "?.jpg"),
    *((f'filename="{name}.jpg"'.encode(), f"{name}.jpg") for name in HUMAN_NAMES.values()),
]


@pytest.mark.parametrize(("parameter", "name"), NAMES, ids=[name for _, name in NAMES])
def test_file_names_are_decoded(app_server: InProcess, plain: dict[str, Any], parameter: bytes, name: str) -> None:
    body = PART.replace(b'filename="a.jpg"', parameter) + END
    answer = post(app_server, "/v1/predict/batch", body, FORM)
    assert answer.status_code == 200
    assert answer.json()["results"] == [{"filename": name, "predictions": plain["predictions"]}]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (encoded(b"base64", b"?" * 100), "is not valid base64"),
        (encoded(b"x-uuencode", PHOTO), "Content-Transfer-Encoding 'x-uuencode' is not supported"),
        (PART.replace(b"\r\n", b"\n") + END, "does not contain the boundary"),
        (PART.replace(b"--b", b"--c") + END.replace(b"b", b"c"), "does not contain the boundary"),
        (PART, "truncated"),
        (PART + b"--b-", "truncated"),
        (
            PART.replace(b"Content-Type: image/jpeg", b"image/jpeg") + END,
            "has the line 'image/jpeg' instead of a header",
        ),
        (b"--b\r\n " + HEAD + b"\r\n\r\n" + PHOTO + b"\r\n" + END, "instead of a header"),
    ],
)
def test_what_is_broken_is_named(app_server: InProcess, body: bytes, reason: str) -> None:
    answer = post(app_server, "/v1/predict", body, FORM)
    assert (answer.status_code, answer.json()["code"]) == (400, "malformed_request")
    assert reason in answer.json()["detail"]


def test_a_part_that_is_not_valid_base64_fails_alone_in_a_batch(app_server: InProcess, plain: dict[str, Any]) -> None:
    bad = encoded(b"base64", b"A" * 30 + b"=" + b"A" * 70_000).removesuffix(END)
    first, second = post(app_server, "/v1/predict/batch", bad + PART + END, FORM).json()["results"]
    assert first["error"]["code"] == "malformed_request"
    assert second["predictions"] == plain["predictions"]


def test_the_limit_of_an_image_applies_to_the_decoded_part() -> None:
    with served(model=MODEL, max_upload_bytes=len(PHOTO)) as server:
        assert post(server, "/v1/predict", encoded(b"base64", LINES), FORM).status_code == 200
        longer = base64.encodebytes(PHOTO + b"\0")
        answer = post(server, "/v1/predict", encoded(b"base64", longer), FORM)
    assert (answer.status_code, answer.json()["code"]) == (413, "payload_too_large")


# data: URLs and base64

SMALL = small_png()
SMALL64 = base64_of(SMALL)


@pytest.mark.parametrize(
    "text",
    [
        "data:image/png;base64," + urllib.parse.quote(SMALL64, safe=""),
        "data:image/png;base64," + urllib.parse.quote(SMALL64, safe="").replace("%2B", "%2b"),
        urllib.parse.quote(f"data:image/png;base64,{SMALL64}", safe=""),
        urllib.parse.quote(f"data:image/png;base64,{SMALL64}", safe=":/;"),
        "data:image/png;base64," + "".join(f"%{ord(c):02X}" for c in SMALL64),
        f"data:image/png; base64,{SMALL64}",
        f"data:image/png;charset=utf-8; BASE64 ,{SMALL64}",
        f"data:;base64,{SMALL64}",
        f" DATA:image/png;base64, {SMALL64}\n",
        "data:image/png," + urllib.parse.quote(SMALL),
        "data:image/png;base64," + base64.urlsafe_b64encode(SMALL).decode(),
        urllib.parse.quote(SMALL64, safe=""),
        SMALL64.replace("+", " "),
        "data:image/png;base64," + SMALL64.replace("+", " "),
        "\n".join(SMALL64[at : at + 76] for at in range(0, len(SMALL64), 76)).replace("+", " "),
        " ".join(SMALL64[at : at + 76] for at in range(0, len(SMALL64), 76)),
        " ".join(SMALL64.replace("+", "-").replace("/", "_")[at : at + 4] for at in range(0, len(SMALL64), 4)),
    ],
    ids=lambda text: repr(text[:40]),
)
def test_base64_is_read_in_all_the_ways_that_it_is_sent(app_server: InProcess, text: str) -> None:
    right = post(app_server, "/v1/predict", SMALL, "Content-Type: image/png").json()
    answer = post(app_server, "/v1/predict", json.dumps({"image": text}).encode(), "Content-Type: application/json")
    assert (answer.status_code, answer.json()) == (200, right)
    batch = post(
        app_server, "/v1/predict/batch", json.dumps({"images": [text]}).encode(), "Content-Type: application/json"
    )
    assert batch.json()["results"][0]["predictions"] == right["predictions"]


@pytest.mark.parametrize("blank", [" ", "\n", "\r\n "])
def test_spaces_between_lines_of_equal_length_are_no_pluses(app_server: InProcess, blank: str) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (640, 640)).save(buffer, "BMP")
    text = base64_of(buffer.getvalue())
    assert "+" not in text
    right = post(app_server, "/v1/predict", buffer.getvalue(), "Content-Type: image/bmp").json()
    lines = blank.join(text[at : at + 64] for at in range(0, len(text), 64))
    answer = post(app_server, "/v1/predict", json.dumps({"image": lines}).encode(), "Content-Type: application/json")
    assert (answer.status_code, answer.json()) == (200, right)


@pytest.mark.parametrize(
    "text",
    [
        "data:image/png;base64," + SMALL64 + "%",
        "data:image/png;base64," + SMALL64 + "%4",
        "data:image/png;base64,%GG" + SMALL64,
        "data:image/png,%zz",
        "data:image/png,%%%",
        "%%41",
        SMALL64 + "%%",
        "data:image/png,plain",
        "data:image/png;base64",
    ],
)
def test_a_broken_url_is_a_400(app_server: InProcess, text: str) -> None:
    answer = post(app_server, "/v1/predict", json.dumps({"image": text}).encode(), "Content-Type: application/json")
    assert (answer.status_code, answer.json()["code"]) == (400, "malformed_request")


# Content-Encoding


@pytest.mark.parametrize(
    "headers",
    [
        ["Content-Encoding: Identity"],
        ["Content-Encoding: IDENTITY "],
        ["Content-Encoding:"],
        ["Content-Encoding: , identity,"],
        ["Content-Encoding: identity", "Content-Encoding: "],
    ],
)
def test_a_content_encoding_that_changes_nothing_is_accepted(
    app_server: InProcess, plain: dict[str, Any], headers: list[str]
) -> None:
    answer = post(app_server, "/v1/predict", PHOTO, "Content-Type: image/jpeg", *headers)
    assert (answer.status_code, answer.json()) == (200, plain)


@pytest.mark.parametrize("encoding", ["gzip", "UTF-8", "identity, gzip", "base64"])
def test_any_other_is_named(app_server: InProcess, encoding: str) -> None:
    answer = post(app_server, "/v1/predict", PHOTO, "Content-Type: image/jpeg", f"Content-Encoding: {encoding}")
    assert answer.status_code == 415
    assert f"Content-Encoding '{encoding}' is not supported" in answer.json()["detail"]
