"""When requests are sent: by clients that wait for their answers, or at a rate whatever the answers."""

import asyncio
from dataclasses import dataclass

import numpy as np

from app.commands.bench.client import Client

PATIENCE_S = 60.0
_AFTER_ERROR_S = 0.05  # where nothing listens any more, a client must not spin
_SEED = 1909  # of the arrivals: a rate's schedule is the same in every run


@dataclass(frozen=True, slots=True)
class Closed:
    """Each of ``clients`` sends its next request once the last is answered."""

    clients: int

    @property
    def size(self) -> float:
        return self.clients

    @property
    def label(self) -> str:
        return f"{self.clients} client{'s' * (self.clients != 1)}"

    async def drive(self, client: Client, until: float) -> None:
        """Begin requests up to ``until`` (loop time); returns when the last has ended."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self.clients):
                group.create_task(self._one(client, until))

    async def _one(self, client: Client, until: float) -> None:
        time = asyncio.get_running_loop().time
        while (now := time()) < until:
            record = await client.send(now, now + PATIENCE_S)
            if record.error:
                await asyncio.sleep(_AFTER_ERROR_S)


@dataclass(frozen=True, slots=True)
class Open:
    """Poisson arrivals, ``rate`` a second. Who has no answer after ``slo_s``, counted from the arrival, leaves."""

    rate: float
    slo_s: float

    @property
    def size(self) -> float:
        return self.rate

    @property
    def label(self) -> str:
        return f"{self.rate:g}/s"

    async def drive(self, client: Client, until: float) -> None:
        """Begin requests up to ``until`` (loop time); returns when the last has ended."""
        time, rng = asyncio.get_running_loop().time, np.random.default_rng(_SEED)
        due = time()
        async with asyncio.TaskGroup() as group:
            while (due := due + rng.exponential(1 / self.rate)) < until:
                await asyncio.sleep(due - time())  # also where it is late: the others need their turn
                group.create_task(client.send(due, due + self.slo_s))


Load = Closed | Open
