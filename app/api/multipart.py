"""multipart/form-data, parsed from the stream: images and short text fields.

The parser calls back for every part and header, in Python. Therefore parts, their headers and possible delimiters are
counted, and a large chunk is parsed in slices, with a turn of the event loop between them.
"""

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, MultipartState, parse_options_header
from starlette.requests import Request

from app.api.excerpts import shortened, shown
from app.api.forms import Form, Upload, bounded, several_images, too_many_bytes
from app.errors import MalformedRequest, PayloadTooLarge, TopkError, UnsupportedMediaType
from app.settings import Settings

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

OTHER_PARTS = 32  # beside the images
OPTION_BYTES = 256  # of a text field
PART_HEADERS = 8  # clients send two to four
_HEADERS_BYTES = 4096  # of one part
_PARAMETERS = 32  # of one header
_CONTENT_TYPE_BYTES = 1024
_PADDING = 64  # white space after a boundary, which the parser reads byte by byte
_SLICE = 64 * 2**10
_NAMES_SHOWN = 5


@dataclass(slots=True)
class _Part:
    """``upload`` is set once an image is complete."""

    headers: dict[bytes, bytes] = field(default_factory=dict)
    header_count: int = 0
    header_bytes: int = 0
    content: bytearray = field(default_factory=bytearray)
    bytes: int = 0
    name: str = ""
    filename: str | None = None
    upload: Upload | None = None


class Multipart:
    """One body, fed chunk by chunk; ``options`` are its text fields.

    Raises MalformedRequest if it is broken or exceeds the limits, PayloadTooLarge for too many or too large images.
    """

    def __init__(self, request: Request, settings: Settings, form: Form) -> None:
        given = request.headers.get("content-type", "")
        if len(given) > _CONTENT_TYPE_BYTES:
            raise MalformedRequest(f"Content-Type has {len(given)} characters; the limit is {_CONTENT_TYPE_BYTES}")
        if not (boundary := _parameters(given).get(b"boundary")):
            raise MalformedRequest(
                "Content-Type: multipart/form-data has no boundary; do not set this header yourself, the HTTP client"
                " sets it together with the boundary"
            )
        self._max_bytes = settings.max_upload_bytes
        self._several = form.several
        self._max_images = settings.max_batch_images if form.several else 1
        self._max_parts = self._max_images + OTHER_PARTS
        self._fields = form.fields
        self._images: list[_Part] = []
        self.options: list[tuple[str, str]] = []
        self._part = _Part()
        self._count = 0
        self._header = (bytearray(), bytearray())
        self._whole = False
        self._delimiter = b"\r\n--" + boundary
        self._tail = b"\r\n"  # the first delimiter may begin the body
        self._delimiters = 0
        callbacks: MultipartCallbacks = {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._grow(self._header[0], data[start:end]),
            "on_header_value": lambda data, start, end: self._grow(self._header[1], data[start:end]),
            "on_header_end": self._end_header,
            "on_headers_finished": self._end_headers,
            "on_part_data": self._data,
            "on_part_end": self._end_part,
            "on_end": self._end,
        }
        try:
            self._parser = MultipartParser(boundary, callbacks)
        except FormParserError as error:
            raise MalformedRequest(f"the multipart body is broken: {error}") from None

    async def feed(self, chunk: bytes) -> None:
        """Parse the next bytes of the body."""
        for start in range(0, len(chunk), _SLICE):
            if start:
                await asyncio.sleep(0)
            self._parse(chunk[start : start + _SLICE])

    def images(self) -> list[Upload]:
        """The images, once the body is complete."""
        if not self._whole:
            raise MalformedRequest("the multipart body is truncated: its last boundary is missing")
        if not self._images:
            raise self._no_image([name for name, _ in self.options])
        return [part.upload for part in self._images if part.upload]

    def clear(self) -> None:
        """Free the images' memory."""
        self._images.clear()
        self._part = _Part()

    def _parse(self, data: bytes) -> None:
        if self._whole:
            return  # an epilogue is ignored
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise MalformedRequest(f"the multipart body is broken: {error}") from None
        padding = self._parser.state == MultipartState.BOUNDARY_PADDING and len(data) > _PADDING
        if padding and not data.strip(b" \t"):
            raise MalformedRequest("the multipart body is broken: too much white space after a boundary")
        if not self._whole:
            self._count_delimiters(data)

    def _count_delimiters(self, data: bytes) -> None:
        """Refuse content full of near-delimiters: the parser takes a step for each of their bytes.

        Content must not contain the delimiter (RFC 2046, 5.1.1).
        """
        data = self._tail + data
        self._delimiters += data.count(self._delimiter)
        self._tail = data[1 - len(self._delimiter) :]
        if self._delimiters > self._max_parts:
            raise self._too_many_parts()

    def _too_many_parts(self) -> MalformedRequest:
        return MalformedRequest(
            f"the form has more than {self._max_parts} parts; send at most {self._max_images} images and {OTHER_PARTS}"
            " other fields"
        )

    def _no_image(self, received: list[str]) -> MalformedRequest:
        """The error for a form without an image, which names the fields that were received."""
        names = ", ".join(f"`{shortened(name)}`" for name in received[:_NAMES_SHOWN])
        got = f"got the fields {names}" if len(received) > 1 else f"got the field {names}" if names else "got no field"
        return MalformedRequest(f"the form has no image; send it as the field {_either(self._fields)}; {got}")

    def _begin(self) -> None:
        self._part = _Part()
        self._count += 1
        if self._count > self._max_parts:
            raise self._too_many_parts()

    def _grow(self, buffer: bytearray, data: bytes) -> None:
        buffer += data
        self._part.header_bytes += len(data)
        if self._part.header_bytes > _HEADERS_BYTES:
            raise MalformedRequest(f"the headers of a part have more than {_HEADERS_BYTES} bytes")

    def _end_header(self) -> None:
        name, value = self._header
        self._part.header_count += 1
        if self._part.header_count > PART_HEADERS:
            raise MalformedRequest(f"a part has more than {PART_HEADERS} headers")
        self._part.headers[bytes(name).lower()] = bytes(value)
        self._header = (bytearray(), bytearray())

    def _end_headers(self) -> None:
        options = _parameters(self._part.headers.get(b"content-disposition", b"").decode("latin-1"))
        self._part.name = options.get(b"name", b"").decode("utf-8", "replace")
        if filename := options.get(b"filename"):
            self._part.filename = filename.decode("utf-8", "replace")
        if self._is_image():
            self._images.append(self._part)
            if len(self._images) > self._max_images:
                if not self._several:
                    raise several_images()
                raise PayloadTooLarge(f"the request has more than {self._max_images} images")

    def _is_image(self) -> bool:
        return self._part.name in self._fields

    def _data(self, data: bytes, start: int, end: int) -> None:
        part = self._part
        part.bytes += end - start
        if not self._is_image():
            if part.bytes > OPTION_BYTES:
                raise MalformedRequest(
                    f"the field `{shortened(part.name)}` has more than {OPTION_BYTES} bytes; send an image as the field"
                    f" {_either(self._fields)}"
                )
            part.content += data[start:end]
        elif part.bytes <= self._max_bytes:
            part.content += data[start:end]
        elif not self._several:
            raise too_many_bytes(self._max_bytes)
        else:
            part.content.clear()  # this image fails alone; the rest of it is skipped

    def _end_part(self) -> None:
        content = bytes(self._part.content)
        if not self._is_image():
            self.options.append((self._part.name, content.decode("utf-8", "replace")))
            return
        self._part.content.clear()
        error: TopkError | None = None
        if self._part.bytes > self._max_bytes:
            error = too_many_bytes(self._max_bytes)
        elif self._part.filename is None:
            error = _file_name(self._part.name, content)
        self._part.upload = Upload(error or bounded(content, self._max_bytes), self._part.filename)

    def _end(self) -> None:
        self._whole = True


def _file_name(field: str, content: bytes) -> TopkError | None:
    """The error for text in place of a file, which curl sends for ``-F file=cat.jpg`` without the ``@``."""
    if not content or len(content) > OPTION_BYTES:
        return None
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return None
    if not text.isprintable():
        return None
    return UnsupportedMediaType(
        f"the field `{field}` contains the text {shown(text)} instead of a file; with curl, send the file with"
        f" -F {field}=@{shortened(text)}"
    )


def _either(names: tuple[str, ...]) -> str:
    quoted = [f"`{name}`" for name in names]
    return " or ".join([", ".join(quoted[:-1]), quoted[-1]] if quoted[1:] else quoted)


def _parameters(header: str) -> dict[bytes, bytes]:
    """The parameters of a header's value. Raises MalformedRequest if there are very many: each one takes time."""
    if header.count(";") > _PARAMETERS:
        raise MalformedRequest(f"a header has more than {_PARAMETERS} parameters")
    return parse_options_header(header)[1]
