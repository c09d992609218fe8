"""Client addresses in one canonical form, which every comparison uses, and the callers that rate limits count."""

import ipaddress
import re
from collections.abc import Sequence
from functools import lru_cache

from starlette.types import ASGIApp, Receive, Scope, Send

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_WITH_PORT = re.compile(r"(?:\[([^\]]*)\]|([^:\[\]]*))(?::\d{1,5})?")
_RECENT = 1024  # addresses that are parsed once
_PREFIX = 64  # bits of the smallest IPv6 network; its owner chooses the others
_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")
_TRANSLATED = (  # networks whose last 32 bits are an IPv4 address: RFC 6052, RFC 2765, RFC 4291
    ipaddress.IPv6Network("64:ff9b::/96"),
    ipaddress.IPv6Network("::ffff:0:0:0/96"),
    ipaddress.IPv6Network("::/96"),
)
_LOCAL = ipaddress.IPv6Address("::1")  # in the last of them


@lru_cache(_RECENT)
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


def canonical(network: Network) -> Network:
    """The network as IPv4 if it consists of IPv4 addresses mapped into IPv6."""
    if isinstance(network, ipaddress.IPv6Network) and network.subnet_of(_MAPPED):
        bits = network.prefixlen - _MAPPED.prefixlen
        return ipaddress.IPv4Network((network.network_address.packed[-4:], bits))
    return network


def logged(scope: Scope) -> str:
    """The client's address for the log; ``-`` if it is unknown or not valid."""
    address = _client(scope)
    return str(address) if address else "-"


def caller(scope: Scope) -> str:
    """The caller that a rate limit counts: an IPv4 address, or a /64 of IPv6, the smallest network.

    An IPv6 address that a tunnel or a translator has made from an IPv4 address counts as that: many share a /64.
    """
    address = _client(scope)
    if isinstance(address, ipaddress.IPv6Address):
        address = _embedded(address) or address
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((int(address), _PREFIX), strict=False))
    return str(address) if address else ""


def _embedded(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The client's IPv4 address in an address of 6to4, Teredo, NAT64 or SIIT; None in any other."""
    if address.sixtofour:
        return address.sixtofour
    if address.teredo:
        return address.teredo[1]
    if address != _LOCAL and any(address in network for network in _TRANSLATED):
        return ipaddress.IPv4Address(address.packed[-4:])
    return None


def _client(scope: Scope) -> Address | None:
    client = scope.get("client")
    return parse(client[0]) if client else None


class Forwarded:
    """Takes the client's address and scheme from ``X-Forwarded-For`` and ``X-Forwarded-Proto`` of trusted proxies.

    Proxies append to the list, so it is read from its end, up to the first address that is not a trusted proxy's. An
    invalid entry ends the list: the client is then the proxy that wrote the entry.
    """

    def __init__(self, app: ASGIApp, trusted: Sequence[Network]) -> None:
        self.app = app
        self._trusted = [canonical(network) for network in trusted]

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
