"""JSON documents and the base64 in them, with bounded values, memory and time at which the interpreter is held.

``orjson`` holds the interpreter for as long as a call takes, on whatever thread, so the size of a document is bounded.
Everything else is worked on piece by piece.
"""

import asyncio
import codecs
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import orjson
import pybase64

from app.errors import MalformedRequest

Body = bytes | bytearray
T = TypeVar("T")

_VALUES = 10_000  # most values of a JSON document: what two bytes are in it takes a hundred in memory
_THREAD_BYTES = 64 * 2**10  # larger documents are parsed in a thread
_ALONE_BYTES = 2**20  # larger documents are parsed one at a time
_PAUSES = 3  # how much longer than a large document takes the next one waits
_PIECE = 2**18
_LOOK_BYTES = 4096

_BLANK = b" \t\n\r\v\f"
_URL_SAFE = bytes.maketrans(b"-_", b"+/")


class Desk:
    """Where documents are parsed: small ones on the event loop, others on threads, and only one large one at a time."""

    def __init__(self) -> None:
        self._large = asyncio.Semaphore(1)

    async def parse(self, parse: Callable[[Body], T], content: Body) -> T:
        """``parse(content)``. Raises what it raises."""
        if len(content) <= _THREAD_BYTES:
            return parse(content)
        if len(content) <= _ALONE_BYTES:
            return await asyncio.to_thread(parse, content)
        await self._large.acquire()
        started = time.monotonic()
        try:
            return await asyncio.to_thread(parse, content)
        finally:  # the interpreter is left to others for most of the time
            pause_s = _PAUSES * (time.monotonic() - started)
            asyncio.get_running_loop().call_later(pause_s, self._large.release)


def loads(
    content: Body,
    more: int = 0,
    otherwise: str = "an image needs its own Content-Type, as image/jpeg",
    instead: str = "",
) -> Any:
    """A JSON document of a sane number of values, and so many ``more``. Raises MalformedRequest.

    ``otherwise``: what to do with an image that is no JSON; ``instead``: with too many values.
    """
    if _has_more_values(content, _VALUES + more):
        advice = instead and f": {instead}"
        raise MalformedRequest(f"the JSON body has more values than images need, more than {_VALUES + more}{advice}")
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError as error:
        why = str(error) if _is_text(content) else otherwise
        raise MalformedRequest(f"the body is no JSON: {why}") from None


def from_base64(text: str) -> bytes:
    """The bytes of base64 in either alphabet, with or without padding, white space anywhere.

    Raises ValueError where it is none. Takes the memory of its result twice.
    """
    text = text.rstrip("= \t\n\r\v\f")
    content, rest = bytearray(), b""
    for start in _pieces(len(text)):
        digits = rest + text[start : start + _PIECE].encode("ascii").translate(_URL_SAFE, _BLANK)
        if b"=" in digits:
            raise ValueError("padding in mid-text")
        whole = len(digits) & ~3
        content += pybase64.b64decode(memoryview(digits)[:whole], validate=True)
        rest = digits[whole:]
    content += pybase64.b64decode(rest + b"=" * (-len(rest) % 4), validate=True)
    return bytes(content)


def _has_more_values(content: Body, most: int) -> bool:
    """Whether the signs before values are more than that, found without looking further than needed."""
    found = 0
    for start in _pieces(len(content)):
        found += sum(content.count(sign, start, start + _PIECE) for sign in (b",", b"[", b"{"))
        if found > most:
            return True
    return False


def _pieces(length: int) -> Iterator[int]:
    """Where pieces begin; between them others may have the interpreter, which they else may ask for every 5 ms."""
    for start in range(0, length, _PIECE):
        yield start
        time.sleep(0)


def _is_text(content: Body) -> bool:
    """Whether it begins as text does."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(content[:_LOOK_BYTES])
    except UnicodeDecodeError:
        return False
    return True
