"""Multipart bodies, split into parts while they stream (RFC 2046, 5.1).

python-multipart is not used: it accepts neither a preamble nor folded headers, and calls back for every header in
pieces. Here the delimiter is searched for, and the headers of a part are parsed at once.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

from app.api.excerpts import shown
from app.errors import MalformedRequest

Headers = dict[str, str]
"""The headers of a part: lower-case names, and values as latin-1."""

PART_HEADERS = 8  # clients send two to four
HEADERS_BYTES = 4096  # of one part
BOUNDARY_BYTES = 256  # RFC 2046 allows 70
_PADDING = 64  # white space after a boundary

_FOLD = re.compile(rb"\r\n(?=[ \t])")
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+)[ \t]*:[ \t]*(.*)", re.DOTALL)
_END_OF_LINE = re.compile(rb"--|[ \t]*\r\n")
_MAYBE_END_OF_LINE = re.compile(rb"-?|[ \t]*\r?")


class _Place(Enum):
    PREAMBLE = auto()
    HEADERS = auto()
    CONTENT = auto()
    EPILOGUE = auto()


@dataclass(frozen=True, slots=True)
class Calls:
    """What is called for each part: ``begin`` once, ``content`` for each piece of its content, and ``end``."""

    begin: Callable[[Headers], None]
    content: Callable[[bytes], None]
    end: Callable[[], None]


class Parts:
    """Splits one body into its parts, and ignores what precedes and follows them.

    ``most`` is the maximum number of parts; ``too_many`` is the error for more. Longer lines that begin with the
    delimiter count, too: content must not contain it (RFC 2046, 5.1.1), and each one takes time.
    """

    def __init__(self, boundary: bytes, calls: Calls, most: int, too_many: MalformedRequest) -> None:
        if len(boundary) > BOUNDARY_BYTES:
            raise MalformedRequest(f"the boundary has {len(boundary)} bytes; the limit is {BOUNDARY_BYTES}")
        self._delimiter = b"\r\n--" + boundary
        self._calls = calls
        self._most = most
        self._too_many = too_many
        self._delimiters = 0
        self._place = _Place.PREAMBLE
        self._rest = b"\r\n"  # the first delimiter may begin the body
        self._blank = 0  # bytes of the empty line before the content that are still to be skipped

    @property
    def whole(self) -> bool:
        """Whether the last boundary has been read."""
        return self._place is _Place.EPILOGUE

    @property
    def begun(self) -> bool:
        """Whether the first boundary has been read."""
        return self._place is not _Place.PREAMBLE

    def feed(self, data: bytes) -> None:
        """Read the next bytes of the body. Raises MalformedRequest, and the errors of the calls."""
        data, at = self._rest + data, 0
        while (after := self._step(data, at)) is not None:
            at = after
        self._rest = data[at:]

    def _step(self, data: bytes, at: int) -> int | None:
        """Read up to the end of the headers, or up to the next delimiter. None if more bytes are needed."""
        match self._place:
            case _Place.EPILOGUE:
                return len(data) if at < len(data) else None
            case _Place.HEADERS:
                return self._read_headers(data, at)
        return self._read_content(data, at)

    def _read_headers(self, data: bytes, at: int) -> int | None:
        end = at if data.startswith(b"\r\n", at) else data.find(b"\r\n\r\n", at, at + HEADERS_BYTES)
        if end < 0:
            if len(data) - at >= HEADERS_BYTES:
                raise MalformedRequest(f"the headers of a part have more than {HEADERS_BYTES} bytes")
            return None
        headers = _headers(data[at:end])
        self._place = _Place.CONTENT
        self._calls.begin(headers)
        self._blank = len(b"\r\n")  # it may belong to the next delimiter: a part needs no content
        return end + len(b"\r\n") if end > at else end

    def _read_content(self, data: bytes, at: int) -> int | None:
        found = data.find(self._delimiter, at)
        if found < 0:
            return self._keep(data, at, max(at, len(data) - len(self._delimiter) + 1))
        after = found + len(self._delimiter)
        line = _END_OF_LINE.match(data, after)
        if line is None and _MAYBE_END_OF_LINE.fullmatch(data, after):
            if len(data) - after > _PADDING:
                raise MalformedRequest("the multipart body is broken: too much white space after a boundary")
            return self._keep(data, at, found)
        last = line is not None and line[0] == b"--"
        self._delimiters += not last
        if self._delimiters > self._most:
            raise self._too_many
        if line is None:  # the beginning of a longer line
            return self._keep(data, at, after)
        self._keep(data, at, found)
        if self._place is _Place.CONTENT:
            self._calls.end()
        self._place = _Place.EPILOGUE if last else _Place.HEADERS
        return line.end()

    def _keep(self, data: bytes, at: int, end: int) -> int | None:
        """Pass on content up to ``end``. None if there is none."""
        if end == at:
            return None
        skipped = min(self._blank, end - at)
        self._blank -= skipped
        if self._place is _Place.CONTENT and end - at > skipped:
            self._calls.content(data[at + skipped : end])
        return end


def _headers(block: bytes) -> Headers:
    """The headers in the lines of a block. Raises MalformedRequest."""
    lines = _FOLD.sub(b"", block).split(b"\r\n") if block else []
    if len(lines) > PART_HEADERS:
        raise MalformedRequest(f"a part has more than {PART_HEADERS} headers")
    headers = {}
    for line in lines:
        if not (found := _HEADER.fullmatch(line)):
            text = shown(line.decode("latin-1"))
            raise MalformedRequest(f"the multipart body is broken: a part has the line {text} instead of a header")
        headers[found[1].decode("ascii").lower()] = found[2].strip().decode("latin-1")
    return headers
