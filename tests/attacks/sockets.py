"""Attacks on connections: all slots taken in mid-body, and a storm of resets (rows 10 and 13)."""

import contextlib
import socket
import struct
import time
from collections.abc import Iterator

from tests.attacks.clients import PREPARED, Target, Wire, head, photograph, post
from tests.attacks.service import Attack

SLOTS = 300
_FILES = SLOTS + 64  # the server keeps 64 for itself
_NEWCOMERS = 30
_STORM = 5000
_TOGETHER = 1000
_LINGER_NOT = struct.pack("ii", 1, 0)


def take_slots(target: Target) -> Iterator[str]:
    """Hold every connection in mid-body, then connect anew: the statuses of these newcomers."""
    first = head("/v1/predict", length=1_000_000, headers={"Content-Type": "image/jpeg"}) + b"\xff\xd8\xff"
    request = post("/v1/predict", photograph(), "image/jpeg")
    yield PREPARED
    held = []
    for _ in range(SLOTS + 20):
        with contextlib.suppress(OSError):
            held.append(socket.create_connection(("127.0.0.1", target.port), timeout=5))
            held[-1].sendall(first)
    for at in range(_NEWCOMERS):
        wire = Wire(target.port)
        yield wire.ask(head("/livez", "GET") if at % 2 else request, timeout=3)
        wire.close()
        for sock in held:
            with contextlib.suppress(OSError):
                sock.sendall(b"\0")
    for sock in held:
        sock.close()


def reset_storm(target: Target) -> Iterator[str]:
    """Connect and reset 5000 times, then ask on a new connection. What it got is yielded, then its seconds."""
    yield PREPARED
    for _ in range(_STORM // _TOGETHER):
        storm = [socket.socket() for _ in range(_TOGETHER)]
        for at, sock in enumerate(storm):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
            with contextlib.suppress(OSError):
                sock.settimeout(1)
                sock.connect(("127.0.0.1", target.port))
                if at % 2:
                    sock.sendall(b"POST /v1/predict HTTP/1.1\r\nHost: topk\r\nContent-Le")
        for sock in storm:
            sock.close()
    began = time.monotonic()
    wire = Wire(target.port)
    status = wire.ask(head("/livez", "GET"), timeout=30)
    wire.close()
    yield status
    yield f"after {time.monotonic() - began:.1f} s"


ATTACKS = [
    Attack(
        10,
        f"all {SLOTS} connections in mid-body, then newcomers",
        take_slots,
        frozenset({"200"}),
        under=("prlimit", f"--nofile={_FILES}:{_FILES}"),
        alone=True,
        seconds=15,
    ),
    Attack(13, f"storm of {_STORM} resets, then a new connection", reset_storm, frozenset({"200"}), jpegs=None),
]
