"""Part 3: the engine process is killed, and later loses its device, while clients send."""

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
_RATE, _QUICK_RATE = 500.0, 4.0  # requests per second
_PATIENCE_S = 30.0  # longer than a request may take
_ENDS_S = 5.0
_RESTARTS = 1.1  # the time that clients send, in start-up times
_PLANTED = "tests.gpu.planted"
_FAULTS = (("killed", signal.SIGKILL, -signal.SIGKILL), ("CUDA error", signal.SIGUSR1, 1))  # with the exit code


def faults(context: Context, report: Report) -> None:
    """End the engine process in two ways, and report what clients see until its successor answers."""
    found = material.find(context)
    started = time.monotonic()
    workers = 1 if context.quick else _WORKERS
    with server(found, context, workers, under=(sys.executable, "-m", _PLANTED)) as service:
        start_s = time.monotonic() - started
        report("start of the service", start_s, "s", target="<= 15")
        sending = clients(f"{service.url}/v1/predict", found, context, _RESTARTS * start_s)
        for name, number, code in _FAULTS:
            sent: list[float] = []

            def send(number: int = number, sent: list[float] = sent) -> None:
                sent.append(time.monotonic())
                os.kill(_engine(service), number)

            rate = _QUICK_RATE if context.quick else _RATE
            measured = sending.open(rate, service.process.pid, _PATIENCE_S, send)
            service.wait_for("the engine process exited and is restarted", _ENDS_S, code=code)
            report(f"{name}: exit code", code)
            _report_outage(name, measured, sent[0], start_s, report)
            service.wait_for("ready again")


def _report_outage(name: str, measured: Measured, at: float, start_s: float, report: Report) -> None:
    """Report the requests that ended after ``at``: all are answered, with 200 or 503, and 200 comes back."""
    after = sorted((record for record in measured.records if record.ended > at), key=lambda record: record.ended)
    statuses = Counter(record.error or str(record.status) for record in after)
    good = [record.ended for record in after if record.status == 200]
    gaps = [end - begin for begin, end in zip([at, *good], good, strict=False)]
    refused = [record.ended - max(at, record.begun) for record in after if record.status == 503]
    report(f"{name}: longest time without a 200", max(gaps, default=None), "s", target=f"<= {start_s:.3g}")
    report(f"{name}: answered 503", len(refused))
    report(f"{name}: slowest 503", max(refused, default=None), "s")
    report(f"{name}: other outcomes", len(after) - len(good) - len(refused), target="== 0")
    report(f"{name}: statuses", str(dict(statuses)), detail=True)


def _engine(service: Server) -> int:
    """The process id of the engine process."""
    children = psutil.Process(service.process.pid).children()
    return next(child.pid for child in children if _PLANTED in child.cmdline())
