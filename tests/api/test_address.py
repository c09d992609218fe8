"""Addresses of clients, as they come and as proxies tell them."""

import asyncio
import re
import socket
from collections.abc import Sequence
from ipaddress import ip_network

import httpx2
import pytest

from app.api import address
from app.api.address import Forwarded
from tests import tiny
from tests.api.conftest import served
from tests.api.wire import Wire
from tests.conftest import CAT, Server
from tests.workers.conftest import wait_until

PHOTO = CAT.read_bytes()


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("192.0.2.1:4711", "192.0.2.1"),
        ("2001:DB8:0:0::1", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("[2001:db8::1]:4711", "2001:db8::1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("[::ffff:c000:201]:80", "192.0.2.1"),
        ("fe80::1%eth0", "fe80::1"),
        ("fe80::1%\x1b[31m", "fe80::1"),
    ],
)
def test_an_address_has_one_form(text: str, canonical: str) -> None:
    assert str(address.parse(text)) == canonical


@pytest.mark.parametrize(
    "text",
    ["", "-", "unknown", "\x1b[31m", "192.0.2.1\n", "192.0.2.1 ", "192.0.2.256", "[192.0.2.1", "::1]:80", "1.2.3.4:x"],
)
def test_what_is_no_address_is_none(text: str) -> None:
    assert address.parse(text) is None


@pytest.mark.parametrize(
    ("host", "caller"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::/64"),
        ("2001:db8::ffff:ffff:ffff:ffff", "2001:db8::/64"),
        ("2001:db8:0:1::1", "2001:db8:0:1::/64"),
        ("::FFFF:c000:201", "192.0.2.1"),
        ("0:0:0:0:0:ffff:192.0.2.1", "192.0.2.1"),
        ("64:ff9b::192.0.2.1", "192.0.2.1"),
        ("64:ff9b::c000:202", "192.0.2.2"),
        ("::ffff:0:192.0.2.1", "192.0.2.1"),
        ("::192.0.2.1", "192.0.2.1"),
        ("2002:c000:201:1::1", "192.0.2.1"),
        ("2001:0:cb00:7101:0:ffff:3fff:fdfe", "192.0.2.1"),
        ("64:ff9b:1::192.0.2.1", "64:ff9b:1::/64"),
        ("::1", "::/64"),
        ("testclient", ""),
    ],
)
def test_a_caller_is_an_address_or_a_network_of_ipv6(host: str, caller: str) -> None:
    assert address.caller({"client": (host, 1)}) == caller


def told(peer: str, *forwarded: str, trusted: Sequence[str] = ("10.0.0.0/8", "fd00::/8")) -> str:
    """The client that a proxy at ``peer`` tells of."""
    scope = {"type": "http", "client": (peer, 1), "headers": [(b"x-forwarded-for", f.encode()) for f in forwarded]}

    async def app(*_: object) -> None: ...

    asyncio.run(Forwarded(app, [ip_network(network) for network in trusted])(scope, app, app))  # type: ignore[arg-type]
    return str(scope["client"][0])


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("10.0.0.1", ["192.0.2.1"], "192.0.2.1"),
        ("::ffff:10.0.0.1", ["192.0.2.1:80"], "192.0.2.1"),
        ("fd00::1", ["[2001:db8::1]:80"], "2001:db8::1"),
        ("10.0.0.1", ["198.51.100.1, 192.0.2.1, 10.0.0.2"], "192.0.2.1"),
        ("10.0.0.1", ["198.51.100.1", "192.0.2.1"], "192.0.2.1"),
        ("10.0.0.1", ["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", [""], "10.0.0.1"),
        ("10.0.0.1", ["192.0.2.1, \x1b[31mred"], "10.0.0.1"),
        ("10.0.0.1", ["unknown, 10.0.0.2"], "10.0.0.2"),
        ("192.0.2.7", ["192.0.2.1"], "192.0.2.7"),
    ],
)
def test_only_trusted_proxies_tell_a_client_s_address(peer: str, forwarded: list[str], client: str) -> None:
    assert told(peer, *forwarded) == client


@pytest.mark.parametrize("trusted", ["10.0.0.0/8", "::ffff:10.0.0.0/104", "::ffff:a00:0/104", "::FFFF:10.0.0.1"])
@pytest.mark.parametrize("peer", ["10.0.0.1", "::ffff:10.0.0.1", "::ffff:a00:1"])
@pytest.mark.parametrize("client", ["192.0.2.1", "::ffff:192.0.2.1", "[::ffff:c000:201]:4711"])
def test_a_proxy_is_trusted_in_whatever_form_its_address_comes(trusted: str, peer: str, client: str) -> None:
    assert told(peer, client, trusted=[trusted]) == "192.0.2.1"


def test_a_mapped_network_does_not_trust_ipv6() -> None:
    assert told("2001:db8::1", "192.0.2.1", trusted=["::ffff:0:0/96"]) == "2001:db8::1"


def test_a_translated_address_is_no_trusted_proxy_s() -> None:
    assert told("64:ff9b::10.0.0.1", "192.0.2.1", trusted=["10.0.0.0/8"]) == "64:ff9b::10.0.0.1"


def test_clients_behind_a_dual_stack_proxy_have_rate_limits_of_their_own() -> None:
    limits = {"rate_limit": "1/hour", "trusted_proxies": "::ffff:127.0.0.0/104"}
    with served(**limits) as server:
        statuses = [
            httpx2.post(f"{server.url}/v1/predict", content=PHOTO, headers={"X-Forwarded-For": client}).status_code
            for client in (
                "192.0.2.1",
                "::ffff:192.0.2.2",
                "64:ff9b::192.0.2.3",
                "::ffff:192.0.2.1",
                "64:ff9b::c000:203",
            )
        ]
    assert statuses == [200, 200, 200, 429, 429]


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_no_escape_sequence_of_a_client_s_reaches_a_text_log() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ("--log-format", "text", "--trusted-proxies", "127.0.0.1", "--port", str(port))
    server = Server(*tiny.model(), *options)
    try:
        wait_until(lambda: listens(port), tries=12_000)
        for forwarded in ("\x1b[31mred", "\x9b31m", "::1%\x1b]0;title\x07", "1.2.3.4\x0b"):
            with Wire(port) as wire:
                head = f"GET /v1/info HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: {forwarded}\r\n\r\n"
                wire.send(head.encode("latin-1"))
                assert wire.status() in (200, 400, 503)
        answer = httpx2.get(f"http://127.0.0.1:{port}/v1/nonesuch", headers={"X-Forwarded-For": "192.0.2.1:99"})
        assert answer.status_code == 404
    finally:
        assert server.stop() == 0
    lines = [str(line["event"]) for line in server.log]
    assert not [line for line in lines if re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", line)]
    assert any("client=192.0.2.1 " in line for line in lines)
    assert any("client=127.0.0.1 " in line for line in lines)
