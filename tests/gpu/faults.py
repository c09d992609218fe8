"""Part 3: the engine process is killed, or loses its device, while clients send."""

import os
import signal
import sys
import time
from collections import Counter

import psutil

from tests.conftest import Server
from tests.gpu import material
from tests.gpu.figures import Context, Report
from tests.gpu.load import Measured
from tests.gpu.serving import clients, server

_WORKERS = 2
_RATE, _QUICK_RATE = 500.0, 5.0  # requests per second
_PATIENCE_S = 30.0  # longer than a request may take
_ENDS_S = 5.0
_RESTARTS = 1.5  # the time that clients send, in start-up times


def killed(context: Context, report: Report) -> None:
    """Kill the engine process."""
    _end_engine(context, report, "app.workers.engine", signal.SIGKILL)


def planted(context: Context, report: Report) -> None:
    """Break the CUDA context of the engine process."""
    _end_engine(context, report, "tests.gpu.planted", signal.SIGUSR1, (sys.executable, "-m", "tests.gpu.planted"))


def _end_engine(context: Context, report: Report, module: str, number: int, under: tuple[str, ...] = ()) -> None:
    """Send a signal to the engine process under load, and report what clients see until its successor answers."""
    found = material.find(context)
    started = time.monotonic()
    with server(found, context, 1 if context.quick else _WORKERS, under=under) as service:
        start_s = time.monotonic() - started
        sent: list[float] = []

        def send() -> None:
            sent.append(time.monotonic())
            os.kill(_engine(service, module), number)

        sending = clients(f"{service.url}/v1/predict", found, context, _RESTARTS * start_s)
        rate = _QUICK_RATE if context.quick else _RATE
        measured = sending.open(rate, service.process.pid, _PATIENCE_S, send)
        code = service.wait_for("the engine process exited and is restarted", _ENDS_S)["code"]
    report("start of the service", start_s, "s", "<= 15")
    report("exit code of the engine process", str(code))
    _report_outage(measured, sent[0], start_s, report)


def _report_outage(measured: Measured, at: float, start_s: float, report: Report) -> None:
    """Report the requests that ended after ``at``: all are answered, with 200 or 503, and 200 comes back."""
    after = sorted((record for record in measured.records if record.ended > at), key=lambda record: record.ended)
    statuses = Counter(record.error or str(record.status) for record in after)
    good = [record.ended for record in after if record.status == 200]
    gaps = [end - begin for begin, end in zip([at, *good], good, strict=False)]
    report("answered 200 afterwards", statuses["200"])
    report("answered 503", statuses["503"])
    report("other outcomes", statuses.total() - statuses["200"] - statuses["503"], expected="== 0")
    report("statuses", str(dict(statuses)), detail=True)
    report("longest time without a 200", max(gaps, default=None), "s", f"<= {start_s:.3g}")
    slowest = max((record.ended - max(at, record.begun) for record in after if record.status == 503), default=None)
    report("slowest 503", slowest, "s")


def _engine(service: Server, module: str) -> int:
    """The process id of the engine process, which runs a module."""
    children = psutil.Process(service.process.pid).children()
    return next(child.pid for child in children if module in child.cmdline())
