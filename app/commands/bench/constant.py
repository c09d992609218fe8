"""A server without a model, a process of its own: reads each body, answers a constant.

``python -m app.commands.bench.constant`` prints its port and serves until its standard input ends.
"""

import asyncio
import re
import sys

_LENGTH = re.compile(rb"^content-length: *(\d+)\r$", re.IGNORECASE | re.MULTILINE)
_CONTENT = b'{"model": "constant", "weights": "none", "predictions": []}'
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (
    len(_CONTENT),
    _CONTENT,
)


class Constant(asyncio.Protocol):
    """HTTP as far as our own client speaks it: bodies with a length, one request after the other."""

    def __init__(self) -> None:
        self._head = b""
        self._left = 0  # bytes of the body still to come

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
            self._transport.write(ANSWER)


async def serve() -> None:
    server = await asyncio.get_running_loop().create_server(Constant, "127.0.0.1", 0)
    async with server:
        print(server.sockets[0].getsockname()[1], flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(serve())
