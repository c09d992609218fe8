"""Requests whose bodies or heads are cut into as many pieces as possible, and uploads that never end (rows 7, 9)."""

import contextlib
import functools
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

from tests.attacks.clients import PREPARED, RESET, Target, Wire, head, photograph, post, sent
from tests.attacks.service import Attack

_MIB = 2**20
_BUDGET = 64 * _MIB
_BOUNDARY = "b"
_UPLOADS = 9
_PAUSE_S = 0.2
_SHARE_END_S = 6.0


def chunks(number: int, size: int = 1) -> bytes:
    """A raw body in so many chunks of so many bytes."""
    chunk = b"%x\r\n%s\r\n" % (size, b"x" * size)
    first = head("/v1/predict", headers={"Content-Type": "image/jpeg", "Transfer-Encoding": "chunked"})
    return first + chunk * number + b"0\r\n\r\n"


def chunks_with_extensions(number: int = 20_000) -> bytes:
    """Chunks of one byte, each with an extension of 60 bytes."""
    first = head("/v1/predict", headers={"Content-Type": "image/jpeg", "Transfer-Encoding": "chunked"})
    return first + (b"1;" + b"e" * 60 + b"\r\nx\r\n") * number + b"0\r\n\r\n"


def multipart(part: bytes, number: int, path: str = "/v1/predict/batch") -> bytes:
    """A multipart body of so many times the same part: its headers, an empty line and its content."""
    body = (b"--b\r\n" + part + b"\r\n") * number + b"--b--\r\n"
    return post(path, body, f"multipart/form-data; boundary={_BOUNDARY}")


def parts_with_headers(size: int = 19 * _MIB) -> bytes:
    """Parts with eight short headers each."""
    part = b"".join(b"%c:b\r\n" % name for name in b"acdefghi") + b"\r\n"
    return multipart(part, size // (len(part) + 7))


def empty_parts(number: int = 2_000_000) -> bytes:
    return multipart(b"\r\n", number)


def named_parts(number: int = 100_000) -> bytes:
    """Options of the same name and value."""
    return multipart(b'Content-Disposition: form-data; name="top_k"\r\n\r\n5', number)


def boundary_prefixes(size: int = 19 * _MIB) -> bytes:
    """One part that consists of beginnings of the boundary."""
    part = b'Content-Disposition: form-data; name="file"\r\n\r\n' + b"\r\n--" * (size // 4)
    return multipart(part, 1)


def long_option(size: int = 10 * _MIB) -> bytes:
    return multipart(b'Content-Disposition: form-data; name="top_k"\r\n\r\n' + b"5" * size, 1)


def fields(number: int = 8138) -> bytes:
    """A head of as many fields as fit into 64 KiB."""
    lines = b"".join(b"a:%03x\r\n" % (at % 4096) for at in range(number))[: 65_536 - 200]
    whole = lines[: lines.rindex(b"\r\n") + 2]
    return b"GET /livez HTTP/1.1\r\nHost: topk\r\n" + whole + b"\r\n"


def query(size: int = 60_000) -> bytes:
    return post("/v1/predict?" + "a=&" * (size // 3), photograph(), "image/jpeg")


def fill_budget(target: Target) -> Iterator[str]:
    """Nine uploads that fill ``TOPK_MAX_INFLIGHT_BYTES`` together, and then send a byte now and then.

    Yields the statuses of ordinary requests beside them.
    """
    each = (_BUDGET - 10_000) // _UPLOADS
    first = head("/v1/predict", length=each, headers={"Content-Type": "image/jpeg"})
    data = first + b"\xff\xd8\xff\xfe\xff\xff" + bytes(each - 1000)
    yield PREPARED
    with contextlib.ExitStack() as stack:
        uploads = [
            stack.enter_context(socket.create_connection(("127.0.0.1", target.port), timeout=30))
            for _ in range(_UPLOADS)
        ]
        _each_sends(uploads, data)
        end = time.monotonic() + _SHARE_END_S
        wire, request = Wire(target.port), post("/v1/predict", photograph(), "image/jpeg")
        while time.monotonic() < end:
            _each_sends(uploads, b"x")
            yield wire.ask(request, timeout=5)
            time.sleep(_PAUSE_S)
        wire.close()


def _each_sends(uploads: list[socket.socket], data: bytes) -> None:
    """Those that were ended do not."""
    for upload in uploads:
        with contextlib.suppress(OSError):
            upload.sendall(data)


def _attack(
    name: str, make: Callable[[], bytes], answers: set[str], count: int = 1, connections: int = 1, **more: Any
) -> Attack:
    return Attack(7, name, functools.partial(sent, make, count, connections), frozenset(answers), **more)


ATTACKS = [
    _attack("body in one-byte chunks, 300 KB x 4", functools.partial(chunks, 300_000), {"400", RESET}, 4, 4),
    _attack("body in one-byte chunks, 4.2 MB", functools.partial(chunks, 4_200_000), {"400", RESET}, variant=True),
    _attack(
        "body in 32-byte chunks, 3 MB x 4", functools.partial(chunks, 100_000, 32), {"400", RESET}, 4, 4, variant=True
    ),
    _attack("chunk extensions x 4", chunks_with_extensions, {"400", RESET}, 4, 4, variant=True),
    _attack("multipart of parts with 8 headers, 19 MB", parts_with_headers, {"400", "413", RESET}),
    _attack("multipart of 2 million empty parts", empty_parts, {"400", "413", RESET}, variant=True),
    _attack("multipart of 100000 options", named_parts, {"400", "413", RESET}, variant=True),
    _attack(
        "multipart of beginnings of its boundary", boundary_prefixes, {"200", "400", "413"}, jpegs=100, variant=True
    ),
    _attack("multipart option of 10 MB x 2", long_option, {"400", "413", RESET}, 2, 2, variant=True),
    _attack("8138 header fields x 80", fields, {"431"}, 80, 4, jpegs=3),
    _attack("query of 60 KB x 80", query, {"200", "400", "414", "503"}, 80, 4, jpegs=3),
    Attack(
        9,
        "nine uploads fill TOPK_MAX_INFLIGHT_BYTES",
        fill_budget,
        frozenset({"200", "503"}),
        needed=frozenset({"200"}),
        alone=True,
        seconds=15,
        env={"TOPK_MAX_INFLIGHT_BYTES": str(_BUDGET)},
    ),
]
