"""When requests are sent: by clients that wait for their responses, or at a fixed rate."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from app.commands.bench.client import Client

TIMEOUT_S = 60.0
_PAUSE_AFTER_ERROR_S = 0.05  # so that a client does not spin when nothing listens


@dataclass(frozen=True, slots=True)
class Closed:
    """Each of ``clients`` sends its next request when the previous one has ended."""

    clients: int

    @property
    def size(self) -> float:
        return self.clients

    @property
    def label(self) -> str:
        return f"{self.clients} client{'s' * (self.clients != 1)}"

    async def drive(self, client: Client, until: float) -> None:
        """Begin requests up to ``until`` (loop time). Returns when the last one has ended."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self.clients):
                group.create_task(self._one(client, until))

    async def _one(self, client: Client, until: float) -> None:
        time = asyncio.get_running_loop().time
        while (now := time()) < until:
            record = await client.send(now, now + TIMEOUT_S)
            if record.error:
                await asyncio.sleep(_PAUSE_AFTER_ERROR_S)


@dataclass(frozen=True, slots=True)
class Open:
    """Poisson arrivals, ``rate`` per second. A client gives up ``slo_s`` after its arrival.

    With ``send_timeout`` the requests state that time. A rate has the same schedule in every run with a ``seed``.
    """

    rate: float
    slo_s: float
    send_timeout: bool = False
    seed: int = 1909

    @property
    def size(self) -> float:
        return self.rate

    @property
    def label(self) -> str:
        return f"{self.rate:g}/s"

    async def drive(self, client: Client, until: float) -> None:
        """Begin requests up to ``until`` (loop time). Returns when the last one has ended."""
        time, rng = asyncio.get_running_loop().time, np.random.default_rng(self.seed)
        due = time()
        async with asyncio.TaskGroup() as group:
            while (due := due + rng.exponential(1 / self.rate)) < until:
                await asyncio.sleep(due - time())  # also if it is late, so that other tasks can run
                group.create_task(client.send(due, due + self.slo_s, self._headers()))

    def _headers(self) -> Mapping[str, str]:
        return {"X-Request-Timeout-Ms": f"{max(1, round(self.slo_s * 1000))}"} if self.send_timeout else {}


Load = Closed | Open
