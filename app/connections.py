"""One connection, as uvicorn's protocol, with what that leaves open: bounds on time and number, and a strict reading.

A request head must come whole within a time, its answer must be taken within one, and where connections run out the
one that has waited longest for a head makes room. What two HTTP parsers may read differently is refused, so that no
request hides in another's body behind a proxy (RFC 9112, section 11.2). A client that has closed its sending side
alone still gets its answer.
"""

import re
import resource
import socket
from asyncio import BaseTransport, TimerHandle
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING

import h11
import structlog
from uvicorn.protocols.http.h11_impl import H11Protocol

log = structlog.get_logger("topk")

_MOST = 16_384  # connections of a process
_OTHER_FILES = 64  # that a process opens: listener, logs, pages, what the engine needs
_SAY_S = 10.0
_PROBE_S = 0.01

_END_OF_HEAD = re.compile(rb"\n\r?\n")
_AMBIGUOUS = re.compile(rb"(?<!\r)\n|\r(?!\n)|\n[ \t]")  # bare LF, bare CR, obs-fold
_FRAMING = re.compile(rb"\n(content-length|transfer-encoding):", re.IGNORECASE)


@dataclass(slots=True)
class Waiting:
    """A server's connections that wait for a request head, the longest waiting first; times in seconds."""

    timeout_s: float
    most: int
    timers: dict["Connection", TimerHandle] = field(default_factory=dict)
    said: float = float("-inf")


class Connection(H11Protocol):
    """Made by ``bounded``, which gives it what it shares with the others."""

    waiting: Waiting
    half_closed = False

    def connection_made(self, transport: BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
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
        if self.conn.their_state is h11.IDLE and _is_ambiguous(self.conn.trailing_data[0]):
            self._refuse(HTTPStatus.BAD_REQUEST, "The request can be read in more than one way.")
            return
        super().handle_events()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch_head()
        if self.half_closed and self.cycle.response_complete:
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        self._refuse(HTTPStatus.BAD_REQUEST, msg)

    def _refuse(self, status: HTTPStatus, text: str) -> None:
        """Answer what is no request, unless an answer is under way already, and close."""
        if self.cycle:
            self.cycle.disconnected = True  # what the app may still have to say is not said
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
            for event in (
                h11.Response(status_code=status, headers=headers, reason=status.phrase.encode()),
                h11.Data(data=text.encode()),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

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

    return Bounded


def _room() -> int:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        return max(1, soft - _OTHER_FILES)
    return _MOST


def _is_ambiguous(data: bytes) -> bool:
    """Whether a whole head at the start of these bytes may mean one thing to a proxy and another here."""
    end = _END_OF_HEAD.search(data)
    if end is None:
        return False
    head = data[: end.end()]
    return bool(_AMBIGUOUS.search(head)) or len({name.lower() for name in _FRAMING.findall(head)}) > 1
