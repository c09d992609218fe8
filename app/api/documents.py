"""JSON documents and the base64 in them, with bounds on values, memory and the time that the interpreter is held.

``orjson`` holds the interpreter (the GIL) for a whole call, in any thread, so the size of a document is bounded.
Everything else is processed in pieces.
"""

import asyncio
import codecs
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np
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
_LINE_BREAKS = "\t\n\r\v\f"
_URL_SAFE = bytes.maketrans(b"-_", b"+/")
_WIDE = {  # UTF-32 first: its mark begins with UTF-16's
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_HEX = np.full(256, 16, np.uint8)  # the value of a hexadecimal digit; 16 for any other byte
_HEX[list(b"0123456789")] = np.arange(10)
_HEX[list(b"ABCDEF")] = _HEX[list(b"abcdef")] = np.arange(10, 16)
_ESCAPE = 3  # bytes of %41


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

    It is UTF-8, or UTF-16 or UTF-32 with a byte-order mark.
    ``binary_advice``: what to do if the body is an image; ``size_advice``: if it has too many values.
    """
    content = _in_utf8(content)
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


class Base64Decoder:
    """Decodes base64 piece by piece: in either alphabet, with or without padding, with white space anywhere."""

    def __init__(self) -> None:
        self._rest = b""
        self._padded = False

    def decode(self, text: bytes) -> bytes:
        """The bytes of the next piece. Raises ValueError."""
        digits = text.translate(_URL_SAFE, _BLANK)
        if self._padded or b"=" in digits:
            self._padded, digits = True, self._without_padding(digits)
        digits = self._rest + digits
        whole = len(digits) & ~3
        self._rest = digits[whole:]
        return pybase64.b64decode(memoryview(digits)[:whole], validate=True)

    def end(self) -> bytes:
        """The last bytes. Raises ValueError."""
        return pybase64.b64decode(self._rest + b"=" * (-len(self._rest) % 4), validate=True)

    def _without_padding(self, digits: bytes) -> bytes:
        bare = digits.rstrip(b"=")
        if b"=" in bare or (self._padded and bare):
            raise ValueError("padding within the text")
        return bare


def from_base64(text: str) -> bytes:
    """Decode base64 as ``Base64Decoder`` does, also where a form has replaced every ``+`` by a space.

    Raises ValueError. Needs twice the memory of the result.
    """
    text = _with_pluses(text)
    content, decoder = bytearray(), Base64Decoder()
    for start in _pieces(len(text)):
        content += decoder.decode(text[start : start + _PIECE].encode("ascii"))
    content += decoder.end()
    return bytes(content)


def percent_decoded(text: str) -> bytes:
    """The bytes of a percent-encoded text. Raises ValueError for an incomplete escape.

    Needs as much memory as the text, while ``urllib`` needs fifty times the memory of an escape.
    """
    content, rest = bytearray(), b""
    for start in _pieces(len(text)):
        piece = rest + text[start : start + _PIECE].encode()
        cut = piece.find(b"%", max(0, len(piece) - _ESCAPE + 1))
        end = cut if cut >= 0 else len(piece)
        content += _unescaped(piece[:end])
        rest = piece[end:]
    if rest:
        raise ValueError("the last escape is incomplete")
    return bytes(content)


def _unescaped(piece: bytes) -> bytes:
    """The bytes of a piece whose escapes are complete."""
    if b"%" not in piece:
        return piece
    given = np.frombuffer(piece, np.uint8)
    escapes = np.flatnonzero(given == ord("%"))
    if escapes[-1] + _ESCAPE > len(given):
        raise ValueError("an escape is incomplete")
    high, low = _HEX[given[escapes + 1]], _HEX[given[escapes + 2]]
    if max(high.max(), low.max()) > 15:
        raise ValueError("an escape has no two hexadecimal digits")
    decoded, kept = given.copy(), np.ones(len(given), np.bool_)
    decoded[escapes] = high * 16 + low
    kept[escapes + 1] = kept[escapes + 2] = False
    return decoded[kept].tobytes()


def _with_pluses(text: str) -> str:
    """A base64 text with ``+`` in place of spaces, if they stand for it: in a form, ``+`` means a space.

    The text then has neither a ``+`` nor the other alphabet, and is whole with its spaces. No image begins with ``+``.
    Spaces at equal distances separate lines.
    """
    if " " not in text or any(sign in text for sign in "+-_"):
        return text
    given = text.strip() if "=" in text else text.lstrip()
    if (len(given) - sum(map(given.count, _LINE_BREAKS))) % 4:
        return text
    spaces, line = given.count(" "), given.find(" ")
    separators = given[line :: line + 1]
    lines = spaces % 4 == 0 and len(separators) == separators.count(" ") == spaces
    return text if lines else given.replace(" ", "+")


def _in_utf8(content: Body) -> Body:
    """A document without its byte-order mark, converted to UTF-8. Raises MalformedRequest."""
    if content.startswith(codecs.BOM_UTF8):
        return content[len(codecs.BOM_UTF8) :]
    encoding = next((encoding for mark, encoding in _WIDE.items() if content.startswith(mark)), None)
    if not encoding:
        return content
    try:
        return content.decode(encoding).encode()
    except UnicodeError:
        raise MalformedRequest(
            f"the body begins with the byte-order mark of {encoding}, but is not {encoding}"
        ) from None


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
