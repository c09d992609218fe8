"""Measures what decodes cost beside what is predicted: ``python -m tests.production.costs [FOLDER] [--mutants N]``.

A small process of its own, so that its memory is that of the decode. It measures all files of a folder, or N mutants,
and prints a line of JSON: how many were measured, the costliest by time and by memory, and each one beyond its bounds.
"""

import contextlib
import json
import os
import pickle
import random
import resource
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from app import images, machine
from app.errors import BadImage
from app.images import Header
from tests.production import mutants

MOST = 10.0  # times the predicted time
_TRIES = 5
_STATUS = Path("/proc/self/status")
_STATM = Path("/proc/self/statm")


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one file: processor seconds and peak bytes, measured and predicted."""

    name: str
    format: str
    seconds: float
    predicted_s: float
    memory: int
    accounted: int

    @property
    def time_ratio(self) -> float:
        return self.seconds / self.predicted_s

    @property
    def memory_ratio(self) -> float:
        return self.memory / self.accounted

    def as_dict(self) -> dict[str, object]:
        return {
            "name": self.name,
            "format": self.format,
            "time": f"{self.seconds * 1e3:.2f} ms, {self.time_ratio:.2f} times as predicted",
            "memory": f"{self.memory / 2**20:.1f} MiB, {self.memory_ratio:.2f} of what is accounted for",
        }


def measure(name: str, data: bytes, fast: bool, tries: int = _TRIES) -> Cost | None:
    """The cost of a file whose header is accepted; the least of several tries where it seems to be too much."""
    try:
        header = images.read_header(data, mutants.MAX_PIXELS)
    except BadImage:
        return None
    predicted = images.decode_seconds(header, mutants.PREPROCESSING, fast)
    accounted = images.decode_bytes(header, mutants.PREPROCESSING, fast)
    cost = None
    for _ in range(tries):
        seconds, memory = _decode(header, fast) if header.bounded else _in_a_child(header, fast, accounted)
        cost = Cost(name, header.format, seconds, predicted, memory, accounted)
        if cost.time_ratio < MOST and cost.memory_ratio < 1:
            break
    return cost


def _decode(header: Header, fast: bool) -> tuple[float, int]:
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = _status("VmRSS")
    started = time.process_time()
    with contextlib.suppress(BadImage):
        images.decode(header, mutants.PREPROCESSING, fast)
    return time.process_time() - started, _status("VmHWM") - before


def _in_a_child(header: Header, fast: bool, accounted: int) -> tuple[float, int]:
    """As in the sandbox: within the memory that is accounted for; a decoder may crash."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        used = int(_STATM.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + accounted, resource.RLIM_INFINITY))
        os.write(writer, pickle.dumps(_decode(header, fast)))
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as file:
        answer = file.read()
    _, _, usage = os.wait4(pid, 0)
    if answer:
        measured: tuple[float, int] = pickle.loads(answer)
        return measured
    return usage.ru_utime + usage.ru_stime, 0


def _status(name: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def _files(arguments: list[str]) -> Iterator[tuple[str, bytes]]:
    if arguments[0] == "--mutants":
        for number in range(int(arguments[1])):
            yield f"mutant {number}", mutants.mutant(random.Random(number))
    else:
        for path in sorted(Path(arguments[0]).iterdir()):
            yield path.name, path.read_bytes()


def survey(files: Iterable[tuple[str, bytes]]) -> dict[str, object]:
    """What is printed."""
    measured = [measure(name, data, fast) for name, data in files for fast in (True, False)]
    costs = [cost for cost in measured if cost]
    return {
        "measured": len(costs),
        "slowest": max(costs, key=lambda cost: cost.time_ratio).as_dict(),
        "largest": max(costs, key=lambda cost: cost.memory_ratio).as_dict(),
        "beyond": [cost.as_dict() for cost in costs if cost.time_ratio >= MOST or cost.memory_ratio >= 1],
    }


if __name__ == "__main__":
    machine.return_memory()
    images.heif_installed()
    for data in mutants.seeds().values():  # what decoders allocate once
        for fast in (True, False):
            measure("", data, fast)
    print(json.dumps(survey(_files(sys.argv[1:]))))
