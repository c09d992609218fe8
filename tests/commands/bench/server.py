"""A small real HTTP server whose every answer is known."""

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

CLOSE = "Connection: close\r\n"


@dataclass
class Request:
    line: str
    headers: dict[str, str]
    body: bytes


class Known:
    """Answers POSTs with ``statuses`` in turn: a status, or what is to happen instead of an answer.

    ``refuse`` is a 503 before the body is read, ``reset`` cuts the connection, ``hang`` never answers, ``noise`` is not
    HTTP, ``patient`` is 503 for a request that states a timeout, else 200. GETs get ``pages``. ``requests`` and
    ``connections`` are what came; ``left`` is set when a client leaves a request that hangs.
    """

    def __init__(self, *statuses: int | str, pages: dict[str, str | Callable[[], str]] | None = None) -> None:
        self.statuses = statuses or (200,)
        self.pages = pages or {}
        self.requests: list[Request] = []
        self.connections = self.at_once = self.most_at_once = 0
        self.left = threading.Event()
        self.busy = threading.Event()
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._started.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(10)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def _serve(self) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        self._connections: set[asyncio.Task[None]] = set()
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._started.set()
        await self._over.wait()
        server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task
        self._connections.add(task)
        try:
            while await self._exchange(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._connections.discard(task)
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        line, *lines = head.split("\r\n")
        headers = {name.lower(): value for name, _, value in (h.partition(": ") for h in lines if h)}
        if line.startswith("GET"):
            page = self.pages.get(line.split()[1])
            _answer(writer, 200 if page else 404, page() if callable(page) else page or "")
            return True
        what = self.statuses[len(self.requests) % len(self.statuses)]
        if what == "patient":
            what = 503 if "x-request-timeout-ms" in headers else 200
        request = Request(line, headers, b"")
        self.requests.append(request)
        if what == "refuse":
            _answer(writer, 503, "full", CLOSE)
            while await reader.read(2**16):
                pass
            return False
        request.body = await reader.readexactly(int(headers["content-length"]))
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            return await self._act(what, reader, writer)
        finally:
            self.at_once -= 1
            if len(self.requests) > 20:
                self.busy.set()

    async def _act(self, what: int | str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        if what == "reset":
            writer.transport.abort()
            return False
        if what == "hang":
            assert not await reader.read(1)
            self.left.set()
            return False
        if what == "noise":
            writer.write(b"no HTTP at all\r\n\r\n")
            return False
        _answer(writer, int(what), '{"predictions": []}')
        await writer.drain()
        return True


def _answer(writer: asyncio.StreamWriter, status: int, body: str, headers: str = "") -> None:
    writer.write(f"HTTP/1.1 {status} Known\r\n{headers}Content-Length: {len(body)}\r\n\r\n{body}".encode())
