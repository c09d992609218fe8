"""A server without a model, in its own process: it reads each body and sends a constant response.

``python -m app.commands.bench.constant`` prints its port and serves until stdin is closed.
"""

import asyncio
import re
import sys

_LENGTH = re.compile(rb"^content-length: *(\d+)\r$", re.IGNORECASE | re.MULTILINE)
_CONTENT = b'{"model": "constant", "weights": "none", "predictions": []}'
RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (
    len(_CONTENT),
    _CONTENT,
)


class Constant(asyncio.Protocol):
    """The part of HTTP that our client uses: bodies with a length, one request at a time."""

    def __init__(self) -> None:
        self._head = b""
        self._left = 0  # bytes of the body not yet received

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if self._left:
            self._left -= len(data)
        else:
            self._head += data
            head, end, begun = self._head.partition(b"\r\n\r\n")
            if not end:
                return
            length = _LENGTH.search(head + b"\r")
            self._head, self._left = b"", (int(length[1]) if length else 0) - len(begun)
        if self._left <= 0:
            self._left = 0
            self._transport.write(RESPONSE)


async def serve() -> None:
    server = await asyncio.get_running_loop().create_server(Constant, "127.0.0.1", 0)
    async with server:
        print(server.sockets[0].getsockname()[1], flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(serve())
