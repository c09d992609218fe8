"""The other weak points of row 13: addresses, limits, the schema's cost, the version of HTTP.

The storm of resets is in ``sockets``; what must not start at all is in ``starts``.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

from tests.attacks.clients import PREPARED, Target, Wire, at_once, head, photograph, post, sent
from tests.attacks.service import Attack

_BEHIND_PROXY = {"TOPK_TRUSTED_PROXIES": "127.0.0.1"}
_ROTATIONS = 60
_LIMIT = 20
_PARTS = 32


def rotate(target: Target) -> Iterator[str]:
    """Requests from ever other addresses of one /64, judged as one: yields how many of them were served."""
    photo = photograph()
    requests = [
        post("/v1/predict", photo, "image/jpeg", X_Forwarded_For=f"2001:db8:1:2:{at:x}::{at + 1:x}")
        for at in range(_ROTATIONS)
    ]
    yield PREPARED
    statuses = list(at_once(requests, target, 1))
    served = statuses.count("200")
    yield "200 for one limit" if served <= _LIMIT else f"200 for {served} of {len(statuses)} addresses"


def oversized() -> bytes:
    """A batch of more images than the rate limit ever grants, all of an MiB."""
    part = b'--b\r\nContent-Disposition: form-data; name="file"; filename="p"\r\n\r\n' + bytes(2**20) + b"\r\n"
    return post("/v1/predict/batch", part * _PARTS + b"--b--\r\n", "multipart/form-data; boundary=b")


def next_version(version: str) -> bytes:
    return head("/livez", "GET").replace(b"HTTP/1.1", f"HTTP/{version}".encode())


def schema() -> bytes:
    return head("/openapi.json", "GET")


def versions(target: Target) -> Iterator[str]:
    requests = [next_version(version) for version in ("9.9", "2.0", "3.1", "0.9")]
    yield PREPARED
    for request in requests:
        wire = Wire(target.port)
        yield wire.ask(request, timeout=3)
        wire.close()


def _attack(name: str, run: Callable[[Target], Iterator[str]], answers: set[str], **more: Any) -> Attack:
    return Attack(13, name, run, frozenset(answers), **more)


def _repeated(make: Callable[[], bytes], count: int, connections: int) -> Callable[[Target], Iterator[str]]:
    return functools.partial(sent, make, count, connections)


ATTACKS = [
    _attack(
        f"{_ROTATIONS} addresses of one /64, limit {_LIMIT} an hour",
        rotate,
        {"200 for one limit"},
        jpegs=2 * _LIMIT,  # those of the limit are served
        env=_BEHIND_PROXY | {"TOPK_RATE_LIMIT": f"{_LIMIT}/hour"},
        alone=True,
    ),
    _attack(
        "batches of 32 MiB above the rate limit x 12",
        _repeated(oversized, 12, 4),
        {"429", "413"},
        jpegs=10,  # reading the body takes 3 to 7, decoding its 32 images would take more than 32
        env={"TOPK_RATE_LIMIT": "16/second"},
        alone=True,
    ),
    _attack("/openapi.json x 400", _repeated(schema, 400, 4), {"200"}, jpegs=0.5),
    _attack("HTTP/9.9, 2.0, 3.1 and 0.9", versions, {"505", "400"}),
]
