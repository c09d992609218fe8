"""JSON and base64: what is read, and what reading it takes."""

import base64
import os
import tracemalloc

import pytest

from app.api.documents import from_base64, loads
from app.errors import MalformedRequest

CONTENT = os.urandom(3_000_001)
TEXT = base64.b64encode(CONTENT).decode()


@pytest.mark.parametrize("blank", ["\n", "\r\n", " ", "\t", " \r\n\t\v\f"])
@pytest.mark.parametrize("width", [2, 3, 76])
def test_white_space_may_stand_anywhere(blank: str, width: int) -> None:
    text = blank.join(TEXT[:40_000][start : start + width] for start in range(0, 40_000, width))
    assert from_base64(blank + text + blank) == CONTENT[:30_000]


@pytest.mark.parametrize("length", [*range(1, 9), 786_431, 786_432, 786_433, len(CONTENT)])
@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
def test_both_alphabets_are_read_with_and_without_padding(length: int, encode: object) -> None:
    text = encode(CONTENT[:length]).decode()  # type: ignore[operator]
    for given in (text, text.rstrip("="), text.rstrip("=") + "\n=\n=\n"):
        assert from_base64(given) == CONTENT[:length]


@pytest.mark.parametrize(
    "text",
    [
        "A",
        "AAAAA",
        "AA==AAAA",
        "AAAA=AAA",
        "A" * 2**20 + "==AA",
        "A" * 2**20 + "!",
        "AA*A",
        "AAA\u00e4",
        "\u2028AAAA",
        "A\0AA",
    ],
)
def test_what_is_no_base64_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        from_base64(text)


@pytest.mark.parametrize("blank", ["", "\n", "\t "])
def test_decoding_takes_little_memory_beside_the_text(blank: str) -> None:
    """Two bytes a word took sixty times the memory of the text."""
    text = blank.join(["QU"] * 1_500_000)
    tracemalloc.start()
    try:
        assert len(from_base64(text)) == 2_250_000
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2.5 * len(text) + 4 * 2**20


def test_a_document_of_many_values_is_refused_before_it_is_read() -> None:
    content = b"[" + b"0," * 20_000_000 + b"0]"
    tracemalloc.start()
    try:
        with pytest.raises(MalformedRequest, match="the JSON body has more than 10000 values"):
            loads(content)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2**20


def test_more_values_are_read_where_they_are_expected() -> None:
    values = list(range(20_000))
    assert loads(str(values).encode(), 10_000) == values
    with pytest.raises(MalformedRequest, match="more than 19998 values; send fewer"):
        loads(str(values).encode(), 9_998, size_advice="send fewer")


def test_an_image_sent_as_json_is_refused_without_reading_all_of_it() -> None:
    content = b"\xff\xd8\xff" + bytes(30_000_000)
    tracemalloc.start()
    try:
        with pytest.raises(MalformedRequest, match="binary, not JSON; send an image with its own Content-Type"):
            loads(content)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2**20
