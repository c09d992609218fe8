import asyncio
import socket

import pytest

from app.commands.bench.bodies import Body
from app.commands.bench.client import Client, Record, session
from tests.commands.bench.server import Known

SMALL = Body(b"x" * 1000, "image/jpeg")
LARGE = Body(b"x" * 8_000_000, "image/png")


def sent(url: str, *bodies: Body, seconds: float = 30) -> list[Record]:
    """One request after the other."""

    async def send() -> list[Record]:
        async with session({"X-Given": "yes"}) as connections:
            client = Client(connections, url, bodies)
            for _ in bodies:
                now = asyncio.get_running_loop().time()
                await client.send(now, now + seconds)
            return client.records

    return asyncio.run(send())


def test_bodies_go_out_in_turn_over_one_connection() -> None:
    with Known(200, 500) as server:
        records = sent(server.url, SMALL, LARGE)
        assert [(record.status, record.error) for record in records] == [(200, ""), (500, "")]
        assert [len(request.body) for request in server.requests] == [1000, 8_000_000]
        assert [request.headers["content-type"] for request in server.requests] == ["image/jpeg", "image/png"]
        assert server.requests[0].headers["x-given"] == "yes"
        assert server.connections == 1


def test_a_refusal_that_comes_while_the_body_is_written_is_an_answer() -> None:
    with Known("refuse") as server:
        assert [(record.status, record.error) for record in sent(server.url, LARGE, SMALL)] == [(503, ""), (503, "")]


@pytest.mark.parametrize(("happens", "error"), [("reset", "reset"), ("noise", "protocol")])
def test_what_is_no_answer_is_an_error_of_its_kind(happens: str, error: str) -> None:
    with Known(happens, 200) as server:
        bad, good = sent(server.url, SMALL, SMALL)
        assert (bad.status, bad.error) == (0, error)
        assert (good.status, good.error) == (200, "")


def test_nothing_listening_is_an_error_of_its_kind() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    [record] = sent(f"http://127.0.0.1:{port}/", SMALL)
    assert (record.status, record.error) == (0, "connect")


def test_who_gives_up_closes_the_connection() -> None:
    with Known("hang") as server:
        [record] = sent(server.url, SMALL, seconds=0.25)
        assert (record.status, record.error) == (0, "timeout")
        assert server.left.wait(10)
