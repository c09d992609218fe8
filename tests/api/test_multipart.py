"""Multipart bodies: what is counted, and that refusing what is too much costs little."""

import asyncio
import random
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import httpx2
import pytest
from starlette.requests import Request

from app.api.forms import ONE, SEVERAL, Form, Upload
from app.api.multipart import Multipart
from app.api.parts import Calls, Parts
from app.errors import MalformedRequest, PayloadTooLarge
from app.settings import Settings
from tests.api.conftest import InProcess
from tests.api.wire import multipart
from tests.conftest import CAT, slow

PHOTO = CAT.read_bytes()
SETTINGS = Settings(_env_file=None, max_upload_bytes=40_000_000)
BEGIN = b"--b\r\n"
IMAGE = b'Content-Disposition: form-data; name="file"; filename="a.jpg"\r\n\r\n'


def parser(form: Form = ONE, kind: str = "multipart/form-data; boundary=b") -> Multipart:
    return Multipart(Request({"type": "http", "headers": [(b"content-type", kind.encode())]}), SETTINGS, form)


def parsed(body: bytes, form: Form = ONE, size: int = 65_536) -> list[Upload]:
    """The images of a body that comes in chunks of this size."""
    reading = parser(form)

    async def feed() -> None:
        for start in range(0, len(body), size):
            await reading.feed(body[start : start + size])

    asyncio.run(feed())
    return reading.images()


def seconds(body: bytes, form: Form = ONE, refused: str = "") -> float:
    """CPU time that it takes to parse a body, or to refuse it."""
    started = time.process_time()
    if refused:
        with pytest.raises(MalformedRequest, match=refused):
            parsed(body, form)
    else:
        parsed(body, form)
    return time.process_time() - started


def part(name: str, content: bytes, *headers: bytes) -> bytes:
    lines = b"".join(header + b"\r\n" for header in headers)
    return BEGIN + lines + f'Content-Disposition: form-data; name="{name}"\r\n\r\n'.encode() + content + b"\r\n"


@pytest.mark.parametrize("size", [1, 7, 1000, 65_536, 10_000_000])
def test_a_body_is_read_alike_in_chunks_of_any_size(size: int) -> None:
    content = (b"\r\n--\r\n--a" + bytes(range(256))) * 100
    body = part("top_k", b"5") + BEGIN + IMAGE + content + b"\r\n" + part("image", b"\xff") + b"--b--\r\nepilogue"
    assert parsed(body, SEVERAL, size) == [Upload(content, "a.jpg"), Upload(b"\xff")]


def test_what_is_behind_the_last_boundary_costs_nothing() -> None:
    whole = BEGIN + IMAGE + b"x\r\n--b--\r\n"
    assert parsed(whole + BEGIN * 1000) == [Upload(b"x", "a.jpg")]


@pytest.mark.parametrize(("form", "images"), [(ONE, 1), (SEVERAL, 32)])
def test_there_may_be_so_many_parts_besides_the_images(form: Form, images: int) -> None:
    others = part("option", b"x" * 256) * 32
    several = part("file", b"x") * images
    assert len(parsed(others + several + b"--b--\r\n", form)) == images
    with pytest.raises(MalformedRequest, match=f"more than {images + 32} parts; send at most {images} images"):
        parsed(part("option", b"") + others + several + b"--b--\r\n", form)


def test_more_images_than_a_batch_may_have_are_refused() -> None:
    with pytest.raises(PayloadTooLarge, match="more than 32 images"):
        parsed(part("file", b"x") * 33 + b"--b--\r\n", SEVERAL)


def test_what_is_no_image_must_be_short() -> None:
    with pytest.raises(MalformedRequest, match="has more than 256 bytes; send an image"):
        parsed(part("notes", b"x" * 257) + part("file", b"x") + b"--b--\r\n")


def test_a_part_may_have_eight_headers() -> None:
    assert parsed(part("file", b"x", *[b"X-A: b"] * 7) + b"--b--\r\n")
    with pytest.raises(MalformedRequest, match="header"):
        parsed(part("file", b"x", *[b"X-A: b"] * 8) + b"--b--\r\n")


@pytest.mark.parametrize(
    "header",
    [b"X: " + b"a" * 5000, b"X" * 5000 + b": a", b"Content-Disposition: form-data" + b"; a" * 40],
    ids=["a long value", "a long name", "many parameters"],
)
def test_headers_are_bounded(header: bytes) -> None:
    with pytest.raises(MalformedRequest, match="header"):
        parsed(BEGIN + header + b"\r\n\r\nx\r\n--b--\r\n")


@pytest.mark.parametrize("more", ["; a=b" * 40, "; a" * 300, f"; a={'b' * 2000}"])
def test_so_is_the_content_type(more: str) -> None:
    with pytest.raises(MalformedRequest, match=r"characters|parameters"):
        parser(kind=f"multipart/form-data; boundary=b{more}")


EIGHT = b"".join(b"X-Header-%d: some value\r\n" % number for number in range(8))
ATTACKS: dict[str, tuple[bytes, str]] = {
    "empty parts": ((BEGIN + b"\r\n\r\n") * 2_000_000, "more than"),
    "parts with eight headers": ((BEGIN + EIGHT + b"\r\n\r\n") * 80_000, "more than"),
    "nearly boundaries": (BEGIN + IMAGE + b"\r\n--bX" * 3_000_000, "more than"),
    "boundaries that nearly end": (BEGIN + IMAGE + b"\r\n--b-X" * 3_000_000, "more than"),
    "white space behind a boundary": (BEGIN + IMAGE + b"\r\n--b" + b" " * 20_000_000, "white space"),
    "headers without end": (BEGIN + b"X: y\r\n" * 3_000_000, "header"),
    "images without a body": ((BEGIN + IMAGE + b"\r\n") * 200_000, "more than one image"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_refusing_costs_less_than_reading_as_many_bytes_of_an_image(name: str) -> None:
    """Each of these took several seconds."""
    body, refused = ATTACKS[name]
    image = BEGIN + IMAGE + bytes(len(body)) + b"\r\n--b--\r\n"
    calm = min(seconds(image) for _ in range(3))
    assert min(seconds(body, refused=refused) for _ in range(3)) < 3 * calm + 0.05


@pytest.mark.parametrize(
    "filler",
    [
        *(b"\r", b"\r\n--", b"\r\n--\r", b"--b"),
        *map(slow, (b"\r\n", b"\r\n-", bytes(1), b"-", b"\r\n--a")),
    ],
)
def test_no_image_is_costly_to_read(filler: bytes) -> None:
    count = 20_000_000 // len(filler)
    calm = min(seconds(BEGIN + IMAGE + b"x" * 20_000_000 + b"\r\n--b--\r\n") for _ in range(3))
    body = BEGIN + IMAGE + filler * count + b"x\r\n--b--\r\n"
    assert min(seconds(body) for _ in range(3)) < 10 * calm + 0.05


def test_long_parsing_lets_others_run() -> None:
    """A turn of the event loop for every 64 KiB of a chunk."""
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def feed() -> None:
        counting = asyncio.create_task(count())
        await parser().feed(BEGIN + IMAGE + bytes(2**20))
        counting.cancel()

    asyncio.run(feed())
    assert turns >= 16


@pytest.mark.parametrize("several", [False, True])
def test_an_option_that_is_a_form_field_passes(app_server: InProcess, several: bool) -> None:
    parts: list[tuple[str, Any, bytes]] = [("note", None, b"x" * 256), ("file", "cat.jpg", PHOTO)]
    kind, body = multipart(*parts)
    url = f"{app_server.url}/v1/predict{'/batch' if several else ''}"
    assert httpx2.post(url, content=body, headers={"Content-Type": kind}).status_code == 200
    kind, body = multipart(("note", None, b"x" * 257), *parts)
    answer = httpx2.post(url, content=body, headers={"Content-Type": kind})
    assert (answer.status_code, answer.json()["code"]) == (400, "malformed_request")


TOKENS = [
    b"--b",
    b"--",
    b"-",
    b"b",
    b"\r\n",
    b"\r",
    b"\n",
    b" ",
    b"\t",
    b"X: y",
    b":",
    b"\r\n\r\n",
    b"\r\n--b\r\n",
    b"\r\n--b--",
]


def pieces(body: bytes, ends: Sequence[int]) -> tuple[list[bytes], str, bool]:
    """The contents of the parts, the error, and whether the body is whole, if it comes in pieces with these ends."""
    contents: list[bytes] = []

    def more(data: bytes) -> None:
        contents[-1] += data

    calls = Calls(begin=lambda headers: contents.append(b""), content=more, end=lambda: None)
    parts = Parts(b"b", calls, 5, MalformedRequest("too many"))
    try:
        for start, end in pairwise([0, *ends, len(body)]):
            parts.feed(body[start:end])
    except MalformedRequest as error:
        return [], error.detail, False
    return contents if parts.whole else [], "", parts.whole


def test_any_bytes_are_read_alike_in_pieces_of_any_size() -> None:
    chance, whole = random.Random(0), 0
    for _ in range(3000):
        body = b"--b\r\n" + b"".join(chance.choices(TOKENS, k=chance.randrange(25)))
        at_once = pieces(body, [])
        assert pieces(body, range(1, len(body))) == at_once
        assert pieces(body, sorted(chance.choices(range(len(body)), k=3))) == at_once
        whole += at_once[2]
    assert whole > 300
