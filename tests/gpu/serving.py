"""Part 3: the service over HTTP, the tests that need a GPU, and a plain FastAPI service beside it."""

import contextlib
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing import get_context

import httpx2

from app import machine
from app.commands.bench.points import Point
from tests.conftest import REPOSITORY, Server, free_port
from tests.gpu import material
from tests.gpu.figures import Context, Report
from tests.gpu.load import Clients, Measured
from tests.gpu.material import Material
from tests.gpu.plain import serve

_WORKERS = (1, 4, 8, 10)
_CLIENTS = 64  # for each HTTP process
_PLAIN_CLIENTS = 16
_QUICK_CLIENTS = 2
_LEAST_RATE = 1.0
_POISSON = 0.7  # of the capacity
_TRIES = 600


def tests(context: Context, report: Report) -> None:
    """Run the tests with the marker ``gpu``; of one file if the run is quick."""
    files = [str(path) for path in (REPOSITORY / "tests").rglob("test_*.py") if "mark.gpu" in path.read_text()]
    files = files[:1] if context.quick else files
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", *files]
    run = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    print(run.stdout, run.stderr, file=sys.stderr)
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|skipped|error)", run.stdout)}
    report("passed", counts.get("passed", 0))
    report("skipped", counts.get("skipped", 0))
    report("failed", counts.get("failed", 0) + counts.get("error", 0), expected="== 0")
    report("exit code", run.returncode, expected="== 0")


def throughput(context: Context, report: Report) -> None:
    """Measure a plain service, then topk with several numbers of HTTP processes, and with decoding on the GPU."""
    found = material.find(context)
    count = _QUICK_CLIENTS if context.quick else _PLAIN_CLIENTS
    with plain(found, context) as (url, pid):
        naive = clients(url, found, context).closed(count, pid).point.throughput
    report("plain FastAPI", naive, "img/s")
    best = _sweep(found, context, report, "CPU decoding", {}, least=5500)
    if context.cuda:
        best = max(best, _sweep(found, context, report, "GPU decoding", {"TOPK_GPU_DECODE": "true"}, least=12000))
    report("times plain FastAPI", best / naive if naive else None, target=">= 15")


def _sweep(found: Material, context: Context, report: Report, name: str, env: dict[str, str], least: int) -> float:
    """Measure closed loops, and Poisson arrivals at 70 % of their rate. Returns the best throughput."""
    expected = found.logits()[0].argmax()
    closed: dict[int, Point] = {}
    arrivals: dict[int, Point] = {}
    for workers in (1,) if context.quick else _WORKERS:
        started = time.monotonic()
        with server(found, context, workers, env=env) as service:
            wrong = _first_answer(service, found) != expected
            label = f"{name}, {workers} HTTP processes"
            report(f"{label}: first answer after", time.monotonic() - started, "s", target="<= 15", detail=workers > 1)
            report(f"{label}: first answer wrong", int(wrong), expected="== 0", detail=not wrong)
            sending = clients(f"{service.url}/v1/predict", found, context)
            measured = sending.closed(_QUICK_CLIENTS if context.quick else workers * _CLIENTS, service.process.pid)
            closed[workers] = measured.point
            _report_point(label, measured, report)
            rate = max(_POISSON * measured.point.throughput, _LEAST_RATE)
            measured = sending.open(rate, service.process.pid)
            arrivals[workers] = measured.point
            _report_point(f"{label}, Poisson", measured, report)
    best = max(closed, key=lambda workers: closed[workers].throughput)
    report(f"{name}, 1 HTTP process", closed[1].throughput, "img/s", target=">= 2000")
    report(f"{name}, capacity with {best}", closed[best].throughput, "img/s", target=f">= {least}")
    report(f"{name}, p99 at 70 %", arrivals[best].p99_ms, "ms", target="<= 50")
    missing = arrivals[best].requests - arrivals[best].statuses.get(200, 0)
    report(f"{name}, not answered at 70 %", missing, target="== 0")
    return closed[best].throughput


@contextlib.contextmanager
def server(
    found: Material, context: Context, workers: int, *, env: dict[str, str] | None = None, under: tuple[str, ...] = ()
) -> Iterator[Server]:
    """A ready service with so many HTTP processes."""
    options = ("--model", "resnet50", "--weights", str(found.weights), "--engine", "torch", "--device", context.device)
    service = Server(*options, "--workers", str(workers), env=env, under=under)
    try:
        service.wait_for("ready")
        yield service
    finally:
        service.stop()


@contextlib.contextmanager
def plain(found: Material, context: Context) -> Iterator[tuple[str, int]]:
    """The URL and the process id of the plain service, which has answered once."""
    port = free_port()
    # forked, because this process has imported torch but has not touched the device
    process = get_context("fork").Process(target=serve, args=(str(found.weights), context.device, port))
    process.start()
    url = f"http://127.0.0.1:{port}/v1/predict"
    try:
        _await_answer(url, found.files[0])
        assert process.pid
        yield url, process.pid
    finally:
        process.terminate()
        process.join()


def clients(url: str, found: Material, context: Context, seconds: float = 0.0) -> Clients:
    """Client processes for this machine: a quarter of the cores, up to four. They send for ``seconds`` or longer."""
    processes = max(1, min(4, machine.cores() // 4))
    warmup, least = (0.2, 0.5) if context.quick else (2.0, 6.0)
    return Clients(url, found.files, processes, warmup, max(least, seconds))


def _first_answer(service: Server, found: Material) -> int:
    """The best class of the first photograph."""
    answer = httpx2.post(f"{service.url}/v1/predict", content=found.files[0], timeout=60).raise_for_status()
    best: int = answer.json()["predictions"][0]["class_id"]
    return best


def _report_point(name: str, measured: Measured, report: Report) -> None:
    point = measured.point
    report(f"{name}: throughput", point.throughput, "img/s", detail=True)
    report(f"{name}: p50", point.p50_ms, "ms", detail=True)
    report(f"{name}: p99", point.p99_ms, "ms", detail=True)
    report(f"{name}: statuses", str(point.statuses | point.errors), detail=True)
    for kind in measured.cpu_s:
        report(f"{name}: CPU of {kind}", measured.micros(kind), "us per image", detail=True)
    report(f"{name}: busiest client", max(measured.busy), "of a core", target="< 0.8", detail=True)
    report(f"{name}: busy cores", sum(measured.cpu_s.values()) / point.seconds, detail=True)


def _await_answer(url: str, file: bytes) -> None:
    """Ask until the service answers. Raises RuntimeError if it does not."""
    for _ in range(_TRIES):
        with contextlib.suppress(httpx2.TransportError):
            if httpx2.post(url, content=file, timeout=60).status_code == 200:
                return
        time.sleep(0.1)
    raise RuntimeError(f"{url} does not answer")
