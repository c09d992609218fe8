"""One connection, as uvicorn's protocol, with what that leaves open: bounds on time, size and number, a strict reading.

A request head must come whole within a time and a size, its answer must be taken within one, and where connections run
out the one that has waited longest for a head makes room. What two HTTP parsers may read differently is refused, so
that no request hides in another's body behind a proxy (RFC 9112, section 11.2). A refusal arrives: what its client
still writes is read and discarded for a moment, as in ``api.middleware``. A client that has closed its sending side
alone still gets its answer.
"""

import re
import resource
import socket
from asyncio import BaseTransport, TimerHandle
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import h11
import structlog
from uvicorn.protocols.http.h11_impl import H11Protocol

from app.api.chunks import TINY, ChunkReader, Flow, Turns
from app.api.middleware import DISCARD_BYTES, DISCARD_S

log = structlog.get_logger("topk")

HEAD_BYTES = 65_536  # also of a chunk's own head, and of trailers

_MOST = 16_384  # connections of a process
_OTHER_FILES = 64  # that a process opens: listener, logs, pages, what the engine needs
_SAY_S = 10.0
_PROBE_S = 0.01

_END_OF_HEAD = re.compile(rb"\n\r?\n")
_AMBIGUOUS = re.compile(rb"(?<!\r)\n|\r(?!\n)|\n[ \t]")  # bare LF, bare CR, obs-fold
_AUTHORITY = re.compile(rb"https?://[^/?]*", re.IGNORECASE)
_FRAMING = re.compile(rb"\n(content-length|transfer-encoding):", re.IGNORECASE)


@dataclass(slots=True)
class Waiting:
    """A server's connections that wait for a request head, or for a refused client to leave, the longest first.

    Times in seconds.
    """

    timeout_s: float
    most: int
    timers: dict["Connection", TimerHandle] = field(default_factory=dict)
    said: float = float("-inf")


class Reading(ChunkReader):
    """A server need not be a proxy to be asked as one: absolute form is read as origin form (RFC 9112, 3.2.2)."""

    def next_event(self) -> Any:
        event = super().next_event()
        if isinstance(event, h11.Request) and (found := _AUTHORITY.match(event.target)):
            path = event.target[found.end() :]
            target = path if path.startswith(b"/") else b"/" + path
            return h11.Request(
                method=event.method, headers=event.headers, target=target, http_version=event.http_version
            )
        return event


class Connection(H11Protocol):
    """Made by ``bounded``, which gives it what it shares with the others. ``discard``: bytes, once it is refused."""

    waiting: Waiting
    turns: Turns
    half_closed = False
    discard: int | None = None
    conn: Reading
    flow: Flow

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conn = Reading(h11.SERVER, HEAD_BYTES)

    def connection_made(self, transport: BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        self.flow = Flow(self.transport)
        if TYPE_CHECKING or hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux: for a client that takes no answer
            milliseconds = int(self.waiting.timeout_s * 1000)
            transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
        self._watch_head()
        if len(self.connections) > self.waiting.most:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._cease_waiting()

    def data_received(self, data: bytes) -> None:
        if self.discard is not None:
            self.discard -= len(data)
            if self.discard < 0:
                self.transport.close()
            return
        super().data_received(data)
        self._watch_head()

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
        if self.conn.their_state is h11.IDLE and (refusal := _refusal(self.conn.trailing_data[0])):
            self._refuse(*refusal)
            return
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
            self._watch_head()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch_head()
        if self.half_closed and self.cycle.response_complete:
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        self._refuse(HTTPStatus.BAD_REQUEST, msg)

    def _refuse(self, status: HTTPStatus, text: str) -> None:
        """Answer what is no request, unless an answer is under way already, and close once its client has had it."""
        self._cease_waiting()
        if self.cycle:
            self.cycle.disconnected = True  # what the app may still have to say is not said
            self.cycle.message_event.set()
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.close()
            return
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
        self.transport.write_eof()
        self.conn = Reading(h11.SERVER, HEAD_BYTES)  # what came is not kept
        self.discard = DISCARD_BYTES
        self.waiting.timers[self] = self.loop.call_later(DISCARD_S, self.transport.close)
        self.flow.resume_reading()

    def _probe(self, pause_s: float) -> None:
        """Find out whether a client that sends no more has left: then its system resets the connection.

        RFC 9110, 15.2: a client takes interim answers even where it expects none.
        """
        if not self.transport.is_closing() and self.conn.our_state is h11.SEND_RESPONSE:
            interim = h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue")
            self.transport.write(self.conn.send(interim) or b"")
            self.loop.call_later(pause_s, self._probe, 2 * pause_s)

    def _watch_head(self) -> None:
        """The time runs from when a head may come until it is whole, however often a byte of it comes."""
        if self.discard is not None:
            return
        if self.conn.their_state is not h11.IDLE or self.transport.is_closing():
            self._cease_waiting()
        elif self not in self.waiting.timers:
            self.waiting.timers[self] = self.loop.call_later(self.waiting.timeout_s, self._head_is_late)

    def _cease_waiting(self) -> None:
        if timer := self.waiting.timers.pop(self, None):
            timer.cancel()

    def _head_is_late(self) -> None:
        self._cease_waiting()
        if self.conn.trailing_data[0]:
            self._refuse(HTTPStatus.REQUEST_TIMEOUT, "The request's head did not come in time.")
        else:
            self.transport.close()

    def _make_room(self) -> None:
        now = self.loop.time()
        if now - self.waiting.said > _SAY_S:
            self.waiting.said = now
            log.warning("no more connections: the one that waits longest makes room", connections=self.waiting.most)
        longest = next(iter(self.waiting.timers))
        longest._cease_waiting()
        longest.transport.abort()


def bounded(timeout_s: float) -> type[Connection]:
    """The protocol for one server. Raises this process's soft limit of open files as far as connections need it."""

    class Bounded(Connection):
        waiting = Waiting(timeout_s, _room())
        turns = Turns()

    return Bounded


def _room() -> int:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        return max(1, soft - _OTHER_FILES)
    return _MOST


def _refusal(data: bytes) -> tuple[HTTPStatus, str] | None:
    """Why the head at the start of these bytes is none; None where it is one, or may yet become one."""
    end = _END_OF_HEAD.search(data, 0, HEAD_BYTES)
    if end is None:
        if len(data) < HEAD_BYTES:
            return None
        line = b"\n" not in data[:HEAD_BYTES]
        status = HTTPStatus.REQUEST_URI_TOO_LONG if line else HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
        return status, f"The request's head has more than {HEAD_BYTES} bytes."
    if _is_ambiguous(data[: end.end()]):
        return HTTPStatus.BAD_REQUEST, "The request can be read in more than one way."
    return None


def _is_ambiguous(head: bytes) -> bool:
    """Whether a whole head may mean one thing to a proxy and another here."""
    return bool(_AMBIGUOUS.search(head)) or len({name.lower() for name in _FRAMING.findall(head)}) > 1
