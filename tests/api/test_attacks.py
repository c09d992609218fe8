"""Requests made to freeze a server or to fill its memory, sent to a real one: what they cost it. Times are CPU time."""

import base64
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
import psutil
import pytest

from tests.conftest import CAT, Server

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("priority")]

PHOTO = CAT.read_bytes()
BASE64 = base64.b64encode(PHOTO).decode()
V2 = "/v2/models/efficientnet_lite0/infer"
MIB = 2**20
FORM = "multipart/form-data; boundary=b"


@dataclass
class Cost:
    """CPU seconds, the most bytes beyond those before, and the longest wait for ``/livez`` meanwhile."""

    seconds: float = 0.0
    bytes: int = 0
    livez_s: float = 0.0


@contextmanager
def measured(server: Server) -> Iterator[Cost]:
    process, cost, over = psutil.Process(server.process.pid), Cost(), threading.Event()
    before, times = process.memory_info().rss, process.cpu_times()

    def watch() -> None:
        with httpx2.Client(base_url=server.url, timeout=60) as client:
            while not over.is_set():
                cost.livez_s = max(cost.livez_s, client.get("/livez").elapsed.total_seconds())
                cost.bytes = max(cost.bytes, process.memory_info().rss - before)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield cost
    finally:
        over.set()
        watching.join()
        after = process.cpu_times()
        cost.seconds = after.user + after.system - times.user - times.system


def v2(datatype: str, shape: list[int], data: str, **members: Any) -> bytes:
    """``data`` as JSON text: an encoder would take longer than the server."""
    tensor = {"name": "image", "datatype": datatype, "shape": shape, "data": "DATA"}
    return json.dumps({"inputs": [tensor], **members}).replace('"DATA"', data).encode()


IMAGES = json.dumps([BASE64] * 32)
FLOATS = "[" + ",".join(["-0.12345678806304932"] * (3 * 3 * 224 * 224)) + "]"
HEADERS = b"".join(b"X-%d: value\r\n" % number for number in range(8))

ATTACKS: dict[str, tuple[str, str, bytes, int]] = {
    "a huge shape": (V2, "application/json", v2("BYTES", [2**63] * 100_000, IMAGES), 400),
    "six thousand outputs": (
        V2,
        "application/json",
        v2("BYTES", [32], IMAGES, outputs=[{"name": "scores"}] * 6000),
        400,
    ),
    "words of base64": ("/v1/predict", "application/json", b'{"image": "' + b"QU\\n" * 6_500_000 + b'"}', 415),
    "JSON floats": (V2, "application/json", v2("FP32", [3, 3, 224, 224], FLOATS), 200),
    "empty parts": ("/v1/predict", FORM, b"--b\r\n\r\n\r\n" * 1_900_000, 400),
    "parts with headers": ("/v1/predict", FORM, (b"--b\r\n" + HEADERS + b"\r\n\r\n") * 150_000, 400),
    "nearly boundaries": (
        "/v1/predict",
        FORM,
        b'--b\r\nContent-Disposition: a; name="file"\r\n\r\n' + b"\r\n--bX" * 2_500_000,
        400,
    ),
    "commas": ("/v1/predict/batch", "application/json", b"[" + b"," * 60_000_000, 400),
}


def post(server: Server, path: str, kind: str, body: bytes) -> int:
    headers = {"Content-Type": kind, "X-Request-Timeout-Ms": "10000"}
    try:
        return httpx2.post(server.url + path, content=body, headers=headers, timeout=60).status_code
    except httpx2.TransportError:
        return 0  # refused while more than is discarded was still to be sent


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_costs_little_more_than_its_bytes(embedded_server: Server, name: str) -> None:
    """Three at once, against as many bytes that are no image."""
    path, kind, body, status = ATTACKS[name]
    harmless = bytes(min(len(body), 20 * MIB))
    assert post(embedded_server, "/v1/predict", "image/jpeg", PHOTO) == 200
    with ThreadPoolExecutor() as pool:
        with measured(embedded_server) as calm:
            sent = [pool.submit(post, embedded_server, "/v1/predict", "image/jpeg", harmless) for _ in range(3)]
            assert {answer.result() for answer in sent} == {415}
        with measured(embedded_server) as attacked:
            sent = [pool.submit(post, embedded_server, path, kind, body) for _ in range(3)]
            assert {answer.result() for answer in sent} <= {status, 0}
    print(f"{name}: {len(body):,} bytes; {calm=} {attacked=}")
    assert attacked.seconds < 10 * calm.seconds + 3
    assert attacked.bytes < calm.bytes + 3 * 2.5 * len(body) + 100 * MIB


def test_the_server_still_answers(embedded_server: Server) -> None:
    answer = httpx2.post(f"{embedded_server.url}/v1/predict", content=PHOTO, timeout=60)
    assert answer.json()["predictions"][0]["label"] == "Egyptian cat"
