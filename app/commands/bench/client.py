"""Sends requests and records what becomes of them. Runs on the event loop."""

import asyncio
import io
import itertools
import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import aiohttp

from app import __version__
from app.commands.bench.bodies import Body

_IDLE_S = 2.0  # a connection that was idle for longer is not reused, because the server may be closing it
_LARGE = 2**20  # aiohttp writes bytes in one go, so larger bodies are passed as files
_NO_HEADERS: Mapping[str, str] = {}


class Record(NamedTuple):
    """One request, in monotonic seconds. ``status`` is 0 without a response; ``error`` then has the reason.

    ``due`` is the scheduled time of the request, ``begun`` the actual one.
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
    """Any number of keep-alive connections. No proxy, no cookies, no retries."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_IDLE_S, ttl_dns_cache=None),
        headers={"User-Agent": f"topk-bench/{__version__}", **headers},
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, connect=None),
        auto_decompress=False,
    )


class Client:
    """Sends bodies in turn to one URL. ``records`` are in the order in which the requests ended.

    ``connect_error`` is the reason of the last failed connection.
    """

    def __init__(self, session: aiohttp.ClientSession, url: str, bodies: Sequence[Body]) -> None:
        self.session = session
        self.url = url
        self.records: list[Record] = []
        self.connect_error = ""
        self._bodies = itertools.cycle(bodies)

    async def send(self, due: float, give_up: float, headers: Mapping[str, str] = _NO_HEADERS) -> Record:
        """Send one request. Closes the connection if the response is not complete by ``give_up`` (loop time)."""
        time = asyncio.get_running_loop().time
        begun, status, error = time(), 0, ""
        try:
            async with asyncio.timeout_at(give_up):
                status = await self._post(next(self._bodies), headers)
        except (aiohttp.ClientError, TimeoutError, OSError) as failure:
            error = _kind(failure)
            if isinstance(failure, aiohttp.ClientConnectorError):
                self.connect_error = _reason(failure)
        record = Record(due, begun, time(), status, error)
        self.records.append(record)
        return record

    async def _post(self, body: Body, headers: Mapping[str, str]) -> int:
        data = body.content if len(body.content) < _LARGE else io.BytesIO(body.content)
        all_headers = {"Content-Type": body.content_type, **headers}
        async with self.session.post(self.url, data=data, headers=all_headers, allow_redirects=False) as response:
            await response.read()
            return response.status


def _reason(failure: aiohttp.ClientConnectorError) -> str:
    """The operating system's message, or the one about the certificate."""
    cause = failure.os_error
    if isinstance(failure, aiohttp.ClientConnectorDNSError) or not cause.errno:
        return str(cause.strerror or cause)
    return os.strerror(cause.errno)


def _kind(failure: Exception) -> str:
    """``timeout``, ``connect`` (no connection), ``reset`` (closed early) or ``protocol`` (not HTTP)."""
    match failure:
        case TimeoutError():
            return "timeout"
        case aiohttp.ClientConnectorError():
            return "connect"
        case aiohttp.ClientPayloadError() | aiohttp.ClientConnectionError() | OSError():
            return "reset"
    return "protocol"
