import asyncio

from app.commands.bench.bodies import Body
from app.commands.bench.client import Client, session
from app.commands.bench.overhead import constant_server, measure

BODIES = [Body(b"", "image/jpeg"), Body(b"x" * 300_000, "image/jpeg"), Body(b"\r\n\r\n" * 9, "image/jpeg")]


def test_the_constant_server_reads_each_body_and_answers() -> None:
    async def send() -> list[int]:
        async with constant_server() as url, session({}) as connections:
            client = Client(connections, url, BODIES)
            until = asyncio.get_running_loop().time() + 30
            return [(await client.send(0, until)).status for _ in range(6)]

    assert asyncio.run(send()) == [200] * 6


def test_the_clients_own_cost_is_known() -> None:
    found = asyncio.run(measure(BODIES, {}, seconds=0.2)).as_dict()
    assert found.keys() == {"cpu_ms", "largest_rate"}
    assert min(found.values()) > 0
