"""HTTP connections: uvicorn's protocol, with limits on time, size and number, and strict parsing.

A request head must be complete within a time limit and a size limit, and a client must read its response within the
same time. Between two requests, a connection may be idle for longer. When all connections are in use, the one that has
been idle longest is closed to make room for a new one; if none is idle, the slowest client is disconnected. Requests
that two HTTP parsers may read differently are refused, so that no request can hide in the body of another behind a
proxy (RFC 9112, section 11.2). After a refusal, further input is read and discarded for a moment, as in
``api.refusals``, so that the response reaches the client. A client that closes only its sending side still gets its
response. Requests of disconnected clients are not started.
"""

import asyncio
import heapq
import resource
import socket
from asyncio import AbstractEventLoop, BaseTransport, TimerHandle
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import h11
import structlog
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from app.api.chunks import TINY, Flow, Turns
from app.api.refusals import ACTIVITY, DISCARD_BYTES, DISCARD_S
from app.server.heads import HEAD_BYTES, RequestReader

log = structlog.get_logger("topk")

_MAX_CONNECTIONS = 16_384  # per process
_OTHER_FILES = 64  # other open files of a process: listener, logs, pages, the engine's files
_EXTRA_CONNECTIONS = 16  # connections above the limit while none can be closed
_WARN_S = 10.0
_PROBE_S = 0.01
_TCP_CLOSE = 7  # TCP_CLOSE in linux/tcp.h, after a reset
_ADVANCE_BYTES = 16_384  # added to every client's byte count, so that a new one does not count as slow
_RANKED, _RANKED_S = 128, 1.0  # clients per ranking, and how long a ranking is valid
_CHUNKED_AT_ONCE = 4  # connections that continue with pending chunks in one turn of the event loop
_LARGE_BYTES = 2**20  # larger bodies take turns: eight at once would make each turn of the event loop last milliseconds
_LARGE_AT_ONCE = 1
_AT_ONCE = 8  # requests that start, or learn of a disconnect, in one turn of the event loop


@dataclass(slots=True)
class Shared:
    """The state that the connections of one server share. Times are in seconds.

    ``timeout_s`` is the time limit for a request head, ``keep_alive_s`` that between two requests. ``limit`` is the
    maximum number of connections. ``timers`` has the connections that wait for a request head, or for a refused client
    to disconnect. ``idle`` has those that wait for another request, the longest idle first. ``ranked`` has the slowest
    clients, the slowest first, with the ``since`` of each. ``scheduled`` has calls, of which each turn of the event
    loop makes a few. ``started`` counts the requests that have started in this turn. ``warned_at`` is the time of the
    last warning that all connections are in use.
    """

    timeout_s: float
    keep_alive_s: float
    limit: int
    timers: dict["Connection", TimerHandle] = field(default_factory=dict)
    idle: dict["Connection", None] = field(default_factory=dict)
    ranked: deque[tuple["Connection", float]] = field(default_factory=deque)
    ranked_at: float = float("-inf")
    scheduled: deque[Callable[[], object]] = field(default_factory=deque)
    started: int = 0
    warned_at: float = float("-inf")

    def slowest(self, connections: Iterable["Connection"], newcomer: "Connection", now: float) -> "Connection | None":
        """The slowest connection except ``newcomer``. None if the server waits for no other client."""
        for again in (now - self.ranked_at > _RANKED_S, True):
            if again:
                self._rank(connections, now)
            while self.ranked:
                connection, since = self.ranked.popleft()
                if connection is not newcomer and connection.since == since and connection.pace(now) is not None:
                    return connection
        return None

    def _rank(self, connections: Iterable["Connection"], now: float) -> None:
        """Rank many connections at once: a look at all of them for each newcomer would cost milliseconds."""
        paces = [(pace, id(each), each) for each in connections if (pace := each.pace(now)) is not None]
        slowest = heapq.nsmallest(max(2, min(_RANKED, len(paces) // 8)), paces)  # the newcomer may be one of them
        self.ranked = deque((each, each.since) for _, _, each in slowest)
        self.ranked_at = now

    def schedule(self, call: Callable[[], object], loop: AbstractEventLoop) -> None:
        """Make a few scheduled calls in each turn of the event loop, so that thousands do not block it."""
        self.scheduled.append(call)
        if len(self.scheduled) == 1:
            loop.call_soon(self._call, loop)

    async def start(self, loop: AbstractEventLoop) -> None:
        """Wait for a later turn of the event loop if too many requests have started in this one."""
        if not self.started:
            loop.call_soon(self._end_turn)
        self.started += 1
        if self.started > _AT_ONCE:
            turn = asyncio.Event()
            self.schedule(turn.set, loop)
            await turn.wait()

    def _end_turn(self) -> None:
        self.started = 0

    def _call(self, loop: AbstractEventLoop) -> None:
        for _ in range(min(_AT_ONCE, len(self.scheduled))):
            self.scheduled.popleft()()
        if self.scheduled:
            loop.call_soon(self._call, loop)


class Connection(H11Protocol):
    """One connection of a server. ``bounded`` creates the class with the shared state.

    ``discard`` is the number of bytes still to discard, once the connection is refused. ``since`` is when the server
    began to wait for the client. ``received`` is the number of bytes of a body since then.
    """

    shared: Shared
    turns: Turns
    large_turns: Turns
    conn: RequestReader
    flow: Flow
    half_closed = False
    discard: int | None = None
    since = 0.0
    received = 0
    _awaited: object = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conn = RequestReader(h11.SERVER, HEAD_BYTES)
        self._serve, self.app = self.app, self._serve_if_connected

    def connection_made(self, transport: BaseTransport) -> None:
        if transport.get_extra_info("peername") is None:  # reset before it was accepted
            transport.abort()  # type: ignore[attr-defined]
            return
        super().connection_made(transport)  # type: ignore[arg-type]
        self.flow = Flow(self.transport)
        if TYPE_CHECKING or hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux: ends a connection whose client does not read
            milliseconds = int(self.shared.timeout_s * 1000)
            transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
        self._watch()
        if len(self.connections) > self.shared.limit:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.transport is None:  # ``connection_made`` has aborted it
            return
        cycle = self.cycle
        if cycle and not cycle.response_complete:
            cycle.disconnected = True
            self.cycle = None  # type: ignore[assignment]  # its event is set in a later turn
            self.shared.schedule(cycle.message_event.set, self.loop)
        super().connection_lost(exc)
        self._cancel_timer()

    def data_received(self, data: bytes) -> None:
        if self.discard is not None:
            self.discard -= len(data)
            if self.discard < 0:
                self.transport.close()
            return
        super().data_received(data)
        self._watch(len(data))
        if self.received > _LARGE_BYTES and not self.flow.held:
            self.flow.hold()
            self.large_turns.add(self._read_more, self.loop)

    def _read_more(self) -> None:
        """Read the next part of a large body."""
        if not self.transport.is_closing():
            self.flow.release()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._watch()

    def eof_received(self) -> bool:  # type: ignore[override]
        """Whether the connection stays open: the request is complete, and its client may still read the response.

        Only with HTTP/1.1: HTTP/1.0 has no interim responses for a probe, and a proxy that uses it has disconnected.
        """
        cycle = self.cycle
        self.half_closed = bool(
            cycle and not cycle.more_body and not cycle.response_complete and cycle.scope["http_version"] == "1.1"
        )
        if self.half_closed:
            self._probe(_PROBE_S)
        return self.half_closed

    def handle_events(self) -> None:
        self.conn.next_turn()
        super().handle_events()
        if self.discard is None and self.conn.tiny:
            self.scope[TINY] = True  # type: ignore[literal-required]
            self.discard = DISCARD_BYTES
        elif self.conn.exhausted and not self.flow.held:
            self.flow.hold()
            self.turns.add(self._continue, self.loop)

    def _continue(self) -> None:
        """Read the chunks that were left for a later turn of the event loop."""
        if self.transport.is_closing():
            return
        self.flow.release()
        if self.discard is None:
            self.handle_events()
            self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._unset_keepalive_if_required()  # ``_watch`` starts a timer instead, which empty lines do not stop
        self._watch()
        if self.half_closed and self.cycle.response_complete:
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        self._refuse(*(self.conn.refusal or (HTTPStatus.BAD_REQUEST, msg)))

    def refuse_upload(self, text: str) -> None:
        """Refuse a request whose body is still arriving."""
        if self.conn.their_state is h11.SEND_BODY and self.conn.our_state is h11.SEND_RESPONSE:
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, text)

    async def _serve_if_connected(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Start a request, unless its client has disconnected: after a storm of resets, thousands have."""
        cycle = self.cycle
        await self.shared.start(self.loop)
        if cycle.disconnected:
            return
        if self._is_reset():
            cycle.disconnected = True
            self.transport.abort()
            return
        scope[ACTIVITY] = cycle.message_event
        await self._serve(scope, receive, send)

    def _is_reset(self) -> bool:
        """Whether the client has reset the connection. The event loop may not have noticed yet."""
        if TYPE_CHECKING or hasattr(socket, "TCP_INFO"):  # Linux; the first byte is the state
            try:
                state = self.transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
            except (OSError, ValueError):  # already closed
                return True
            return bool(state[0] == _TCP_CLOSE)
        return False

    def _refuse(self, status: HTTPStatus, text: str) -> None:
        """Respond with an error, then close. Closes at once if another response has started."""
        if not self._respond(status, text):
            self.transport.close()
            return
        self.transport.write_eof()
        self.conn = RequestReader(h11.SERVER, HEAD_BYTES)  # drops the received bytes
        self.discard = DISCARD_BYTES
        self.shared.timers[self] = self.loop.call_later(DISCARD_S, self.transport.close)
        self.flow.resume_reading()

    def _respond(self, status: HTTPStatus, text: str) -> bool:
        """Respond in place of the app. Returns False if a response has already started."""
        self._cancel_timer()
        if self.cycle:
            self.cycle.disconnected = True  # ignores a later response of the app
            self.cycle.message_event.set()
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return False
        headers = [
            (b"content-type", b"text/plain; charset=utf-8"),
            (b"content-length", str(len(text)).encode()),
            (b"connection", b"close"),
        ]
        for event in (
            h11.Response(status_code=status, headers=headers, reason=status.phrase.encode()),
            h11.Data(data=text.encode()),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        return True

    def _probe(self, pause_s: float) -> None:
        """Probe a half-closed connection with interim responses: it is reset if the client has disconnected.

        A client must accept interim responses, even if it expects none (RFC 9110, 15.2).
        """
        if not self.transport.is_closing() and self.conn.our_state is h11.SEND_RESPONSE:
            interim = h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue")
            self.transport.write(self.conn.send(interim) or b"")
            self.loop.call_later(pause_s, self._probe, 2 * pause_s)

    def _watch(self, size: int = 0) -> None:
        """Update the timer and the waiting time after an event, or after ``size`` bytes have arrived.

        The time limit for a head starts when the connection is first ready for it, or with the first byte of a later
        one. Further bytes do not extend it.
        """
        state = self.conn.their_state
        if self.discard is None:
            if state is not h11.IDLE or self.transport.is_closing():
                self._cancel_timer()
            else:
                self._await_head(idle=bool(self.cycle) and not self.conn.begun and not self.flow.write_paused)
        body = state is h11.SEND_BODY
        waiting = "request" if self in self.shared.idle else state
        awaited = "response" if self.flow.write_paused else self.cycle if body else waiting
        if awaited is self._awaited:
            self.received += size if body else 0
        else:
            self._awaited, self.since, self.received = awaited, self.loop.time(), 0

    def _await_head(self, idle: bool) -> None:
        """Start the timer for a request head, unless it runs. ``idle``: for the first byte of another request."""
        if self in self.shared.timers and idle == (self in self.shared.idle):
            return
        self._cancel_timer()
        if idle:
            self.shared.idle[self] = None
        seconds = self.shared.keep_alive_s if idle else self.shared.timeout_s
        self.shared.timers[self] = self.loop.call_later(seconds, self._on_head_timeout)

    def pace(self, now: float) -> float | None:
        """Bytes per second received since the wait for the client began. None if the server does not wait for it.

        The server waits for a head, for more of a body that the app reads, and for the client to read its response.
        """
        body = self.conn.their_state is h11.SEND_BODY and not self.flow.read_paused
        if self.transport.is_closing() or not (body or self.flow.write_paused or self in self.shared.timers):
            return None
        return (self.received + _ADVANCE_BYTES) / max(now - self.since, 0.001)

    def _cancel_timer(self) -> None:
        self.shared.idle.pop(self, None)
        if timer := self.shared.timers.pop(self, None):
            timer.cancel()

    def _on_head_timeout(self) -> None:
        self._cancel_timer()
        if self.conn.begun:
            text = f"The request head did not arrive within {self.shared.timeout_s:g} s."
            self._refuse(HTTPStatus.REQUEST_TIMEOUT, text)
        else:
            self.transport.close()

    def _make_room(self) -> None:
        """Close the connection that has been idle longest, or else that of the slowest client.

        Never this new one, and none with a request in progress. If there is no such client, a few connections above
        the limit are kept, for health checks. Beyond those, the new connection gets a 503.
        """
        now, idle = self.loop.time(), next(iter(self.shared.idle), None)
        if now - self.shared.warned_at > _WARN_S:
            self.shared.warned_at = now
            which = "the one that was idle longest" if idle else "the slowest one"
            log.warning(f"all connections are in use; {which} is closed", connections=self.shared.limit)
        if idle:
            idle._cancel_timer()
            idle.transport.close()
        elif slowest := self.shared.slowest(self.connections, self, now):  # type: ignore[arg-type]
            slowest._close_slow()
        elif len(self.connections) > self.shared.limit + _EXTRA_CONNECTIONS:
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, "All connections are in use. Retry later.")

    def _close_slow(self) -> None:
        """Close the connection at once. A client that is sending a body gets the reason."""
        self._cancel_timer()
        text = "The request body arrived too slowly while all connections were in use. Retry later."
        body = self.conn.their_state is h11.SEND_BODY
        if body and self._respond(HTTPStatus.REQUEST_TIMEOUT, text) and not self.transport.get_write_buffer_size():
            self.transport.close()
        else:
            self.transport.abort()


def bounded(timeout_s: float, keep_alive_s: float) -> type[Connection]:
    """Create the protocol class for one server. Raises the soft limit of open files as far as connections need it."""

    class Bounded(Connection):
        shared = Shared(timeout_s, keep_alive_s, _connection_limit())
        turns = Turns(_CHUNKED_AT_ONCE)
        large_turns = Turns(_LARGE_AT_ONCE)

    return Bounded


def _connection_limit() -> int:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MAX_CONNECTIONS + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        return max(1, soft - _OTHER_FILES)
    return _MAX_CONNECTIONS
