"""Refusals: each one reaches its client, and a caller that is refused again and again gets them later.

A client that asks again at once takes time from the others: its requests are parsed, refused and logged. It cannot ask
again before it has its response, so a late 503 slows it down. Waiting costs the server nothing.
"""

import asyncio
import contextlib
import math
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.exchange import Exchange
from app.errors import Overloaded
from app.readiness import Readiness

ACTIVITY = "topk.activity"
"""The key in the scope of an ``asyncio.Event`` that is set when the client sends more of its body or disconnects."""

DISCARD_BYTES = 4 * 2**20
DISCARD_S = 1.0

_AT_ONCE = 20  # refusals of a caller that are not delayed, if there was none for a second
_PER_S = 20  # refusals per second that are not delayed
_MOST_S = 1.0  # of a delay
_SPREAD = 0.25  # share by which delays differ, so that clients that were refused together do not come back together
_GOLDEN_RATIO = (5**0.5 - 1) / 2  # its multiples modulo 1 are spread evenly
_MOST_CALLERS = 4096  # whose refusals are counted
_MOST_DELAYED = 1024  # refusals at a time; others are not delayed


class Pace:
    """A leaky bucket of refusals per caller. Callers of the method pass the current time in seconds."""

    def __init__(self) -> None:
        self._spread = 0.0  # between 0 and 1
        self._empty_at: dict[str, float] = {}  # when the bucket of a caller is empty; the caller refused last is last

    def delay(self, caller: str, now: float) -> float:
        """Count a refusal, and return the seconds by which to delay it."""
        full_s = _AT_ONCE / _PER_S
        empty_s = max(0.0, self._empty_at.pop(caller, now) - now) + 1 / _PER_S
        self._empty_at[caller] = now + min(empty_s, full_s + _MOST_S)
        if len(self._empty_at) > _MOST_CALLERS:
            del self._empty_at[next(iter(self._empty_at))]
        self._spread = (self._spread + _GOLDEN_RATIO) % 1
        return min(max(0.0, empty_s - full_s), _MOST_S) * (1 - _SPREAD * self._spread)


class RequestBody:
    """The body of a request, as far as it was read.

    ``unread``: more of it may arrive. ``asked``: the client does not wait for ``100 Continue``.
    """

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self._scope = scope
        self._receive = receive
        self.unread = True
        self.asked = "expect" not in Headers(scope=scope)

    async def receive(self) -> Message:
        self.asked = True
        message = await self._receive()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            self.unread = False
        return message

    async def discard(self, seconds: float) -> None:
        """Read for a while: up to the end of the body, at most ``DISCARD_BYTES``."""
        left = DISCARD_BYTES
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self.unread and left > 0:
                    left -= len((await self.receive()).get("body", b""))

    async def disconnected(self) -> None:
        """Wait until the client disconnects. What it sends is discarded, at most ``DISCARD_BYTES``."""
        if not self.asked:
            await self._scope.get(ACTIVITY, asyncio.Event()).wait()  # only topk's own server sets it
        left = DISCARD_BYTES
        while left > 0:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                return
            left -= len(message.get("body", b""))
        await asyncio.Event().wait()


class Delays:
    """The refusals that are being delayed. On the event loop."""

    def __init__(self, readiness: Readiness) -> None:
        self._readiness = readiness
        self._pace = Pace()
        self._waiting: set[asyncio.Timeout] = set()

    def __len__(self) -> int:
        return len(self._waiting)

    async def wait(self, caller: str, body: RequestBody, waited_s: float, retry_after_s: float) -> None:
        """Wait before a refusal of a caller is sent, at most until its client disconnects or the process drains.

        The client has waited for ``waited_s`` already. If it was told to come back soon, it is not patient for a
        second: it gets the refusal after half of that time.
        """
        seconds = max(0.0, min(self._pace.delay(caller, time.monotonic()), retry_after_s / 2) - waited_s)
        if not seconds or self._readiness.draining or len(self._waiting) >= _MOST_DELAYED:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds) as waiting:
                self._waiting.add(waiting)
                try:
                    await body.disconnected()
                finally:
                    self._waiting.remove(waiting)

    async def end_with_process(self) -> None:
        """End all delays when the process drains or has failed."""
        await self._readiness.wait_for_end()
        for waiting in self._waiting:
            with contextlib.suppress(RuntimeError):  # it has already timed out
                waiting.reschedule(-math.inf)


class Refusals:
    """Middleware that delivers a response that is sent before the request's body was read, and delays overload's.

    If the connection were closed on unread data, a client that writes before it reads would see a reset instead of the
    response. Therefore the response is sent completely, with ``Connection: close``; a little more of the body is read
    and discarded; then the connection is closed. A body that has arrived already is discarded first, and the connection
    stays open: another one would cost more than the refusal.
    """

    def __init__(self, app: ASGIApp, delays: Delays) -> None:
        self.app = app
        self._delays = delays

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _has_body(Headers(scope=scope)):
            await self.app(scope, receive, send)
            return
        body, closing = RequestBody(scope, receive), False

        async def watched_send(message: Message) -> None:
            nonlocal closing
            if message["type"] == "http.response.start":
                if body.unread and body.asked:
                    await body.discard(0)
                closing = body.unread
                exchange = Exchange.of(scope)
                if exchange.code == Overloaded.code:
                    waited_s = time.perf_counter() - exchange.started
                    await self._delays.wait(exchange.caller, body, waited_s, exchange.retry_after_s or 0.0)
                if closing:
                    MutableHeaders(scope=message)["Connection"] = "close"
            elif closing and not message.get("more_body", False):
                await send({**message, "more_body": True})
                if body.asked:  # a client that waits for 100 Continue sends no body
                    await body.discard(DISCARD_S)
                message = {"type": "http.response.body", "body": b""}
            await send(message)

        await self.app(scope, body.receive, watched_send)


def _has_body(headers: Headers) -> bool:
    return "transfer-encoding" in headers or headers.get("content-length", "0") != "0"
