"""Strict parsing of request heads, so that no request can be read in two ways (RFC 9112, section 11.2)."""

import re
from http import HTTPStatus
from typing import Any

import h11

from app.api.chunks import ChunkReader

HEAD_BYTES = 65_536  # also the limit for a chunk header, and for trailers
PATH_BYTES = 8192
MAX_FIELDS = 100  # header fields of a request; the same limit applies to trailers

_EMPTY_LINES = re.compile(rb"(?:\r\n)+")
_END_OF_HEAD = re.compile(rb"\n\r?\n")
_AMBIGUOUS = re.compile(rb"(?<!\r)\n|\r(?!\n)|\n[ \t]")  # bare LF, bare CR, obs-fold
_AUTHORITY = re.compile(rb"https?://[^/?]*", re.IGNORECASE)
_FRAMING_FIELD = re.compile(rb"\n(content-length|transfer-encoding):", re.IGNORECASE)
_OTHER_VERSION = re.compile(rb" (HTTP/(?!1\.)\d{1,9}(?:\.\d{1,9})?)\r?\n")

Refusal = tuple[HTTPStatus, str]


class ChunkedBody(h11._readers.ChunkedReader):
    """Reads a chunked body. Refuses more than ``MAX_FIELDS`` trailers before they are parsed."""

    def __call__(self, buf: Any) -> Any:
        if self._reading_trailer:  # h11 calls again once it has read the last chunk
            data = bytes(buf)
            end = None if data.startswith(b"\r\n") else _END_OF_HEAD.search(data)
            if data.count(b"\n", 0, end.end() if end else 0) > MAX_FIELDS + 1:
                raise h11.LocalProtocolError(f"more than {MAX_FIELDS} trailers")
        return super().__call__(buf)


class RequestReader(ChunkReader):
    """h11's parser. It checks every request head before parsing; ``refusal`` is the result of a failed check.

    Targets in absolute form are converted to origin form (RFC 9112, 3.2.2). A later minor version counts as HTTP/1.1
    (RFC 9110, 2.5). Empty lines before a request are ignored (RFC 9112, 2.2).
    """

    refusal: Refusal | None = None
    _skipped = 0

    @property
    def begun(self) -> bool:
        """Whether bytes have arrived that are not parsed yet, such as the beginning of a head."""
        return len(self._receive_buffer) > 0

    def next_event(self) -> Any:
        if self.their_state is h11.IDLE:
            head = self._without_empty_lines()
            if head == b"\r":  # it may begin another empty line
                return h11.NEED_DATA
            if refusal := self._too_many_empty_lines() or _refusal(head):
                self.refusal = refusal
                raise h11.RemoteProtocolError(refusal[1])
        event = super().next_event()
        if not isinstance(event, h11.Request):
            return event
        self._skipped = 0
        return _in_origin_form(event)

    def _without_empty_lines(self) -> bytes:
        """The received bytes from the request line on. The empty lines before it are dropped."""
        received = self.trailing_data[0]
        empty = _EMPTY_LINES.match(received)
        if not empty:
            return received
        self._receive_buffer.maybe_extract_at_most(empty.end())
        self._skipped += empty.end()
        return received[empty.end() :]

    def _too_many_empty_lines(self) -> Refusal | None:
        if self._skipped <= HEAD_BYTES:
            return None
        return HTTPStatus.BAD_REQUEST, f"More than {HEAD_BYTES} bytes of empty lines precede the request."

    def _get_io_object(self, *arguments: Any) -> Any:
        reader = super()._get_io_object(*arguments)
        return ChunkedBody() if type(reader) is h11._readers.ChunkedReader else reader


def _in_origin_form(event: h11.Request) -> h11.Request:
    found = _AUTHORITY.match(event.target)
    if not found and event.http_version <= b"1.1":
        return event
    path = event.target[found.end() :] if found else event.target
    return h11.Request(
        method=event.method,
        headers=event.headers,
        target=path if not found or path.startswith(b"/") else b"/" + path,
        http_version=min(event.http_version, b"1.1"),
    )


def _refusal(data: bytes) -> Refusal | None:
    """The refusal of the request head at the start of ``data``. None if it is valid, or not yet complete.

    This only counts and searches. A refused head is never parsed.
    """
    end = _END_OF_HEAD.search(data, 0, HEAD_BYTES)
    lines = data.count(b"\n", 0, end.start() + 1 if end else HEAD_BYTES)
    if lines > MAX_FIELDS + 1:  # plus the request line
        text = f"The request has more than {MAX_FIELDS} header fields."
        return HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, text
    if end is None:
        if len(data) < HEAD_BYTES:
            return None
        status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE if lines else HTTPStatus.REQUEST_URI_TOO_LONG
        return status, f"The request head is larger than {HEAD_BYTES} bytes."
    line = data[: data.index(b"\n") + 1]
    if other := _OTHER_VERSION.search(line):
        return HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, f"{other[1].decode()} is not supported. Use HTTP/1.1."
    if len(line.partition(b"?")[0]) > PATH_BYTES:
        return HTTPStatus.REQUEST_URI_TOO_LONG, f"The request path is longer than {PATH_BYTES} bytes."
    if _is_ambiguous(data[: end.end()]):
        text = "The request head is ambiguous. End lines with CRLF, do not fold fields, and send one of Content-Length"
        return HTTPStatus.BAD_REQUEST, f"{text} and Transfer-Encoding, not both."
    return None


def _is_ambiguous(head: bytes) -> bool:
    """Whether a proxy may read a complete head differently."""
    return bool(_AMBIGUOUS.search(head)) or len({name.lower() for name in _FRAMING_FIELD.findall(head)}) > 1
