"""The attacked service: a real server in a process of its own, its memory and CPU time, and one measured attack."""

import contextlib
import math
import os
import re
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.attacks.clients import (
    TIMEOUT,
    Attacker,
    Attacking,
    Beside,
    Sample,
    Target,
    Wire,
    head,
    ordinary,
    photograph,
    post,
    probe,
)
from tests.conftest import REPOSITORY, Server

MIB = 2**20
MODEL = "efficientnet_lite0"
CALM_S = 1.5
_POLL_S = 0.05
_ENDS_S = 2.0
_TICKS = os.sysconf("SC_CLK_TCK")
_BASELINE = 12  # ordinary requests that the cost of one is measured with


@dataclass(frozen=True, slots=True)
class Attack:
    """One attack, and what holds once it is harmless.

    ``answers`` are the acceptable statuses. ``jpegs`` bounds the CPU time of one response, in ordinary JPEGs.
    ``memory_mib`` bounds what memory may grow by. ``alone``: the ordinary client does not run beside it.
    ``seconds`` is how long it may last. ``needed``: statuses without which it is not harmless. A ``variant`` of
    another is left out of the table by default. The server runs with ``options``, ``env`` and under ``under``.
    """

    row: int
    name: str
    run: Attacking
    answers: frozenset[str]
    jpegs: float | None = 20
    memory_mib: int = 600
    alone: bool = False
    seconds: float = 6
    needed: frozenset[str] = frozenset()
    variant: bool = False
    options: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    under: tuple[str, ...] = ()

    @property
    def setup(self) -> tuple[object, ...]:
        """What a server has to be started with: attacks of the same setup may share one."""
        return self.options, tuple(sorted(self.env.items())), self.under


@dataclass(frozen=True, slots=True)
class Measured:
    """What an attack did. Times in seconds, memory in MiB.

    ``cpu_jpegs`` is the CPU time for each response, in ordinary JPEGs. ``goodput`` is that of the ordinary client
    beside the attack, divided by its goodput before; None where it did not run.
    """

    row: int
    name: str
    statuses: dict[str, int]
    seconds: float
    livez_worst: float
    livez_p99: float
    livez_failed: int
    base_mib: float
    peak_mib: float
    jpeg_s: float
    cpu_jpegs: float
    goodput: float | None
    process: str

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class Service(Server):
    """EfficientNet-Lite0 of the checkout in ``app``."""

    def __init__(
        self,
        *options: str,
        env: Mapping[str, str] | None = None,
        under: tuple[str, ...] = (),
        app: Path = REPOSITORY,
        model: str = MODEL,
    ) -> None:
        super().__init__("--model", model, *options, env=dict(env or {}), under=("env", "-C", str(app), *under))

    @property
    def target(self) -> Target:
        return Target(self.port, self.process.pid)

    def answers(self, path: str = "/livez", timeout: float = 5) -> str:
        """The status of a GET on a new connection."""
        wire = Wire(self.port)
        status = wire.ask(head(path, "GET"), timeout)
        wire.close()
        return status

    def text(self) -> str:
        """Its log so far, as it is printed."""
        return "\n".join(str(line.get("event")) for line in list(self.log))

    def logged(self, pattern: str, seconds: float) -> re.Match[str] | None:
        """What matches in its log, waited for; None where it ends first, or is silent for too long."""
        with self._seen:
            self._seen.wait_for(lambda: self._silent or re.search(pattern, self.text()), seconds)
        return re.search(pattern, self.text())

    def kill(self) -> None:
        """End it and its children at once."""
        for process in tree(self.process.pid):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGCONT)
                process.kill()
        self.stop(signal.SIGKILL)


def tree(pid: int) -> list[psutil.Process]:
    """A process and its descendants, as far as they live."""
    try:
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def cpu_seconds(pid: int) -> float:
    """CPU time of a process, its living descendants, and those that have ended and were waited for."""
    total = 0.0
    for process in tree(pid):
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
            total += sum(map(int, fields[11:15])) / _TICKS
    return total


class Memory:
    """Memory of a service, in bytes: shared pages are counted once. ``peak`` is the most since it was begun.

    It is sampled 20 times a second. The kernel's own high-water mark of the process that grew most fills the gaps.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        for process in tree(pid):
            with contextlib.suppress(OSError):
                Path(f"/proc/{process.pid}/clear_refs").write_text("5")
        self.base = self.peak = self._now()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._over.set()
        self._thread.join()
        self.peak = max(self.peak, self._now())

    def _watch(self) -> None:
        while not self._over.wait(_POLL_S):
            self.peak = max(self.peak, self._now())

    def _now(self) -> int:
        total, grown = 0, 0
        for process in tree(self._pid):
            with contextlib.suppress(OSError, KeyError):
                status = _kib(f"/proc/{process.pid}/status")
                total += _kib(f"/proc/{process.pid}/smaps_rollup")["Pss"]
                grown = max(grown, status["VmHWM"] - status["VmRSS"])
        return (total + grown) * 1024


def _kib(path: str) -> dict[str, int]:
    lines = (line.split() for line in Path(path).read_text().splitlines())
    return {fields[0].rstrip(":"): int(fields[1]) for fields in lines if fields[-1] == "kB"}


def jpeg_seconds(service: Service) -> float:
    """CPU time of the service for one ordinary JPEG."""
    wire, request = Wire(service.port), post("/v1/predict", photograph(), "image/jpeg")
    for _ in range(3):
        wire.ask(request)
    before = cpu_seconds(service.process.pid)
    statuses = [wire.ask(request) for _ in range(_BASELINE)]
    wire.close()
    if set(statuses) != {"200"}:
        raise RuntimeError(f"ordinary requests were answered {Counter(statuses)}")
    return max((cpu_seconds(service.process.pid) - before) / _BASELINE, 1 / _TICKS / _BASELINE)


def measure(service: Service, attack: Attack, window_s: float = 2) -> Measured:
    """Attack a ready service. Goodput is that of ``window_s`` seconds at least."""
    pid = service.process.pid
    jpeg_s = jpeg_seconds(service)
    attacker = Attacker(attack.run, service.target)
    with contextlib.ExitStack() as stack:
        stack.callback(attacker.close)
        prober = stack.enter_context(Beside(probe, service.port))
        client = None if attack.alone else stack.enter_context(Beside(ordinary, service.port))
        calm = time.monotonic()
        time.sleep(CALM_S)
        memory = Memory(pid)
        stack.callback(memory.close)
        began, cpu = time.monotonic(), cpu_seconds(pid)
        statuses, whole = attacker.run(attack.seconds)
        ended, cpu = time.monotonic(), cpu_seconds(pid) - cpu
        attacker.close()
        lived = service.process.poll() is None
        if lived and client:
            time.sleep(max(0.0, began + window_s - time.monotonic()))
        window = time.monotonic()
        alive = lived and service.answers(timeout=4) == "200"
        process = _process(service, alive)
    answered = Counter(statuses)
    if not whole and lived:
        answered["unanswered"] += 1
    samples = [sample for sample in prober.samples if began <= sample.at + sample.seconds and sample.at < ended]
    by_time = sorted(sample.seconds for sample in samples if sample.status == "200" or sample.status == TIMEOUT)
    beside = _goodput(client.samples, began, window) if client else None
    before = _goodput(client.samples, calm, began) if client else 0.0
    spent = cpu - (jpeg_s * _goodput(client.samples, began, ended) * (ended - began) if client else 0.0)
    return Measured(
        row=attack.row,
        name=attack.name,
        statuses=dict(answered),
        seconds=ended - began,
        livez_worst=by_time[-1] if by_time else float("inf"),
        livez_p99=by_time[math.ceil(0.99 * len(by_time)) - 1] if by_time else float("inf"),
        livez_failed=sum(sample.status not in ("200", TIMEOUT) for sample in samples),
        base_mib=memory.base / MIB,
        peak_mib=memory.peak / MIB,
        jpeg_s=jpeg_s,
        cpu_jpegs=max(0.0, spent) / jpeg_s / max(1, answered.total()),
        goodput=None if beside is None or not before else beside / before,
        process=f"frozen {by_time[-1]:.0f} s" if process == "frozen" and by_time else process,
    )


def _goodput(samples: list[Sample], start: float, end: float) -> float:
    """Responses a second that were 200 and came between these times."""
    came = sum(sample.status == "200" and start <= sample.at + sample.seconds < end for sample in samples)
    return came / (end - start)


def _process(service: Service, alive: bool) -> str:
    """What became of it. One that does not answer may be about to end."""
    if not alive:
        with contextlib.suppress(subprocess.TimeoutExpired):
            service.process.wait(_ENDS_S)
    if service.process.poll() is not None:
        return f"process ended ({service.process.returncode})"
    if not alive:
        return "frozen"
    return "ready" if service.answers("/readyz") == "200" else "not ready"


@contextlib.contextmanager
def started(attack: Attack, app: Path = REPOSITORY) -> Iterator[Service]:
    """A ready service as the attack needs it, killed at the end."""
    service = Service(*attack.options, env=attack.env, under=attack.under, app=app)
    try:
        service.wait_for("ready")
        yield service
    finally:
        service.kill()
