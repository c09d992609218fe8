"""JSON documents and the base64 in them, with bounds on values, memory and the time that the interpreter is held.

``orjson`` holds the interpreter (the GIL) for a whole call, in any thread, so the size of a document is bounded.
Everything else is processed in pieces.
"""

import asyncio
import codecs
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import orjson
import pybase64

from app.errors import MalformedRequest

Body = bytes | bytearray
T = TypeVar("T")

_VALUES = 10_000  # most values of a JSON document: two bytes of JSON can take a hundred in memory
_THREAD_BYTES = 64 * 2**10  # larger documents are parsed in a thread
_ALONE_BYTES = 2**20  # larger documents are parsed one at a time
_PAUSES = 3  # the pause after a large document, as a multiple of its time
_PIECE = 2**18
_TEXT_BYTES = 4096  # that decide whether a body is text

_BLANK = b" \t\n\r\v\f"
_URL_SAFE = bytes.maketrans(b"-_", b"+/")


class Desk:
    """Parses documents: small ones on the event loop, others in threads, and large ones one at a time."""

    def __init__(self) -> None:
        self._large = asyncio.Semaphore(1)

    async def parse(self, parse: Callable[[Body], T], content: Body) -> T:
        """The result of ``parse(content)``."""
        if len(content) <= _THREAD_BYTES:
            return parse(content)
        if len(content) <= _ALONE_BYTES:
            return await asyncio.to_thread(parse, content)
        await self._large.acquire()
        started = time.monotonic()
        try:
            return await asyncio.to_thread(parse, content)
        finally:  # leaves the interpreter to other threads for most of the time
            pause_s = _PAUSES * (time.monotonic() - started)
            asyncio.get_running_loop().call_later(pause_s, self._large.release)


def loads(
    content: Body,
    more: int = 0,
    binary_advice: str = "send an image with its own Content-Type, such as image/jpeg",
    size_advice: str = "",
) -> object:
    """A JSON document of at most ``_VALUES`` and ``more`` values. Raises MalformedRequest.

    ``binary_advice``: what to do if the body is an image; ``size_advice``: if it has too many values.
    """
    if _has_more_values(content, _VALUES + more):
        advice = size_advice and f"; {size_advice}"
        raise MalformedRequest(f"the JSON body has more than {_VALUES + more} values{advice}")
    try:
        document: object = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        if _is_text(content):
            raise MalformedRequest(f"the body is not valid JSON: {error}") from None
        raise MalformedRequest(f"the body is binary, not JSON; {binary_advice}") from None
    return document


def from_base64(text: str) -> bytes:
    """Decode base64 in either alphabet, with or without padding, with white space anywhere.

    Raises ValueError. Needs twice the memory of the result.
    """
    text = text.rstrip("= \t\n\r\v\f")
    content, rest = bytearray(), b""
    for start in _pieces(len(text)):
        digits = rest + text[start : start + _PIECE].encode("ascii").translate(_URL_SAFE, _BLANK)
        if b"=" in digits:
            raise ValueError("padding within the text")
        whole = len(digits) & ~3
        content += pybase64.b64decode(memoryview(digits)[:whole], validate=True)
        rest = digits[whole:]
    content += pybase64.b64decode(rest + b"=" * (-len(rest) % 4), validate=True)
    return bytes(content)


def _has_more_values(content: Body, most: int) -> bool:
    """Whether a document has more values, counted by the signs before them, up to the limit."""
    found = 0
    for start in _pieces(len(content)):
        found += sum(content.count(sign, start, start + _PIECE) for sign in (b",", b"[", b"{"))
        if found > most:
            return True
    return False


def _pieces(length: int) -> Iterator[int]:
    """The beginnings of pieces. Other threads get the interpreter between them, instead of every 5 ms at most."""
    for start in range(0, length, _PIECE):
        yield start
        time.sleep(0)


def _is_text(content: Body) -> bool:
    """Whether the body begins with text."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(content[:_TEXT_BYTES])
    except UnicodeDecodeError:
        return False
    return True
