"""Client addresses in a canonical form, and the callers that rate limits count."""

import ipaddress
import re
from collections.abc import Sequence

from starlette.types import ASGIApp, Receive, Scope, Send

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_WITH_PORT = re.compile(r"(?:\[([^\]]*)\]|([^:\[\]]*))(?::\d{1,5})?")
_PREFIX = 64  # bits of the smallest IPv6 network; its owner chooses the others


def parse(text: str) -> Address | None:
    """An address, also as ``1.2.3.4:80``, ``[::1]`` and ``[::1]:80``; None if it is not valid.

    IPv4 addresses mapped into IPv6 become IPv4. A zone (``%eth0``) is removed, because it may contain any text.
    """
    found = _WITH_PORT.fullmatch(text)
    host = (found[1] or found[2]) if found else text
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def logged(scope: Scope) -> str:
    """The client's address for the log; ``-`` if it is unknown or not valid."""
    address = _client(scope)
    return str(address) if address else "-"


def caller(scope: Scope) -> str:
    """The caller that a rate limit counts: an IPv4 address, or a /64 of IPv6, the smallest network."""
    address = _client(scope)
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((int(address), _PREFIX), strict=False))
    return str(address) if address else ""


def _client(scope: Scope) -> Address | None:
    client = scope.get("client")
    return parse(client[0]) if client else None


class Forwarded:
    """Takes the client's address and scheme from ``X-Forwarded-For`` and ``X-Forwarded-Proto`` of trusted proxies.

    Proxies append to the list, so it is read from its end, up to the first address that is not a trusted proxy's. An
    invalid entry ends the list: the client is then the proxy that wrote the entry.
    """

    def __init__(self, app: ASGIApp, trusted: Sequence[ipaddress.IPv4Network | ipaddress.IPv6Network]) -> None:
        self.app = app
        self._trusted = trusted

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            self._read(scope)
        await self.app(scope, receive, send)

    def _read(self, scope: Scope) -> None:
        client = _client(scope)
        if not client or not self._trusts(client):
            return
        given = [value.decode("latin-1") for name, value in scope["headers"] if name == b"x-forwarded-for"]
        for entry in reversed(",".join(given).split(",")):
            address = parse(entry.strip())
            if not address:
                break
            client = address
            if not self._trusts(client):
                break
        scope["client"] = (str(client), 0)
        for name, value in scope["headers"]:
            if name == b"x-forwarded-proto" and value.strip() in (b"http", b"https"):
                scope["scheme"] = value.strip().decode()

    def _trusts(self, address: Address) -> bool:
        return any(address in network for network in self._trusted)
