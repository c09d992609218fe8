"""multipart/form-data, parsed from the stream: images and short text fields.

Parts are counted, and a large chunk is parsed in slices, with a turn of the event loop between them.
"""

import asyncio
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field

from starlette.requests import Request

from app.api.encoded import is_text, longest_base64
from app.api.excerpts import shortened, shown
from app.api.forms import Form, Upload, several_images, too_many_bytes
from app.api.parameters import decoded, file_name, parameters
from app.api.parts import Calls, Headers, Parts
from app.api.transfer import TransferDecoder, decoder
from app.errors import EmptyBody, MalformedRequest, PayloadTooLarge, TopkError, UnsupportedMediaType
from app.settings import Settings

OTHER_PARTS = 32  # beside the images
OPTION_BYTES = 256  # of a text field
_CONTENT_TYPE_BYTES = 1024
_SLICE = 64 * 2**10
_NAMES_SHOWN = 5


@dataclass(slots=True)
class _Part:
    """One part. ``bytes`` is the size of the decoded content. ``upload`` is set once an image is complete.

    ``counted`` is true for an image that is not blank.
    """

    name: str
    is_image: bool
    filename: str | None
    decoder: TransferDecoder
    counted: bool = False
    content: bytearray = field(default_factory=bytearray)
    bytes: int = 0
    error: TopkError | None = None
    upload: Upload | None = None


class Multipart:
    """One body, fed chunk by chunk; ``options`` are its text fields.

    Raises MalformedRequest if it is broken or exceeds the limits, PayloadTooLarge for too many or too large images.
    """

    def __init__(self, request: Request, settings: Settings, form: Form) -> None:
        given = request.headers.get("content-type", "")
        if len(given) > _CONTENT_TYPE_BYTES:
            raise MalformedRequest(f"Content-Type has {len(given)} characters; the limit is {_CONTENT_TYPE_BYTES}")
        if not (boundary := parameters(given).get("boundary")):
            raise MalformedRequest(
                "Content-Type: multipart/form-data has no boundary; do not set this header yourself, the HTTP client"
                " sets it together with the boundary"
            )
        self._max_bytes = settings.max_upload_bytes
        self._form = form
        self._max_images = settings.max_batch_images if form.several else 1
        self._images: list[_Part] = []
        self._blank: list[_Part] = []
        self.options: list[tuple[str, str]] = []
        self._part: _Part | None = None
        most = self._max_images + OTHER_PARTS
        too_many = MalformedRequest(
            f"the form has more than {most} parts; send at most {self._max_images} images and {OTHER_PARTS} other"
            " fields"
        )
        self._parts = Parts(boundary.encode("latin-1"), Calls(self._begin, self._content, self._end), most, too_many)

    async def feed(self, chunk: bytes) -> None:
        """Parse the next bytes of the body."""
        for start in range(0, len(chunk), _SLICE):
            if start:
                await asyncio.sleep(0)
            self._parts.feed(chunk[start : start + _SLICE])

    def images(self) -> list[Upload]:
        """The images, once the body is complete."""
        if not self._parts.begun:
            raise MalformedRequest(
                "the multipart body does not contain the boundary that Content-Type names; lines must end with CRLF"
            )
        if not self._parts.whole:
            raise MalformedRequest("the multipart body is truncated: its last boundary is missing")
        images = self._images or self._blank[:1]
        if not images:
            raise self._no_image([name for name, _ in self.options])
        return [part.upload for part in images if part.upload]

    def clear(self) -> None:
        """Free the images' memory."""
        self._images.clear()
        self._blank.clear()
        self._part = None

    def _no_image(self, received: list[str]) -> MalformedRequest:
        """The error for a form without an image, which names the fields that were received."""
        names = ", ".join(f"`{shortened(name)}`" for name in received[:_NAMES_SHOWN])
        got = f"got the fields {names}" if len(received) > 1 else f"got the field {names}" if names else "got no field"
        return MalformedRequest(f"the form has no image; send it as the field {_either(self._form.fields)}; {got}")

    def _begin(self, headers: Headers) -> None:
        values = parameters(headers.get("content-disposition", ""))
        filename = file_name(decoded(values, "filename")) or None
        name = decoded(values, "name")
        decoding = decoder(headers.get("content-transfer-encoding", ""))
        self._part = _Part(name, self._form.holds_image(name), filename, decoding)

    def _count(self, part: _Part) -> None:
        """Count an image. Raises MalformedRequest or PayloadTooLarge if there are too many."""
        part.counted = True
        self._images.append(part)
        if len(self._images) > self._max_images:
            if not self._form.several:
                raise several_images()
            raise PayloadTooLarge(f"the request has more than {self._max_images} images")

    def _content(self, data: bytes) -> None:
        part = self._part
        assert part
        if part.is_image and not part.counted:
            self._count(part)
        if not part.error:
            self._add(part, part.decoder.decode, data)

    def _add(self, part: _Part, decode: Callable[..., bytes], *data: bytes) -> None:
        """Add content to a part. An image that is too large or not valid fails alone if there may be several."""
        try:
            content = decode(*data)
        except ValueError:
            self._fail(part, MalformedRequest(f"the field `{shortened(part.name)}` is not valid base64"))
            return
        part.bytes += len(content)
        if not part.is_image:
            if part.bytes > OPTION_BYTES:
                raise MalformedRequest(
                    f"the field `{shortened(part.name)}` has more than {OPTION_BYTES} bytes; send an image as the field"
                    f" {_either(self._form.fields)}"
                )
        elif part.bytes > self._max_bytes and not self._may_be_text(part):
            self._fail(part, too_many_bytes(self._max_bytes))
            return
        part.content += content

    def _may_be_text(self, part: _Part) -> bool:
        """Whether a part may be an image of a permitted size as base64 or a ``data:`` URL."""
        return part.bytes <= longest_base64(self._max_bytes) and is_text(part.content)

    def _fail(self, part: _Part, error: TopkError) -> None:
        """Raise an error, unless it is that of one of several images: the rest of it is then skipped."""
        if not (self._form.several and part.is_image):
            raise error
        part.error = error
        part.content.clear()

    def _end(self) -> None:
        part = self._part
        assert part
        if not part.error:
            self._add(part, part.decoder.end)
        content = bytes(part.content)
        if not part.is_image:
            self.options.append((part.name, content.decode("utf-8", "replace")))
            return
        part.content.clear()
        if not part.counted and part.filename:
            self._count(part)
        elif not part.counted:  # an input of a form that is left blank
            self._blank.append(part)
        if part.filename is None:
            part.error = part.error or _file_name(part.name, content)
        part.upload = Upload(part.error or content or EmptyBody("the image is empty"), part.filename)


def _file_name(field: str, content: bytes) -> TopkError | None:
    """The error for text in place of a file, which curl sends for ``-F file=cat.jpg`` without the ``@``."""
    if not content or len(content) > OPTION_BYTES or is_text(content):
        return None
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return None
    if any(unicodedata.category(character) == "Cc" for character in text):
        return None
    return UnsupportedMediaType(
        f"the field `{field}` contains the text {shown(text)} instead of a file; with curl, send the file with"
        f" -F {field}=@{shortened(text)}"
    )


def _either(names: tuple[str, ...]) -> str:
    quoted = [f"`{name}`" for name in names]
    return " or ".join([", ".join(quoted[:-1]), quoted[-1]] if quoted[1:] else quoted)
