"""Request bodies to images: counted while they stream, held in memory only, within the limits of the settings.

Nothing is received before the caller has admitted the request: the limits that the headers alone show come first.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from starlette.requests import Request

from app.api.budget import Budget, Hold
from app.api.chunks import MANY, MEAN_BYTES, TINY
from app.api.documents import Body, Desk, from_base64, loads
from app.api.exchange import ClientGone, Exchange
from app.api.forms import Form, Upload, bounded, only, too_many_bytes
from app.api.multipart import Multipart
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

_GLANCE = 64
_LENGTH_DIGITS = 19
_DATA_HEAD = 1024  # characters before the comma of a data: URL


def check_limits(form: Form) -> Callable[[Request], Any]:
    """A route's dependency, before that of the API key: refuse what the headers of an upload alone show."""

    async def check(request: Request) -> None:
        uploads: Uploads = request.app.state.uploads
        uploads.check_headers(request, form)

    return check


Parse = Callable[[Body], list[Upload]]
"""A whole document to its images; on a thread where it is large."""


class Uploads:
    """Reads bodies within the settings' limits; ``inflight`` is the bytes held for all requests together."""

    def __init__(self, settings: Settings, predicted_wait: Callable[[], float]) -> None:
        self._settings = settings
        self._predicted_wait = predicted_wait
        self._budget = Budget(settings.max_inflight_bytes, settings.upload_ms / 1000)
        self._desk = Desk()

    @property
    def inflight(self) -> int:
        """Bytes held now."""
        return self._budget.held

    @property
    def most_images(self) -> int:
        """Most images of a request."""
        return self._settings.max_batch_images

    def check_headers(self, request: Request, form: Form) -> None:
        """Refuse what the headers alone show: EmptyBody, UnsupportedMediaType, PayloadTooLarge."""
        encoding = request.headers.get("content-encoding", "identity")
        if encoding != "identity":
            raise UnsupportedMediaType(f"Content-Encoding {encoding[:_GLANCE]} is not decoded: send the body as it is")
        length = _length(request)
        if length is None:
            if "transfer-encoding" not in request.headers:
                raise EmptyBody(form.hint)
            return
        if length == 0:
            raise EmptyBody(form.hint)
        kind = form.kind(request)
        if length > self._body_limit(form, kind):
            raise self._too_large(f"{length} bytes", form, kind)

    @asynccontextmanager
    async def read(self, request: Request, form: Form, parse: Parse | None = None) -> AsyncIterator[list[Upload]]:
        """The images of a body, held as long as the context lasts. ``parse`` reads documents that are not our own.

        Raises EmptyBody, MalformedRequest, PayloadTooLarge, UploadTimeout, Overloaded and ClientGone.
        """
        kind = form.kind(request)
        body: _Whole | Multipart = _Whole() if kind != "multipart" else Multipart(request, self._settings, form)
        exchange = Exchange.of(request.scope)
        started = time.perf_counter()
        hold = self._budget.open(exchange.caller)
        try:
            if not self._budget.may_fit(hold, _length(request) or 0):
                raise self._full()
            limit = self._body_limit(form, kind)
            async for chunk in self._chunks(request, hold):
                if not self._budget.reserve(hold, len(chunk)):
                    raise self._full()
                exchange.bytes = hold.bytes
                if hold.bytes > limit:
                    raise self._too_large(f"{hold.bytes} bytes and more", form, kind)
                await body.feed(chunk)
                _check_kept(hold)
            self._budget.complete(hold)
            exchange.stages["upload"] = time.perf_counter() - started
            exchange.uploaded_at = time.monotonic()
            yield await self._images(form, kind, body, parse)
        finally:
            body.clear()  # now: the trace of an error would keep it until the answer has been sent
            self._budget.close(hold)

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
        return Upload(bounded(content, self._settings.max_upload_bytes))

    def one_of(self, document: Any) -> list[Upload]:
        """Our own document of one image. Raises MalformedRequest and the image's own error."""
        if not isinstance(document, dict) or "image" not in document:
            raise MalformedRequest('the JSON body must be {"image": "<base64>"}')
        return only(self.images([document["image"]]))

    async def _images(self, form: Form, kind: str, body: "_Whole | Multipart", parse: Parse | None) -> list[Upload]:
        if isinstance(body, Multipart):
            uploads = body.images()
            return uploads if form.several else only(uploads)
        content = body.take()
        if not content:
            raise EmptyBody("the body is empty")
        if kind == "raw":
            if content[:_GLANCE].lstrip()[:1] != b"{":
                return [Upload(bytes(content))]
            if not form.documents:
                raise UnsupportedMediaType("this looks like JSON: send it with Content-Type: application/json")
        return await self._desk.parse(parse or (self._several if form.several else self._one), content)

    async def _chunks(self, request: Request, hold: Hold) -> AsyncIterator[bytes]:
        """The body as it comes; raises UploadTimeout where it stalls or takes too long, ClientGone where it ends."""
        idle_s = self._settings.upload_idle_ms / 1000
        end = time.monotonic() + self._settings.upload_ms / 1000
        while True:
            patience = min(idle_s, end - time.monotonic())
            try:
                async with asyncio.timeout(patience) as hold.waiting:
                    message = await request.receive()
            except TimeoutError:
                if not hold.lost:
                    raise UploadTimeout("the body did not come in time") from None
            finally:
                hold.waiting = None
            _check_kept(hold)
            if message["type"] == "http.disconnect":
                raise ClientGone
            if request.scope.get(TINY):
                raise MalformedRequest(
                    f"after {MANY} chunks the body has less than {MEAN_BYTES} bytes a chunk on average: send larger"
                    " chunks, or a Content-Length"
                )
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

    def _full(self) -> Overloaded:
        return Overloaded("too many bytes of uploads are under way", retry_after_s=self._predicted_wait())

    def _one(self, content: Body) -> list[Upload]:
        return self.one_of(loads(content))

    def _several(self, content: Body) -> list[Upload]:
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
        beginning = value[:_GLANCE].lstrip().lower()
        if beginning.startswith(("http:", "https:", "ftp:", "file:", "s3:", "gs:")):
            return MalformedRequest("image URLs are not fetched: this server makes no requests; send the bytes")
        if beginning.startswith("data:"):
            comma = value.find(",", 0, _DATA_HEAD)
            if not value[: max(comma, 0)].lower().endswith(";base64"):
                return MalformedRequest("only base64 data: URLs are understood")
            value = value[comma + 1 :]
        if len(value) * 3 // 4 > self._settings.max_upload_bytes + 3:
            return too_many_bytes(self._settings.max_upload_bytes)
        try:
            content = from_base64(value)
        except ValueError:
            return MalformedRequest("the image is no valid base64")
        return bounded(content, self._settings.max_upload_bytes)


def _check_kept(hold: Hold) -> None:
    """Raises UploadTimeout where the upload has to make room."""
    if hold.lost:
        raise UploadTimeout(
            "the memory for uploads is full, and this was the slowest upload of the caller that holds most: try again"
            " with fewer uploads at once, or smaller ones"
        )


def _length(request: Request) -> int | None:
    """The body's length as the headers have it. Raises MalformedRequest where it is none."""
    length = request.headers.get("content-length")
    if length is None:
        return None
    if not (length.isascii() and length.isdigit() and len(length) <= _LENGTH_DIGITS):
        raise MalformedRequest("Content-Length must be a whole number of bytes")
    return int(length)


class _Whole:
    """A body taken as it is."""

    def __init__(self) -> None:
        self._content = bytearray()

    async def feed(self, chunk: bytes) -> None:
        self._content += chunk

    def take(self) -> bytearray:
        """All of it, which is then the caller's alone."""
        content, self._content = self._content, bytearray()
        return content

    def clear(self) -> None:
        self._content = bytearray()
