"""A process of the service that stops without ending (row 11)."""

import contextlib
import signal
import time
from collections.abc import Iterator

import psutil

from tests.attacks.clients import PREPARED, Target, Wire, head, photograph, post
from tests.attacks.service import Attack

_LOOKS = 16
_LOOK_S = 0.5


def stop_engine(target: Target) -> Iterator[str]:
    """Stop the engine process. Yields the statuses of ``/readyz`` meanwhile, and that of a prediction at the end."""
    yield from _stop(target, "app.workers.engine")


def stop_http(target: Target) -> Iterator[str]:
    """The same for the only HTTP process."""
    yield from _stop(target, "app.workers.http")


def _stop(target: Target, module: str) -> Iterator[str]:
    [process] = [p for p in psutil.Process(target.pid).children() if module in " ".join(p.cmdline())]
    yield PREPARED
    process.send_signal(signal.SIGSTOP)
    try:
        for _ in range(_LOOKS):
            yield "ready " + _once(target, head("/readyz", "GET"))
            time.sleep(_LOOK_S)
        yield "then " + _once(target, post("/v1/predict", photograph(), "image/jpeg"))
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGCONT)


def _once(target: Target, request: bytes) -> str:
    wire = Wire(target.port)
    status = wire.ask(request, timeout=1)
    wire.close()
    return status


ATTACKS = [
    Attack(
        11,
        f"{kind} process stopped, one of workers",
        run,
        frozenset({"then 200", "ready 200", "ready 503", "ready timeout", "ready reset"}),
        jpegs=None,
        memory_mib=1200,
        alone=True,
        seconds=15,
        variant=kind == "HTTP",
        options=("--workers", "1", "--watchdog-ms", "2000"),
    )
    for kind, run in (("engine", stop_engine), ("HTTP", stop_http))
]
