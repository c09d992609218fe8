import asyncio
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from app.commands.bench import loads
from app.commands.bench.bodies import Body
from app.commands.bench.client import Client, Record, session
from app.commands.bench.loads import Closed, Load, Open
from tests.commands.bench.server import Known


class Recorder:
    """Stands in for a client: remembers what it was told to send, answers at once."""

    def __init__(self, error: str = "") -> None:
        self.sent: list[tuple[float, float]] = []
        self.error = error

    async def send(self, due: float, give_up: float, headers: Mapping[str, str] | None = None) -> Record:
        self.sent.append((due, give_up))
        return Record(due, due, due, 0 if self.error else 200, self.error)


def driven(load: Load, client: Any, seconds: float) -> None:
    async def drive() -> None:
        await load.drive(client, asyncio.get_running_loop().time() + seconds)

    asyncio.run(drive())


def test_a_closed_loop_has_this_many_requests_at_once_and_never_more() -> None:
    async def drive(url: str) -> None:
        async with session({}) as connections:
            client = Client(connections, url, [Body(b"x", "image/jpeg")])
            await Closed(3).drive(client, asyncio.get_running_loop().time() + 0.3)
            assert all(record.status == 200 for record in client.records)

    with Known() as server:
        asyncio.run(drive(server.url))
        assert server.connections == 3
        assert 1 <= server.most_at_once <= 3


def test_an_open_loop_keeps_its_schedule_whatever_the_answers() -> None:
    first, second = Recorder(), Recorder("connect")
    for client in (first, second):
        driven(Open(400, 0.5), client, 0.5)
    gaps = [np.diff([due for due, _ in client.sent])[:150] for client in (first, second)]
    assert gaps[0] == pytest.approx(gaps[1], abs=1e-6)
    assert gaps[0].mean() == pytest.approx(1 / 400, rel=0.2)
    assert all(give_up - due == pytest.approx(0.5) for due, give_up in first.sent)


def test_a_client_that_gets_no_connection_does_not_spin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loads, "_PAUSE_AFTER_ERROR_S", 3600.0)
    client = Recorder("connect")

    async def drive() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await Closed(2).drive(client, asyncio.get_running_loop().time() + 3600)  # type: ignore[arg-type]

    asyncio.run(drive())
    assert len(client.sent) == 2


def test_loads_name_themselves() -> None:
    assert [load.label for load in (Closed(1), Closed(16), Open(12.5, 1))] == ["1 client", "16 clients", "12.5/s"]
