"""Request bodies to image bytes: multipart, raw or JSON, counted while they stream and held in memory only.

Nothing is received before the caller has admitted the request: limits that the headers tell come first, then bytes.
"""

import asyncio
import base64
import binascii
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import orjson
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from app.api.exchange import ClientGone, Exchange
from app.errors import (
    EmptyBody,
    MalformedRequest,
    Overloaded,
    PayloadTooLarge,
    TopkError,
    UnsupportedMediaType,
    UploadTimeout,
)
from app.settings import Settings

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

FIELDS = ("file", "image", "data")
_VALUES = 10_000  # most values of a JSON document: what two bytes are in it takes a hundred in memory
_PART_HEADERS_BYTES = 8192
_GLANCE = 64
_OFF_LOOP_BYTES = 256 * 1024  # larger JSON bodies are parsed in a thread


@dataclass(frozen=True, slots=True)
class Form:
    """What a route takes as its body.

    ``several``: more than one image. ``fields``: which parts of a multipart body are images; without any the body is
    one document, whatever its Content-Type. ``documents``: a JSON body may hold several images even so.
    """

    several: bool = False
    fields: tuple[str, ...] = FIELDS
    documents: bool = False

    def kind(self, request: Request) -> str:
        """How a body carries its images: multipart, json or raw."""
        given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if not self.fields or given == "application/json" or given.endswith("+json"):
            return "json"
        return "multipart" if given == "multipart/form-data" else "raw"

    @property
    def hint(self) -> str:
        """What to send."""
        if not self.fields:
            return "send a JSON body"
        return f"send an image: multipart field `{self.fields[0]}`, the raw body, or JSON"


ONE = Form()
SEVERAL = Form(several=True)


def check_limits(form: Form) -> Callable[[Request], Any]:
    """A route's dependency, before that of the API key: what the headers of an upload alone tell is refused first."""

    async def check(request: Request) -> None:
        uploads: Uploads = request.app.state.uploads
        uploads.check_headers(request, form)

    return check


@dataclass(frozen=True, slots=True)
class Upload:
    """One image as it came: its bytes, or a tensor that is preprocessed already, or why there is neither."""

    content: bytes | npt.NDArray[np.float32] | TopkError
    filename: str | None = None


Parse = Callable[[bytes], list[Upload]]
"""A whole document to its images; on a thread where it is large."""


class Uploads:
    """Reads bodies within the settings' limits; ``inflight`` is the bytes held for all requests together."""

    def __init__(self, settings: Settings, predicted_wait: Callable[[], float]) -> None:
        self._settings = settings
        self._predicted_wait = predicted_wait
        self.inflight = 0

    @property
    def most_images(self) -> int:
        """Most images of a request."""
        return self._settings.max_batch_images

    def check_headers(self, request: Request, form: Form) -> None:
        """Refuse what the headers alone tell: EmptyBody, UnsupportedMediaType, PayloadTooLarge, Overloaded."""
        encoding = request.headers.get("content-encoding", "identity")
        if encoding != "identity":
            raise UnsupportedMediaType(f"Content-Encoding {encoding} is not understood: send the body as it is")
        length = request.headers.get("content-length")
        if length is None:
            if "transfer-encoding" not in request.headers:
                raise EmptyBody(form.hint)
            return
        if int(length) == 0:
            raise EmptyBody(form.hint)
        kind = form.kind(request)
        if int(length) > self._body_limit(form, kind):
            raise self._too_large(f"{length} bytes", form, kind)
        self._check_inflight(int(length))

    @asynccontextmanager
    async def read(self, request: Request, form: Form, parse: Parse | None = None) -> AsyncIterator[list[Upload]]:
        """The images of a body, held as long as the context lasts. ``parse`` reads documents that are not our own.

        Raises EmptyBody, MalformedRequest, PayloadTooLarge, UploadTimeout, Overloaded and ClientGone.
        """
        held = 0
        kind = form.kind(request)
        body: _Raw | _Multipart = _Raw() if kind != "multipart" else _Multipart(request, self._settings, form)
        exchange = Exchange.of(request.scope)
        started = time.perf_counter()
        try:
            limit = self._body_limit(form, kind)
            async for chunk in self._chunks(request):
                self._check_inflight(len(chunk))
                self.inflight += len(chunk)
                held += len(chunk)
                exchange.bytes = held
                if held > limit:
                    raise self._too_large(f"{held} bytes and more", form, kind)
                body.feed(chunk)
            exchange.stages["upload"] = time.perf_counter() - started
            exchange.uploaded_at = time.monotonic()
            yield await self._images(form, kind, body, parse)
        finally:
            self.inflight -= held

    def images(self, values: Any, name: str = "images") -> list[Upload]:
        """Base64 strings to images, each of which may fail alone. Raises MalformedRequest, PayloadTooLarge.

        ``name`` is what the request calls the list.
        """
        if not isinstance(values, list) or not values:
            raise MalformedRequest(f"{name} must be a list of at least one image")
        self.check_count(len(values))
        return [Upload(self._base64(value)) for value in values]

    def check_count(self, images: int) -> None:
        """Raises PayloadTooLarge where these are more images than a request may have."""
        if images > self._settings.max_batch_images:
            raise PayloadTooLarge(f"{images} images; at most {self._settings.max_batch_images} a request")

    def image(self, content: bytes) -> Upload:
        """Bytes out of a larger body, or why they are no image."""
        return Upload(_bounded(content, self._settings.max_upload_bytes))

    def one_of(self, document: Any) -> list[Upload]:
        """Our own document of one image. Raises MalformedRequest and the image's own error."""
        if not isinstance(document, dict) or "image" not in document:
            raise MalformedRequest('the JSON body must be {"image": "<base64>"}')
        return _only(self.images([document["image"]]))

    async def _images(self, form: Form, kind: str, body: "_Raw | _Multipart", parse: Parse | None) -> list[Upload]:
        if isinstance(body, _Multipart):
            uploads = body.images()
            return uploads if form.several else _only(uploads)
        if not body.content:
            raise EmptyBody("the body is empty")
        content = bytes(body.content)
        body.content.clear()
        if kind == "raw":
            if content[:_GLANCE].lstrip()[:1] != b"{":
                return [Upload(content)]
            if not form.documents:
                raise UnsupportedMediaType("this looks like JSON: send it with Content-Type: application/json")
        parse = parse or (self._several if form.several else self._one)
        return await asyncio.to_thread(parse, content) if len(content) > _OFF_LOOP_BYTES else parse(content)

    async def _chunks(self, request: Request) -> AsyncIterator[bytes]:
        """The body as it comes; raises UploadTimeout where it stalls or takes too long, ClientGone where it ends."""
        idle_s = self._settings.upload_idle_ms / 1000
        end = time.monotonic() + self._settings.upload_ms / 1000
        while True:
            patience = min(idle_s, end - time.monotonic())
            try:
                async with asyncio.timeout(patience):
                    message = await request.receive()
            except TimeoutError:
                raise UploadTimeout("the body did not come in time") from None
            if message["type"] == "http.disconnect":
                raise ClientGone
            if message.get("body"):
                yield message["body"]
            if not message.get("more_body", False):
                return

    def _body_limit(self, form: Form, kind: str) -> int:
        """Most bytes of a body: one image raw, its base64 in JSON, and always ``max_body_bytes``."""
        settings = self._settings
        if kind == "raw":
            return min(settings.max_upload_bytes, settings.max_body_bytes)
        if form.several or (form.documents and kind == "json"):
            return settings.max_body_bytes
        around = settings.max_upload_bytes * 4 // 3 if kind == "json" else settings.max_upload_bytes
        return min(settings.max_body_bytes, around + 65536)

    def _too_large(self, came: str, form: Form, kind: str) -> PayloadTooLarge:
        """By the setting that the limit comes from."""
        settings = self._settings
        if self._body_limit(form, kind) == settings.max_body_bytes:
            return PayloadTooLarge(f"{came}; a request may have at most {settings.max_body_bytes}")
        before = " before base64" if kind == "json" else ""
        return PayloadTooLarge(f"{came}; an image may have at most {settings.max_upload_bytes}{before}")

    def _check_inflight(self, more: int) -> None:
        if self.inflight + more > self._settings.max_inflight_bytes:
            raise Overloaded("too many bytes of uploads are under way", retry_after_s=self._predicted_wait())

    def _one(self, content: bytes) -> list[Upload]:
        return self.one_of(loads(content))

    def _several(self, content: bytes) -> list[Upload]:
        document = loads(content, self._settings.max_batch_images)
        if isinstance(document, dict) and "images" in document:
            images = self.images(document["images"])
            if not all(isinstance(value, str) for value in document["images"]):
                raise MalformedRequest("images must be a list of base64 strings")
            return images
        if not isinstance(document, dict) or "image" not in document:
            raise MalformedRequest('the JSON body must be {"images": ["<base64>", ...]}')
        return self.images([document["image"]])

    def _base64(self, value: object) -> bytes | TopkError:
        if not isinstance(value, str):
            return MalformedRequest("an image must be a base64 string or a data: URL")
        if value[:_GLANCE].lstrip().lower().startswith(("http:", "https:", "ftp:", "file:", "s3:", "gs:")):
            return MalformedRequest("image URLs are not fetched: this server makes no requests; send the bytes")
        if value[:_GLANCE].lstrip().lower().startswith("data:"):
            head, _, value = value.partition(",")
            if not head.lower().endswith(";base64"):
                return MalformedRequest("only base64 data: URLs are understood")
        if len(value) * 3 // 4 > self._settings.max_upload_bytes + 3:
            return _too_many_bytes(self._settings.max_upload_bytes)
        value = "".join(value.split()).translate(_URL_SAFE).rstrip("=")
        try:
            content = base64.b64decode(value + "=" * (-len(value) % 4), validate=True)
        except (binascii.Error, ValueError):
            return MalformedRequest("the image is no valid base64")
        return _bounded(content, self._settings.max_upload_bytes)


_URL_SAFE = str.maketrans("-_", "+/")


def _bounded(content: bytes, most: int) -> bytes | TopkError:
    """The bytes of one image, or what is wrong with their number."""
    if len(content) > most:
        return _too_many_bytes(most)
    return content or EmptyBody("the image is empty")


def _too_many_bytes(most: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"an image of more than {most} bytes")


def loads(content: bytes, more: int = 0, otherwise: str = "an image needs its own Content-Type, as image/jpeg") -> Any:
    """A JSON document of a sane number of values, and so many ``more``. Raises MalformedRequest.

    ``otherwise``: what to do with an image that is no JSON.
    """
    if sum(content.count(sign) for sign in (b",", b"[", b"{")) > _VALUES + more:
        raise MalformedRequest("the JSON body has more values than images need")
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError as error:
        why = str(error) if _is_text(content) else otherwise
        raise MalformedRequest(f"the body is no JSON: {why}") from None


def _is_text(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def _only(uploads: list[Upload]) -> list[Upload]:
    """The one image of a request; raises what is wrong with it."""
    if len(uploads) > 1:
        raise MalformedRequest("one image a request; /v1/predict/batch takes several")
    if isinstance(uploads[0].content, TopkError):
        raise uploads[0].content
    return uploads


class _Raw:
    """A body taken as it is."""

    def __init__(self) -> None:
        self.content = bytearray()

    def feed(self, chunk: bytes) -> None:
        self.content += chunk


@dataclass(slots=True)
class _Part:
    headers: dict[bytes, bytes] = field(default_factory=dict)
    content: bytearray = field(default_factory=bytearray)
    name: str = ""
    filename: str | None = None


class _Multipart:
    """A multipart/form-data body, parsed from the stream; parts that are no image are counted and dropped."""

    def __init__(self, request: Request, settings: Settings, form: Form) -> None:
        _, options = parse_options_header(request.headers.get("content-type"))
        if not (boundary := options.get(b"boundary")):
            raise MalformedRequest("multipart without a boundary")
        self._max_bytes = settings.max_upload_bytes
        self._several = form.several
        self._max_images = settings.max_batch_images if form.several else 1
        self._fields = form.fields
        self._parts: list[_Part] = []
        self._part = _Part()
        self._header = (bytearray(), bytearray())
        self._whole = False
        callbacks: MultipartCallbacks = {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._grow(self._header[0], data[start:end]),
            "on_header_value": lambda data, start, end: self._grow(self._header[1], data[start:end]),
            "on_header_end": self._end_header,
            "on_headers_finished": self._end_headers,
            "on_part_data": self._data,
            "on_end": self._end,
        }
        try:
            self._parser = MultipartParser(boundary, callbacks)
        except FormParserError as error:
            raise MalformedRequest(f"broken multipart: {error}") from None

    def feed(self, chunk: bytes) -> None:
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise MalformedRequest(f"broken multipart: {error}") from None

    def images(self) -> list[Upload]:
        if not self._whole:
            raise MalformedRequest("the multipart body ends early")
        if not self._parts:
            raise MalformedRequest(f"no part named {', '.join(self._fields)}")
        return [Upload(_bounded(bytes(part.content), self._max_bytes), part.filename) for part in self._parts]

    def _begin(self) -> None:
        self._part = _Part()

    def _grow(self, buffer: bytearray, data: bytes) -> None:
        buffer += data
        if len(buffer) > _PART_HEADERS_BYTES:
            raise MalformedRequest("a part's header is too long")

    def _end_header(self) -> None:
        name, value = self._header
        self._part.headers[bytes(name).lower()] = bytes(value)
        self._header = (bytearray(), bytearray())

    def _end_headers(self) -> None:
        _, options = parse_options_header(self._part.headers.get(b"content-disposition"))
        self._part.name = options.get(b"name", b"").decode("utf-8", "replace")
        if filename := options.get(b"filename"):
            self._part.filename = filename.decode("utf-8", "replace")
        if self._part.name in self._fields:
            self._parts.append(self._part)
            if len(self._parts) > self._max_images:
                if not self._several:
                    raise MalformedRequest("one image a request; /v1/predict/batch takes several")
                raise PayloadTooLarge(f"more than {self._max_images} images in a request")

    def _data(self, data: bytes, start: int, end: int) -> None:
        content = self._part.content
        if self._part.name not in self._fields or len(content) > self._max_bytes:
            return  # what is too large fails alone: the rest of it is skipped
        content += data[start:end]
        if len(content) > self._max_bytes and not self._several:
            raise _too_many_bytes(self._max_bytes)

    def _end(self) -> None:
        self._whole = True
