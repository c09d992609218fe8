"""One request -> a record. Runs on the event loop."""

import asyncio
import io
import itertools
import os
from collections.abc import Sequence
from typing import NamedTuple

import aiohttp

from app import __version__
from app.commands.bench.bodies import Body

_IDLE_S = 2.0  # a connection idle for longer is not used again: the server may be closing it at that moment
_LARGE = 2**20  # from here on aiohttp wants a file: it writes bytes in one go


class Record(NamedTuple):
    """Monotonic seconds; ``status`` is 0 where ``error`` says why no answer came.

    ``due`` is when the request was to be sent, ``begun`` when it was.
    """

    due: float
    begun: float
    ended: float
    status: int
    error: str = ""

    @property
    def latency(self) -> float:
        return self.ended - self.due


def session(headers: dict[str, str]) -> aiohttp.ClientSession:
    """Connections without a limit, kept alive; no proxy, no cookies, no retries."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_IDLE_S, ttl_dns_cache=None),
        headers={"User-Agent": f"topk-bench/{__version__}", **headers},
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, connect=None),
        auto_decompress=False,
    )


class Client:
    """Sends bodies in turn to one URL; ``records`` holds what became of them, in the order they ended.

    ``unreachable`` is why no connection came about, the last time that it did not.
    """

    def __init__(self, session: aiohttp.ClientSession, url: str, bodies: Sequence[Body]) -> None:
        self.session = session
        self.url = url
        self.records: list[Record] = []
        self.unreachable = ""
        self._bodies = itertools.cycle(bodies)

    async def send(self, due: float, give_up: float) -> Record:
        """One request; its connection is closed where no whole answer has come by ``give_up`` (loop time)."""
        time = asyncio.get_running_loop().time
        begun, status, error = time(), 0, ""
        try:
            async with asyncio.timeout_at(give_up):
                status = await self._post(next(self._bodies))
        except (aiohttp.ClientError, TimeoutError, OSError) as failure:
            error = _kind(failure)
            if isinstance(failure, aiohttp.ClientConnectorError):
                self.unreachable = _reason(failure)
        record = Record(due, begun, time(), status, error)
        self.records.append(record)
        return record

    async def _post(self, body: Body) -> int:
        data = body.content if len(body.content) < _LARGE else io.BytesIO(body.content)
        headers = {"Content-Type": body.content_type}
        async with self.session.post(self.url, data=data, headers=headers, allow_redirects=False) as answer:
            await answer.read()
            return answer.status


def _reason(failure: aiohttp.ClientConnectorError) -> str:
    """In the system's words: refused, no such host, no route; a certificate's fault in its own."""
    cause = failure.os_error
    if isinstance(failure, aiohttp.ClientConnectorDNSError) or not cause.errno:
        return str(cause.strerror or cause)
    return os.strerror(cause.errno)


def _kind(failure: Exception) -> str:
    """timeout, connect (no connection), reset (cut off in between) or protocol (no HTTP)."""
    match failure:
        case TimeoutError():
            return "timeout"
        case aiohttp.ClientConnectorError():
            return "connect"
        case aiohttp.ClientPayloadError() | aiohttp.ClientConnectionError() | OSError():
            return "reset"
    return "protocol"
