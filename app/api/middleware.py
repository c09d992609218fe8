"""Middleware: request ids, the access log, metrics, CORS, defects, and limits on queries."""

import asyncio
import random
import re
import time
from typing import TYPE_CHECKING

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api import address, problems
from app.api.excerpts import shortened
from app.api.exchange import ClientGone, Exchange
from app.errors import Internal, MalformedRequest
from app.readiness import Readiness
from app.settings import Settings
from app.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from app.telemetry.tracing import Traces

log = structlog.get_logger("topk.access")

_VALID_ID = re.compile(r"[A-Za-z0-9._:=+/-]{1,128}")
_PROBES = {
    "/livez",
    "/readyz",
    "/healthz",
    "/metrics",
    "/ping",
    "/v2/health/live",
    "/v2/health/ready",
    "/v2/models/{model}/ready",
    "/v2/models/{model}/versions/{version}/ready",
}
_PATH_CHARACTERS = 512  # of a path in the access log
_SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",  # pages have their own
}
CLIENT_GONE = 499  # nginx's status for a client that closed its connection; nothing is sent

QUERY_BYTES = 8192
QUERY_PARAMETERS = 100


def probe_routes(settings: Settings) -> frozenset[str]:
    """The routes of health probes and metrics: logged at debug level, and not traced."""
    return frozenset(_PROBES | ({settings.aip_health_route} if settings.aip_health_route else set()))


class Observe:
    """Adds the request id and ``Server-Timing``, writes the access log, and records metrics and spans."""

    def __init__(
        self, app: ASGIApp, settings: Settings, metrics: Metrics, readiness: Readiness, traces: "Traces | None"
    ) -> None:
        self.app = app
        self.metrics = metrics
        self.readiness = readiness
        self.traces = traces
        self.probes = probe_routes(settings)
        self.timing_origins = ", ".join(settings.cors_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        exchange = Exchange(given if _VALID_ID.fullmatch(given) else _new_id())
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
                for name, value in _SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
                if self.timing_origins:
                    headers["Timing-Allow-Origin"] = self.timing_origins
                if self.readiness.draining:
                    headers["Connection"] = "close"
            await send(message)

        try:
            await self.app(scope, receive, observed_send)
        except (ClientGone, asyncio.CancelledError) as gone:  # some servers cancel the request
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
        probe = route in self.probes and scope["method"] in ("GET", "HEAD")
        write = log.debug if probe else log.info
        write(
            "request",
            **exchange.ids(),
            method=scope["method"],
            path=scope["raw_path"][:_PATH_CHARACTERS].decode("ascii", "replace"),  # not unquoted: no control characters
            status=status,
            ms=round(seconds * 1000, 1),
            client=address.logged(scope),
            **_known(code=exchange.code, images=exchange.images, bytes=exchange.bytes, batch=exchange.batch_size),
        )


def _new_id() -> str:
    """128 random bits. They are no secret, so no system call is needed, which may cost as much as parsing a head."""
    return f"{random.getrandbits(128):032x}"


class Defects:
    """Logs a defect with its traceback, and responds 500 without internals.

    It is inside the CORS middleware, so that pages of other origins can read the response.
    """

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
                await problems.respond(
                    Internal("the server has a defect; its log has the details"),
                    scope,
                )(scope, receive, send)


class Prefix:
    """Serves everything under a prefix, whether or not the proxy strips it."""

    def __init__(self, app: ASGIApp, prefix: str) -> None:
        self.app = app
        self.prefix = prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            if scope["path"] == self.prefix:  # the relative URLs of the page need the slash
                await RedirectResponse(f"{self.prefix}/")(scope, receive, send)
                return
            scope["root_path"] = self.prefix
            if not scope["path"].startswith(f"{self.prefix}/"):
                scope["path"] = self.prefix + scope["path"]
        await self.app(scope, receive, send)


class AnswerHead:
    """Supports HEAD on every GET route (RFC 9110, 9.1); the server omits the body."""

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
            scope.update(as_get, method="HEAD")  # keeps the route, which outer middleware reads


class Bounds:
    """Refuses long queries before they are parsed, and removes cookies, which no route reads.

    The framework parses both for every route. A query of 60 KB takes 50 ms, and Python's parser
    for quoted cookies takes quadratic time.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            if any(name == b"cookie" for name, _ in scope["headers"]):
                scope["headers"] = [header for header in scope["headers"] if header[0] != b"cookie"]
            if error := _query_error(scope["query_string"]):
                Exchange.of(scope).body_protocol = problems.protocol_below(scope)
                await problems.respond(error, scope)(scope, receive, send)
                return
        await self.app(scope, receive, send)


def _query_error(query: bytes) -> MalformedRequest | None:
    if len(query) > QUERY_BYTES:
        return MalformedRequest(
            f"the query has {len(query)} bytes; the limit is {QUERY_BYTES}; send images in the body"
        )
    if (count := query.count(b"&") + 1) > QUERY_PARAMETERS:
        return MalformedRequest(f"the query has {count} parameters; the limit is {QUERY_PARAMETERS}")
    return None


class Cors(CORSMiddleware):
    """starlette's CORS middleware, which also logs refused preflight requests.

    Browsers do not show the reason to the page or its user. Without configured origins it only logs.
    """

    def __init__(self, app: ASGIApp, settings: Settings, expose_headers: tuple[str, ...]) -> None:
        super().__init__(
            app,
            allow_origins=settings.cors_origins,
            allow_methods=("GET", "POST", "PUT"),
            allow_headers=("*",),
            expose_headers=expose_headers,
        )
        self._configured = bool(settings.cors_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._configured or scope["type"] != "http":
            await super().__call__(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if scope["method"] == "OPTIONS" and "access-control-request-method" in headers and "origin" in headers:
            self._log(headers, "TOPK_CORS_ORIGINS is not set")
        await self.app(scope, receive, send)

    def preflight_response(self, request_headers: Headers) -> Response:
        response = super().preflight_response(request_headers)
        if response.status_code >= 400:
            self._log(request_headers, bytes(response.body).decode())
        return response

    def _log(self, headers: Headers, reason: str) -> None:
        log.warning("CORS preflight refused", origin=shortened(headers["origin"]), reason=reason)


def _known(**values: object) -> dict[str, object]:
    return {name: value for name, value in values.items() if value}
