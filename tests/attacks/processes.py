"""A process of the service that stops without ending (row 11)."""

import contextlib
import signal
import time
from collections.abc import Iterator

import psutil

from tests.attacks.clients import PREPARED, Target, Wire, head, photograph, post
from tests.attacks.service import Attack

_LOOKS = 60
_LOOK_S = 0.5


def stop_engine(target: Target) -> Iterator[str]:
    """Stop the engine process. Yields the statuses of ``/readyz`` until another is ready, then that of a prediction."""
    yield from _stop(target, "app.workers.engine")


def stop_http(target: Target) -> Iterator[str]:
    """The same for the only HTTP process."""
    yield from _stop(target, "app.workers.http")


def _stop(target: Target, module: str) -> Iterator[str]:
    [process] = [p for p in psutil.Process(target.pid).children() if module in " ".join(p.cmdline())]
    yield PREPARED
    process.send_signal(signal.SIGSTOP)
    try:
        was_ready = True
        for _ in range(_LOOKS):
            ready = _once(target, head("/readyz", "GET")) == "200"
            yield "ready" if ready else "not ready"
            if ready and not was_ready:
                break
            was_ready = ready
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
        frozenset({"ready", "not ready", "then 200"}),
        needed=frozenset({"not ready", "then 200"}),
        jpegs=None,
        memory_mib=1200,
        alone=True,
        seconds=15,
        variant=kind == "HTTP",
        options=("--workers", "1", "--watchdog-ms", "2000"),
    )
    for kind, run in (("engine", stop_engine), ("HTTP", stop_http))
]
