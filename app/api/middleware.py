"""Around every request: its id, its log line, its metrics, a last resort for defects, and refusals that arrive."""

import asyncio
import contextlib
import re
import time
import uuid
from typing import TYPE_CHECKING

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api import address, problems
from app.api.exchange import ClientGone, Exchange
from app.errors import Internal, MalformedRequest
from app.lifecycle import Lifecycle
from app.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from app.telemetry.tracing import Traces

log = structlog.get_logger("topk.access")

_SANE_ID = re.compile(r"[A-Za-z0-9._:=+/-]{1,128}")
QUIET = {"/livez", "/readyz", "/healthz", "/metrics", "/ping", "/v2/health/live", "/v2/health/ready"}
_LOGGED_PATH = 512
_DEFENCES = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",  # pages have their own
}
CLIENT_GONE = 499  # nginx's status for a client that closed its connection; nothing is sent

QUERY_BYTES = 8192
QUERY_PARAMETERS = 100

DISCARD_BYTES = 4 * 2**20
DISCARD_S = 1.0


class Observe:
    """Request id, ``Server-Timing``, one log line, metrics, spans."""

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        lifecycle: Lifecycle,
        timing_origins: tuple[str, ...],
        traces: "Traces | None",
    ) -> None:
        self.app = app
        self.metrics = metrics
        self.lifecycle = lifecycle
        self.traces = traces
        self.timing_origins = ", ".join(timing_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        exchange = Exchange(given if _SANE_ID.fullmatch(given) else uuid.uuid4().hex)
        exchange.attach(scope)
        if self.traces:
            exchange.trace_id = self.traces.trace_id()
        status = 0

        async def observed_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if self.traces:
                    self.traces.record(exchange)
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = exchange.request_id
                headers["Server-Timing"] = exchange.server_timing()
                for name, value in _DEFENCES.items():
                    headers.setdefault(name, value)
                if self.timing_origins:
                    headers["Timing-Allow-Origin"] = self.timing_origins
                if self.lifecycle.draining:
                    headers["Connection"] = "close"
            await send(message)

        try:
            await self.app(scope, receive, observed_send)
        except (ClientGone, asyncio.CancelledError) as gone:  # some servers tell by cancelling that a client has left
            if self.traces and not status:
                self.traces.record(exchange)
            status = status or CLIENT_GONE
            if isinstance(gone, asyncio.CancelledError):
                raise
        finally:
            self._record(scope, exchange, status)

    def _record(self, scope: Scope, exchange: Exchange, status: int) -> None:
        seconds = time.perf_counter() - exchange.started
        route = getattr(scope.get("route"), "path", "assets" if "endpoint" in scope else "unmatched")
        self.metrics.requests.labels(route, status, exchange.protocol(scope)).inc()
        self.metrics.request_seconds.labels(route).observe(seconds)
        if (upload := exchange.stages.get("upload")) is not None:
            self.metrics.upload_seconds.observe(upload)
        write = log.debug if route in QUIET and status < 400 else log.info
        write(
            "request",
            **exchange.ids(),
            method=scope["method"],
            path=scope["raw_path"][:_LOGGED_PATH].decode("ascii", "replace"),  # as it came: no control characters
            status=status,
            ms=round(seconds * 1000, 1),
            client=address.shown(scope),
            **_known(code=exchange.code, images=exchange.images, bytes=exchange.bytes, batch=exchange.batch_size),
        )


class Defects:
    """A defect is logged with its trace, and becomes a 500 that shows nothing and that a page elsewhere can read."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False

        async def watched_send(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, receive, watched_send)
        except ClientGone:
            raise
        except Exception:
            exchange = Exchange.of(scope)
            log.exception("defect", path=scope["path"], **exchange.ids())
            exchange.code = Internal.code
            if not started:
                await problems.respond(Internal("the server failed; its log says how"), scope)(scope, receive, send)


class Prefix:
    """Serves everything under a prefix, whether the proxy in front strips it or not."""

    def __init__(self, app: ASGIApp, prefix: str) -> None:
        self.app = app
        self.prefix = prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            if scope["path"] == self.prefix:  # the page's relative URLs need the slash
                await RedirectResponse(f"{self.prefix}/")(scope, receive, send)
                return
            scope["root_path"] = self.prefix
            if not scope["path"].startswith(f"{self.prefix}/"):
                scope["path"] = self.prefix + scope["path"]
        await self.app(scope, receive, send)


class AnswerHead:
    """HEAD is answered wherever GET is, as GET is (RFC 9110, 9.1); the server leaves out the body."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self.app(scope, receive, send)
            return
        as_get = {**scope, "method": "GET"}
        try:
            await self.app(as_get, receive, send)
        finally:
            scope.update(as_get, method="HEAD")  # the route, for those around


class Bounds:
    """Refuses a long query before anything parses it, and drops cookies, which nothing here reads.

    The framework parses both for every route, whether they are used or not: a query of 60 KB takes 50 ms, and Python's
    own reading of a quoted cookie takes time that grows with the square of its length.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            if any(name == b"cookie" for name, _ in scope["headers"]):
                scope["headers"] = [header for header in scope["headers"] if header[0] != b"cookie"]
            if error := _query_error(scope["query_string"]):
                Exchange.of(scope).spoken = problems.below(scope)
                await problems.respond(error, scope)(scope, receive, send)
                return
        await self.app(scope, receive, send)


def _query_error(query: bytes) -> MalformedRequest | None:
    if len(query) > QUERY_BYTES:
        return MalformedRequest(f"the query has {len(query)} bytes; at most {QUERY_BYTES}: images belong in the body")
    if (count := query.count(b"&") + 1) > QUERY_PARAMETERS:
        return MalformedRequest(f"the query has {count} parameters; at most {QUERY_PARAMETERS}")
    return None


class CloseRefused:
    """An answer that comes before its request's body was read must still arrive.

    A client that writes before it reads sees a reset, not the answer, if the connection is closed on unread data: so
    the answer goes out whole with ``Connection: close``, a little more is read and discarded, then it is closed.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _has_body(Headers(scope=scope)):
            await self.app(scope, receive, send)
            return
        unread, started = True, False

        async def watched_receive() -> Message:
            nonlocal unread, started
            started = True
            message = await receive()
            if message["type"] == "http.disconnect" or not message.get("more_body", False):
                unread = False
            return message

        async def watched_send(message: Message) -> None:
            if unread and message["type"] == "http.response.start":
                MutableHeaders(scope=message)["Connection"] = "close"
            if not unread or message["type"] != "http.response.body" or message.get("more_body", False):
                await send(message)
                return
            await send({**message, "more_body": True})
            if started or "expect" not in Headers(scope=scope):  # who waits for 100 Continue sends nothing now
                await _discard(watched_receive)
            await send({"type": "http.response.body", "body": b""})

        await self.app(scope, watched_receive, watched_send)


async def _discard(receive: Receive) -> None:
    left = DISCARD_BYTES
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DISCARD_S):
            while left > 0:
                message = await receive()
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return
                left -= len(message.get("body", b""))


def _has_body(headers: Headers) -> bool:
    return "transfer-encoding" in headers or headers.get("content-length", "0") != "0"


def _known(**values: object) -> dict[str, object]:
    return {name: value for name, value in values.items() if value}
