"""Uploads of hostile pictures (rows 3, 4, 5 and 12)."""

import functools
from typing import Any

from tests.attacks.clients import post, sent
from tests.attacks.pictures import PICTURES
from tests.attacks.service import Attack

JUDGED = frozenset({"200", "413", "415", "422", "503", "504"})
"""How a hostile picture may be answered: decoded, refused for what it is, or refused because there are too many."""
UNSUPPORTED = frozenset({"415"})
_MIB_DECODED = 1600  # three pictures that are decoded may take what is accounted for them


def upload(name: str) -> bytes:
    """The request for one of ``PICTURES``."""
    return post("/v1/predict", PICTURES[name](), "application/octet-stream")


def batch(name: str, number: int = 32) -> bytes:
    """A request for the same picture so many times."""
    part = b'--b\r\nContent-Disposition: form-data; name="file"; filename="p"\r\n\r\n' + PICTURES[name]() + b"\r\n"
    return post("/v1/predict/batch", part * number + b"--b--\r\n", "multipart/form-data; boundary=b")


def _attack(row: int, name: str, count: int = 3, connections: int = 3, **more: Any) -> Attack:
    answers = more.pop("answers", JUDGED)
    run = functools.partial(sent, functools.partial(upload, name), count, connections)
    return Attack(row, f"{name} x {count}", run, answers, **more)


ATTACKS = [
    _attack(3, "TIFF 8x8 in a tile of 32000x32000", jpegs=300, variant=True),
    _attack(3, "TIFF 8x8 in a tile of 46000x46000, cut at 300 KB", jpegs=300),
    _attack(3, "TIFF 8x16 in a tile 100 million wide", jpegs=300, variant=True),
    _attack(4, "PNG with 100 iCCP", 40, 4, answers=frozenset({"200"})),
    _attack(4, "PNG with 1000 iCCP", 4, 4, answers=frozenset({"200", "422"}), variant=True),
    _attack(
        4,
        "PNG with 4600 iCCP",
        2,
        2,
        answers=frozenset({"200", "422"}),
        seconds=15,
        options=("--watchdog-ms", "8000"),
    ),
    _attack(4, "PNG with 1000 iCCP behind its pixels", 4, 4, answers=frozenset({"200", "422"}), variant=True),
    _attack(4, "PNG with 60 zTXt", 12, 4, answers=frozenset({"200"}), variant=True),
    _attack(4, "PNG with 60 iTXt behind its pixels", 12, 4, answers=frozenset({"200"}), variant=True),
    _attack(5, "JPEG arithmetic 512 bytes", 4, 4, answers=UNSUPPORTED, variant=True),
    Attack(
        5,
        "a batch of 32 arithmetic JPEGs of 512 bytes",
        functools.partial(sent, functools.partial(batch, "JPEG arithmetic 512 bytes"), 1, 1),
        frozenset({"200"}),
    ),
    _attack(5, "JPEG arithmetic progressive, 190 scans", 2, 2, answers=UNSUPPORTED),
    _attack(5, "TIFF of a progressive arithmetic JPEG of 97 scans", answers=frozenset({"415", "422"})),
    _attack(12, "WebP of 65536 Huffman groups", jpegs=300, memory_mib=_MIB_DECODED),
    _attack(12, "WebP with alpha of 65536 Huffman groups", jpegs=300, memory_mib=_MIB_DECODED, variant=True),
    _attack(12, "JPEG DC-only progressive", 9, 3, jpegs=100, memory_mib=_MIB_DECODED),
]

ATTACKED = frozenset(attack.name.rpartition(" x ")[0] for attack in ATTACKS)
"""Names of the pictures that have a row of their own."""
