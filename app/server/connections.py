"""One connection, as uvicorn's protocol, with bounds on time, size and number, and one strict reading of HTTP.

A request head must be complete within a time limit and a size limit, and a client must take its answer within that
time. When all connections are in use, the client that keeps the server waiting most makes room for a newcomer. What
two HTTP parsers may read differently is refused, so that no request hides in another's body behind a proxy (RFC 9112,
section 11.2). A refusal arrives: what its client still writes is read and discarded for a moment, as in
``api.middleware``. A client that has closed only its sending side still gets its answer. The requests of a client that
has left are not started.
"""

import asyncio
import heapq
import re
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

from app.api.chunks import TINY, ChunkReader, Flow, Turns
from app.api.middleware import DISCARD_BYTES, DISCARD_S

log = structlog.get_logger("topk")

HEAD_BYTES = 65_536  # also of a chunk's own head, and of trailers
PATH_BYTES = 8192
MOST_FIELDS = 100  # header fields of a request, and as many trailers

_MOST = 16_384  # connections of a process
_OTHER_FILES = 64  # that a process opens: listener, logs, pages, what the engine needs
_OVER = 16  # connections above the limit while nobody can make room
_SAY_S = 10.0
_PROBE_S = 0.01
_TCP_CLOSE = 7  # TCP_CLOSE in linux/tcp.h, after a reset
_ADVANCE_BYTES = 16_384  # what every client is presumed to have sent at once: a new one is not yet slow
_RANKED, _RANKED_S = 128, 1.0  # clients that are ranked at once, and how long the ranking counts
_CHUNKED_AT_ONCE = 4  # connections that read on in one turn of the event loop, where chunks are left
_LARGE_BYTES = 2**20  # larger bodies take turns: eight of them would make each turn of the event loop take milliseconds
_LARGE_AT_ONCE = 1
_AT_ONCE = 8  # requests that are started, or told that their client has left, in one turn of the event loop

_END_OF_HEAD = re.compile(rb"\n\r?\n")
_AMBIGUOUS = re.compile(rb"(?<!\r)\n|\r(?!\n)|\n[ \t]")  # bare LF, bare CR, obs-fold
_AUTHORITY = re.compile(rb"https?://[^/?]*", re.IGNORECASE)
_FRAMING = re.compile(rb"\n(content-length|transfer-encoding):", re.IGNORECASE)
_OTHER_VERSION = re.compile(rb" (HTTP/(?!1\.)\d{1,9}(?:\.\d{1,9})?)\r?\n")

Refusal = tuple[HTTPStatus, str]


@dataclass(slots=True)
class Shared:
    """What the connections of one server share. Times in seconds.

    ``timers``: the connections that wait for a request head, or for a refused client to leave. ``ranked``: the slowest
    clients, the slowest first, with the time since which each was waited for. ``later``: calls of which a few are made
    in each turn of the event loop. ``started``: requests in this turn.
    """

    timeout_s: float
    most: int
    timers: dict["Connection", TimerHandle] = field(default_factory=dict)
    ranked: deque[tuple["Connection", float]] = field(default_factory=deque)
    ranked_at: float = float("-inf")
    later: deque[Callable[[], object]] = field(default_factory=deque)
    started: int = 0
    said: float = float("-inf")

    def slowest(self, connections: Iterable["Connection"], newcomer: "Connection", now: float) -> "Connection | None":
        """The connection that can best be spared for ``newcomer``; None where all have requests that are computed."""
        for again in (now - self.ranked_at > _RANKED_S, True):
            if again:
                self._rank(connections, now)
            while self.ranked:
                connection, since = self.ranked.popleft()
                if connection is not newcomer and connection.since == since and connection.pace(now) is not None:
                    return connection
        return None

    def _rank(self, connections: Iterable["Connection"], now: float) -> None:
        """Rank many at once: to look at all connections for each newcomer would cost milliseconds."""
        paces = [(pace, id(each), each) for each in connections if (pace := each.pace(now)) is not None]
        slowest = heapq.nsmallest(max(2, min(_RANKED, len(paces) // 8)), paces)  # the newcomer may be one of them
        self.ranked = deque((each, each.since) for _, _, each in slowest)
        self.ranked_at = now

    def in_turn(self, call: Callable[[], object], loop: AbstractEventLoop) -> None:
        """Call a few of these in each turn of the event loop, so that thousands at once hold nobody up."""
        self.later.append(call)
        if len(self.later) == 1:
            loop.call_soon(self._call, loop)

    async def start(self, loop: AbstractEventLoop) -> None:
        """Wait where many requests start in this turn of the event loop."""
        if not self.started:
            loop.call_soon(self._turn_over)
        self.started += 1
        if self.started > _AT_ONCE:
            turn = asyncio.Event()
            self.in_turn(turn.set, loop)
            await turn.wait()

    def _turn_over(self) -> None:
        self.started = 0

    def _call(self, loop: AbstractEventLoop) -> None:
        for _ in range(min(_AT_ONCE, len(self.later))):
            self.later.popleft()()
        if self.later:
            loop.call_soon(self._call, loop)


class ChunkedBody(h11._readers.ChunkedReader):
    """Reads a chunked body; refuses more trailers than a request may have header fields before they are parsed."""

    def __call__(self, buf: Any) -> Any:
        if self._reading_trailer:  # h11 calls again once it has read the last chunk
            data = bytes(buf)
            end = None if data.startswith(b"\r\n") else _END_OF_HEAD.search(data)
            if data.count(b"\n", 0, end.end() if end else 0) > MOST_FIELDS + 1:
                raise h11.LocalProtocolError("too many trailers")
        return super().__call__(buf)


class Reading(ChunkReader):
    """h11's parser, with every request head judged before it is parsed; ``refusal`` is why one was refused.

    A server need not be a proxy to be asked as one: absolute form is read as origin form (RFC 9112, 3.2.2). A later
    minor version is read as HTTP/1.1 (RFC 9110, 2.5).
    """

    refusal: Refusal | None = None

    def next_event(self) -> Any:
        if self.their_state is h11.IDLE and (refusal := _refusal(self.trailing_data[0])):
            self.refusal = refusal
            raise h11.RemoteProtocolError(refusal[1])
        event = super().next_event()
        return _as_origin(event) if isinstance(event, h11.Request) else event

    def _get_io_object(self, *arguments: Any) -> Any:
        reader = super()._get_io_object(*arguments)
        return ChunkedBody() if type(reader) is h11._readers.ChunkedReader else reader


def _as_origin(event: h11.Request) -> h11.Request:
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


class Connection(H11Protocol):
    """Made by ``bounded``, which gives it what it shares with the others. ``discard``: bytes, once it is refused.

    ``since`` is when the client began to be waited for, ``got`` what has come of a body since then, in bytes.
    """

    shared: Shared
    turns: Turns
    large_turns: Turns
    conn: Reading
    flow: Flow
    half_closed = False
    discard: int | None = None
    since = 0.0
    got = 0
    _owed: object = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conn = Reading(h11.SERVER, HEAD_BYTES)
        self._serve, self.app = self.app, self._serve_if_there

    def connection_made(self, transport: BaseTransport) -> None:
        if transport.get_extra_info("peername") is None:  # reset while it waited to be accepted
            transport.abort()  # type: ignore[attr-defined]
            return
        super().connection_made(transport)  # type: ignore[arg-type]
        self.flow = Flow(self.transport)
        if TYPE_CHECKING or hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux: for a client that takes no answer
            milliseconds = int(self.shared.timeout_s * 1000)
            transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
        self._watch()
        if len(self.connections) > self.shared.most:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.transport is None:  # it was never made
            return
        cycle = self.cycle
        if cycle and not cycle.response_complete:
            cycle.disconnected = True
            self.cycle = None  # type: ignore[assignment]  # it is told in its turn
            self.shared.in_turn(cycle.message_event.set, self.loop)
        super().connection_lost(exc)
        self._cease_waiting()

    def data_received(self, data: bytes) -> None:
        if self.discard is not None:
            self.discard -= len(data)
            if self.discard < 0:
                self.transport.close()
            return
        super().data_received(data)
        self._watch(len(data))
        if self.got > _LARGE_BYTES and not self.flow.held:
            self.flow.hold()
            self.large_turns.add(self._read_on, self.loop)

    def _read_on(self) -> None:
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
        """Whether the connection stays open: the request is whole, and its client may be listening.

        HTTP/1.0 knows no interim answers to find that out with, and proxies that speak it mean that they have left.
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
            self.turns.add(self._go_on, self.loop)

    def _go_on(self) -> None:
        """Read the chunks that were left for another turn of the event loop."""
        if self.transport.is_closing():
            return
        self.flow.release()
        if self.discard is None:
            self.handle_events()
            self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()
        if self.half_closed and self.cycle.response_complete:
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        self._refuse(*(self.conn.refusal or (HTTPStatus.BAD_REQUEST, msg)))

    async def _serve_if_there(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Start a request, unless its client has left meanwhile: after a storm of resets thousands have."""
        cycle = self.cycle
        await self.shared.start(self.loop)
        if cycle.disconnected:
            return
        if self._is_reset():
            cycle.disconnected = True
            self.transport.abort()
            return
        await self._serve(scope, receive, send)

    def _is_reset(self) -> bool:
        """Whether the client has reset the connection, which the event loop may not know yet."""
        if TYPE_CHECKING or hasattr(socket, "TCP_INFO"):  # Linux; its first byte is the connection's state
            try:
                state = self.transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
            except (OSError, ValueError):  # it is closed already
                return True
            return bool(state[0] == _TCP_CLOSE)
        return False

    def _refuse(self, status: HTTPStatus, text: str) -> None:
        """Answer what is no request, unless an answer is under way already, and close once its client has had it."""
        if not self._answer(status, text):
            self.transport.close()
            return
        self.transport.write_eof()
        self.conn = Reading(h11.SERVER, HEAD_BYTES)  # what came is not kept
        self.discard = DISCARD_BYTES
        self.shared.timers[self] = self.loop.call_later(DISCARD_S, self.transport.close)
        self.flow.resume_reading()

    def _answer(self, status: HTTPStatus, text: str) -> bool:
        """Answer in place of the app; False where an answer is under way already."""
        self._cease_waiting()
        if self.cycle:
            self.cycle.disconnected = True  # what the app may still have to say is not said
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
        """Find out whether a client that sends no more has left: then its system resets the connection.

        RFC 9110, 15.2: a client takes interim answers even where it expects none.
        """
        if not self.transport.is_closing() and self.conn.our_state is h11.SEND_RESPONSE:
            interim = h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue")
            self.transport.write(self.conn.send(interim) or b"")
            self.loop.call_later(pause_s, self._probe, 2 * pause_s)

    def _watch(self, received: int = 0) -> None:
        """Note what the client owes now, and that ``received`` bytes came.

        The time for a head runs from when it may come until it is complete, however often a byte of it comes.
        """
        if self.discard is None:
            if self.conn.their_state is not h11.IDLE or self.transport.is_closing():
                self._cease_waiting()
            elif self not in self.shared.timers:
                self.shared.timers[self] = self.loop.call_later(self.shared.timeout_s, self._head_is_late)
        state = self.conn.their_state
        body = state is h11.SEND_BODY
        owed = "answer" if self.flow.write_paused else self.cycle if body else state
        if owed is self._owed:
            self.got += received if body else 0
        else:
            self._owed, self.since, self.got = owed, self.loop.time(), 0

    def pace(self, now: float) -> float | None:
        """Bytes a second that have come since the client began to be waited for; None where it is not waited for.

        It is waited for where it owes a head, more of a body that the app takes, or has to take its answer.
        """
        body = self.conn.their_state is h11.SEND_BODY and not self.flow.read_paused
        if self.transport.is_closing() or not (body or self.flow.write_paused or self in self.shared.timers):
            return None
        return (self.got + _ADVANCE_BYTES) / max(now - self.since, 0.001)

    def _cease_waiting(self) -> None:
        if timer := self.shared.timers.pop(self, None):
            timer.cancel()

    def _head_is_late(self) -> None:
        self._cease_waiting()
        if self.conn.trailing_data[0]:
            self._refuse(HTTPStatus.REQUEST_TIMEOUT, "The request's head did not come in time.")
        else:
            self.transport.close()

    def _make_room(self) -> None:
        """End the connection of the slowest client, never that of this newcomer nor one whose request is computed.

        Where there is no such client, a few connections beyond the limit are kept, for health checks; above those the
        newcomer is answered 503.
        """
        now = self.loop.time()
        if now - self.shared.said > _SAY_S:
            self.shared.said = now
            log.warning("all connections are in use: the slowest client makes room", connections=self.shared.most)
        if slowest := self.shared.slowest(self.connections, self, now):  # type: ignore[arg-type]
            slowest._end()
        elif len(self.connections) > self.shared.most + _OVER:
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, "All connections are in use; try again later.")

    def _end(self) -> None:
        """Free the connection at once; a client in mid-body is told why."""
        self._cease_waiting()
        text = "The request's body came too slowly for a server whose connections are all in use."
        body = self.conn.their_state is h11.SEND_BODY
        if body and self._answer(HTTPStatus.REQUEST_TIMEOUT, text) and not self.transport.get_write_buffer_size():
            self.transport.close()
        else:
            self.transport.abort()


def bounded(timeout_s: float) -> type[Connection]:
    """The protocol for one server. Raises this process's soft limit of open files as far as connections need it."""

    class Bounded(Connection):
        shared = Shared(timeout_s, _room())
        turns = Turns(_CHUNKED_AT_ONCE)
        large_turns = Turns(_LARGE_AT_ONCE)

    return Bounded


def _room() -> int:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        return max(1, soft - _OTHER_FILES)
    return _MOST


def _refusal(data: bytes) -> Refusal | None:
    """Why the head at the start of these bytes is refused; None where it is accepted, or not yet complete.

    It only counts and searches: what is refused is never parsed.
    """
    end = _END_OF_HEAD.search(data, 0, HEAD_BYTES)
    lines = data.count(b"\n", 0, end.start() + 1 if end else HEAD_BYTES)
    if lines > MOST_FIELDS + 1:  # the request line is one more
        text = f"The request has more than {MOST_FIELDS} header fields."
        return HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, text
    if end is None:
        if len(data) < HEAD_BYTES:
            return None
        status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE if lines else HTTPStatus.REQUEST_URI_TOO_LONG
        return status, f"The request's head has more than {HEAD_BYTES} bytes."
    line = data[: data.index(b"\n") + 1]
    if other := _OTHER_VERSION.search(line):
        return HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, f"{other[1].decode()} is not served: use HTTP/1.1."
    if len(line.partition(b"?")[0]) > PATH_BYTES:
        return HTTPStatus.REQUEST_URI_TOO_LONG, f"The request's path has more than {PATH_BYTES} bytes."
    if _is_ambiguous(data[: end.end()]):
        return HTTPStatus.BAD_REQUEST, "The request can be read in more than one way."
    return None


def _is_ambiguous(head: bytes) -> bool:
    """Whether a whole head may mean one thing to a proxy and another here."""
    return bool(_AMBIGUOUS.search(head)) or len({name.lower() for name in _FRAMING.findall(head)}) > 1
