"""The cost of the client itself: the same bodies sent to a server without a model."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from app.commands.bench.bodies import Body
from app.commands.bench.client import Client, session
from app.commands.bench.loads import Closed
from app.errors import LoadTestError

SECONDS = 1.0
CLIENTS = 16


@dataclass(frozen=True, slots=True)
class Overhead:
    """The client's CPU time per request, and the highest rate it reached, in requests per second."""

    cpu_ms: float
    largest_rate: float

    def as_dict(self) -> dict[str, float]:
        return {"cpu_ms": round(self.cpu_ms, 4), "largest_rate": round(self.largest_rate, 1)}


@asynccontextmanager
async def constant_server() -> AsyncIterator[str]:
    """The URL of a constant-response server in its own process."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "app.commands.bench.constant"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,  # so that Ctrl-C does not reach it; it ends when its stdin is closed
    )
    assert process.stdin
    assert process.stdout
    try:
        port = await process.stdout.readline()
        if not port:
            raise LoadTestError("the client's own cost cannot be measured: the constant-response server did not start")
        yield f"http://127.0.0.1:{int(port)}/"
    finally:
        process.stdin.close()
        await process.wait()


async def measure(bodies: Sequence[Body], headers: dict[str, str], seconds: float = SECONDS) -> Overhead:
    """Load the constant server with 16 clients."""
    async with constant_server() as url, session(headers) as connections:
        client = Client(connections, url, bodies)
        loop, load = asyncio.get_running_loop(), Closed(CLIENTS)
        await load.drive(client, loop.time() + seconds / 10)  # connections, caches
        client.records.clear()
        started, cpu = loop.time(), time.process_time()
        await load.drive(client, started + seconds)
        cpu, elapsed, count = time.process_time() - cpu, loop.time() - started, len(client.records)
    return Overhead(cpu_ms=cpu / count * 1000, largest_rate=count / elapsed)
