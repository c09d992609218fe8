"""Reads request bodies: counted while they stream, kept in memory only, within the limits of the settings."""

import asyncio
import codecs
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import TypeVar

from starlette.requests import Request

from app.api import urlencoded
from app.api.budget import Budget, Hold
from app.api.chunks import MANY, MEAN_BYTES, TINY
from app.api.documents import Body, Desk, loads
from app.api.encoded import from_text, is_text, longest_base64
from app.api.excerpts import json_type, shown
from app.api.exchange import ClientGone, Exchange
from app.api.forms import Contents, Form, Upload, bounded, media_type, only
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

_PREFIX = 64  # characters that are enough to recognise a value
_LENGTH_DIGITS = 19
_MEMBERS_SHOWN = 5

T = TypeVar("T")


class Uploads:
    """Reads bodies within the settings' limits. ``predicted_wait`` gives the seconds until the device is free."""

    def __init__(self, settings: Settings, predicted_wait: Callable[[], float]) -> None:
        self._settings = settings
        self._predicted_wait = predicted_wait
        self._budget = Budget(settings.max_inflight_bytes, settings.upload_ms / 1000)
        self._desk = Desk()

    @property
    def inflight(self) -> int:
        """Bytes in memory for all requests."""
        return self._budget.held

    @property
    def most_images(self) -> int:
        """The largest number of images in a request."""
        return self._settings.max_batch_images

    def check_headers(self, request: Request, form: Form) -> None:
        """Check a request's headers. Raises EmptyBody, UnsupportedMediaType, PayloadTooLarge, MalformedRequest."""
        encoding = ", ".join(request.headers.getlist("content-encoding"))
        if {coding.strip().lower() for coding in encoding.split(",")} - {"", "identity"}:
            raise UnsupportedMediaType(
                f"Content-Encoding {shown(encoding)} is not supported; send the body without a content encoding"
            )
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
    async def read(self, request: Request, form: Form, parse: Callable[[Body], T]) -> AsyncIterator[Contents | T]:
        """The contents of a body, or ``parse`` of a JSON document. The images stay counted within the context.

        Raises EmptyBody, MalformedRequest, UnsupportedMediaType, PayloadTooLarge, UploadTimeout, Overloaded, ClientGone
        and the errors of ``parse``, which runs in a thread if the document is large.
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
                    raise self._too_large(f"more than {limit} bytes", form, kind)
                await body.feed(chunk)
                _check_kept(hold)
            self._budget.complete(hold)
            exchange.stages["upload"] = time.perf_counter() - started
            exchange.uploaded_at = time.monotonic()
            yield await self._contents(request, form, kind, body, parse)
        finally:
            body.clear()  # at once: an error's traceback keeps a reference until the response has been sent
            self._budget.close(hold)

    def images(self, values: object, name: str = "images") -> list[Upload]:
        """Base64 strings to images, each of which may fail alone. ``name`` is the list's name in the request.

        Raises MalformedRequest, PayloadTooLarge.
        """
        if not isinstance(values, list) or not values:
            raise MalformedRequest(f"{name} must be a list of at least one image")
        self.check_count(len(values))
        return [Upload(from_text(value, self._settings.max_upload_bytes)) for value in values]

    def check_count(self, images: int) -> None:
        """Raises PayloadTooLarge if a request may not have so many images."""
        if images > self._settings.max_batch_images:
            raise PayloadTooLarge(f"{images} images; a request may have at most {self._settings.max_batch_images}")

    def image(self, content: bytes) -> Upload:
        """An image that is a part of a larger body."""
        return Upload(bounded(content, self._settings.max_upload_bytes))

    def one(self, content: Body) -> Contents:
        """A JSON document of one image and options. Raises MalformedRequest, or the image's error."""
        return self.one_of(loads(content))

    def one_of(self, document: object) -> Contents:
        """``one``, parsed already."""
        if not isinstance(document, dict) or "image" not in document:
            raise MalformedRequest(f'the JSON body must be {{"image": "<base64>"}}, got {_members(document)}')
        return Contents(only(self.images([document["image"]])), _others(document), typed=True)

    def several(self, content: Body) -> Contents:
        """A JSON document of several images and options. Raises MalformedRequest, PayloadTooLarge."""
        document = loads(content, self._settings.max_batch_images)
        if isinstance(document, dict) and "images" in document:
            images = self.images(document["images"])
            if not all(isinstance(value, str) for value in document["images"]):
                raise MalformedRequest("images must be a list of base64 strings")
        elif isinstance(document, dict) and "image" in document:
            images = self.images([document["image"]])
        else:
            raise MalformedRequest(f'the JSON body must be {{"images": ["<base64>", ...]}}, got {_members(document)}')
        return Contents(images, _others(document), typed=True)

    async def _contents(
        self, request: Request, form: Form, kind: str, body: "_Whole | Multipart", parse: Callable[[Body], T]
    ) -> Contents | T:
        if isinstance(body, Multipart):
            return await self._plain(form, body.images(), body.options)
        content = body.take()
        if not content:
            raise EmptyBody("the body is empty")
        if kind == "raw":
            if content[:_PREFIX].removeprefix(codecs.BOM_UTF8).lstrip()[:1] != b"{":
                if media_type(request) == urlencoded.TYPE and not is_text(content):
                    images, options = await self._desk.parse(partial(urlencoded.images_and_options, form), content)
                    if images:
                        self.check_count(len(images))
                        return await self._plain(form, images, options)
                    urlencoded.check(content)
                return await self._plain(form, [Upload(bytes(content))], [])
            if not form.documents:
                raise UnsupportedMediaType("the body is JSON; send it with Content-Type: application/json")
        return await self._desk.parse(parse, content)

    async def _plain(self, form: Form, images: list[Upload], options: list[tuple[str, str]]) -> Contents:
        """The images of a raw body or a form, decoded where they are text. Raises the error of a single one."""
        for number, upload in enumerate(images):
            if isinstance(upload.content, bytes) and is_text(upload.content):
                content = await self._desk.parse(self._from_text, upload.content)
                images[number] = Upload(content, upload.filename)
        return Contents(images if form.several else only(images), options)

    def _from_text(self, content: Body) -> bytes | TopkError:
        return from_text(content, self._settings.max_upload_bytes)

    async def _chunks(self, request: Request, hold: Hold) -> AsyncIterator[bytes]:
        """The body's chunks. Raises UploadTimeout, ClientGone, and MalformedRequest for tiny chunks."""
        idle_s = self._settings.upload_idle_ms / 1000
        end = time.monotonic() + self._settings.upload_ms / 1000
        while True:
            try:
                async with asyncio.timeout(min(idle_s, end - time.monotonic())) as hold.waiting:
                    message = await request.receive()
            except TimeoutError:
                if not hold.lost:
                    raise UploadTimeout("the body did not arrive in time") from None
            finally:
                hold.waiting = None
            _check_kept(hold)
            if message["type"] == "http.disconnect":
                raise ClientGone
            if request.scope.get(TINY):
                raise MalformedRequest(
                    f"after {MANY} chunks, the body averages less than {MEAN_BYTES} bytes per chunk; send larger"
                    " chunks, or a Content-Length"
                )
            if message.get("body"):
                yield message["body"]
            if not message.get("more_body", False):
                return

    def _body_limit(self, form: Form, kind: str) -> int:
        """The largest body: one image or its base64, in a form also with line breaks; at most ``max_body_bytes``."""
        settings = self._settings
        if kind == "raw":
            return min(settings.max_upload_bytes, settings.max_body_bytes)
        if form.several or (form.documents and kind == "json"):
            return settings.max_body_bytes
        encoded = settings.max_upload_bytes * 4 // 3 if kind == "json" else longest_base64(settings.max_upload_bytes)
        return min(settings.max_body_bytes, encoded + 65536)

    def _too_large(self, size: str, form: Form, kind: str) -> PayloadTooLarge:
        """The error, which names the setting that the limit comes from."""
        settings = self._settings
        if self._body_limit(form, kind) == settings.max_body_bytes:
            return PayloadTooLarge(
                f"the body has {size}; a request may have at most {settings.max_body_bytes} (TOPK_MAX_BODY_BYTES)"
            )
        before = " before base64" if kind == "json" else ""
        return PayloadTooLarge(
            f"the body has {size}; an image may have at most {settings.max_upload_bytes}{before}"
            " (TOPK_MAX_UPLOAD_BYTES)"
        )

    def _full(self) -> Overloaded:
        return Overloaded("the memory for uploads is full; try again later", retry_after_s=self._predicted_wait())


def _check_kept(hold: Hold) -> None:
    """Raises UploadTimeout if the upload was dropped to make room."""
    if hold.lost:
        raise UploadTimeout(
            "the memory for uploads is full, and this was the slowest upload of the largest caller; try again with"
            " fewer or smaller uploads at once"
        )


def _others(document: dict[str, object]) -> list[tuple[str, object]]:
    """The members that are not images."""
    return [(name, value) for name, value in document.items() if name not in ("image", "images")]


def _members(document: object) -> str:
    """What a document is instead of the expected object, for an error message."""
    if not isinstance(document, dict):
        return json_type(document)
    names = [shown(name) for name in list(document)[:_MEMBERS_SHOWN]]
    return f"an object with {', '.join(names)}" if names else "an empty object"


def _length(request: Request) -> int | None:
    """The value of Content-Length. Raises MalformedRequest if it is not a number."""
    length = request.headers.get("content-length")
    if length is None:
        return None
    if not (length.isascii() and length.isdigit() and len(length) <= _LENGTH_DIGITS):
        raise MalformedRequest(f"Content-Length must be a whole number of bytes, got {shown(length)}")
    return int(length)


class _Whole:
    """A body that is not parsed while it streams."""

    def __init__(self) -> None:
        self._content = bytearray()

    async def feed(self, chunk: bytes) -> None:
        self._content += chunk

    def take(self) -> bytearray:
        """The whole body. No reference to it is kept."""
        content, self._content = self._content, bytearray()
        return content

    def clear(self) -> None:
        self._content = bytearray()
