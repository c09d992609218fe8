"""CPU time of an HTTP process per request, beside an app that only reads the body, in microseconds.

    python -m tests.load.http

The service is ``topk serve --workers 1``. Only its device is replaced: it sleeps as long as a batch would take, and
decodes JPEGs itself, as a GPU can. So the HTTP process does everything but decoding: HTTP, the API, admission, the
image's header, the hand-over, the response, metrics and the access log. The app to compare with is FastAPI under
uvicorn, which returns a constant. Each client posts the same JPEG again and again over its own connection.

The figures are the CPU time of the whole process, user and system, in the best of some rounds in turns. The network,
the device and the clients do not count. Other load on the machine makes the figures larger, because caches are shared.
"""

import argparse
import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any
from unittest import mock

import numpy as np
import psutil
import uvicorn
from fastapi import FastAPI, Request
from starlette.responses import Response

from app import loading
from app.engine.base import Jpeg, Pixels, Rows, Want
from app.imagenet.labels import imagenet1k
from app.images import Preprocessing
from app.models.model import Model
from app.processes import children
from app.workers import engine
from tests.conftest import CAT, REPOSITORY, Server, environment
from tests.load.handover import SleepingEngine

MODULE = "tests.load.http"
_ENGINE = "app.workers.engine"
_start = children.start


class DecodingEngine(SleepingEngine):
    """Takes JPEG files, and gives all images the same classes."""

    decodes_jpegs = True

    def forward(self, images: Sequence[Jpeg | Pixels], wants: Sequence[Want], alone: bool = False) -> Rows:
        return super().forward([np.zeros((1, 1, 1), np.uint8)] * len(images), wants)


def start(module: str, *arguments: str, **options: Any) -> "subprocess.Popen[bytes]":
    """Start this module in place of the engine process's."""
    return _start(MODULE if module == _ENGINE else module, *arguments, **options)


def run_topk() -> None:
    """Run ``topk serve``, whose engine process runs this module."""
    from app.__main__ import main as topk

    children.start = start
    sys.argv = ["topk", *sys.argv[4:]]
    topk()


def run_engine() -> int:
    preprocessing = Preprocessing(224, 256, "bilinear", (0.5,) * 3, (0.5,) * 3)
    model = Model("sleeping", "sleeping", "none", "", preprocessing, imagenet1k(), lambda: NotImplemented)
    with mock.patch.object(loading, "resolve", return_value=(model, DecodingEngine(1.0))):
        return engine.main()


def run_plain() -> None:
    app = FastAPI()

    @app.post("/v1/predict")
    async def predict(request: Request) -> Response:
        await request.body()
        return Response(b"[" + b"0," * 200 + b"0]", media_type="application/json")

    uvicorn.run(app, host="127.0.0.1", port=0, access_log=False)


class Plain:
    """The app to compare with, in a process of its own."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", MODULE, "plain"]
        self.process = subprocess.Popen(command, cwd=REPOSITORY, env=environment(), stderr=subprocess.PIPE, text=True)
        assert self.process.stderr
        running = next(line for line in self.process.stderr if "running on" in line)
        self.port = int(running.split(":")[-1].split()[0])

    def stop(self) -> None:
        self.process.terminate()
        self.process.communicate(timeout=60)


async def _client(port: int, request: bytes, until: float) -> int:
    """Post the request until a time of ``time.monotonic``. Returns the number of responses; raises if one fails."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answered = 0
    with contextlib.closing(writer):
        while time.monotonic() < until:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200"), head
            length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            await reader.readexactly(int(length.split(b":")[1]))
            answered += 1
    return answered


def _round(port: int, process: psutil.Process, request: bytes, clients: int, seconds: float) -> float:
    """Microseconds of CPU per request."""

    async def load() -> int:
        until = time.monotonic() + seconds
        return sum(await asyncio.gather(*(_client(port, request, until) for _ in range(clients))))

    before = sum(process.cpu_times()[:2])
    answered = asyncio.run(load())
    return float(1e6 * (sum(process.cpu_times()[:2]) - before) / answered)


def main() -> int:
    match sys.argv[1:]:
        case [first, *_] if first == sys.executable:
            run_topk()
        case ["plain"]:
            run_plain()
        case [descriptor, *_] if descriptor.isdigit():
            return run_engine()
        case _:
            return measure()
    return 0


def measure() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=3.0, help="of a round")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    data = CAT.read_bytes()
    fields = f"Host: localhost\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n"
    request = b"POST /v1/predict HTTP/1.1\r\n" + fields.encode() + data
    with contextlib.ExitStack() as stack:
        os.environ["TOPK_CACHE_DIR"] = stack.enter_context(tempfile.TemporaryDirectory())  # which ``Server`` passes on
        plain, topk = Plain(), Server("--workers", "1", under=(sys.executable, "-m", MODULE))
        stack.callback(plain.stop)
        stack.callback(topk.stop)
        measured: dict[str, list[float]] = {"FastAPI": [], "topk": []}
        servers = {"FastAPI": (plain.port, psutil.Process(plain.process.pid)), "topk": (topk.port, _http(topk))}
        for _ in range(options.rounds):
            for name, (port, process) in servers.items():
                measured[name].append(_round(port, process, request, options.clients, options.seconds))
    best = {name: min(figures) for name, figures in measured.items()}
    for name, figure in best.items():
        print(f"{name:>8} {figure:6.0f} us of CPU per request of {len(data)} bytes")
    print(f"ratio {best['topk'] / best['FastAPI']:.1f}")
    return 0


def _http(topk: Server) -> psutil.Process:
    """The HTTP process of a service with one."""
    [process] = [one for one in psutil.Process(topk.process.pid).children() if "app.workers.http" in one.cmdline()]
    return process


if __name__ == "__main__":
    sys.exit(main())
