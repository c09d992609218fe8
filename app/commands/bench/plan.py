"""What to measure, validated before any request is sent."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from app.errors import LoadTestError

Mode = Literal["closed", "open", "capacity"]

CLIENTS = "16"


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """``clients`` is the number of clients of each closed-loop point, ``rates`` the rate of each open-loop point.

    Mode ``capacity`` searches the rates, starting from the throughput of ``clients[0]`` clients in a closed loop. With
    ``send_timeout``, open-loop requests state the SLO as their timeout.
    """

    mode: Mode
    clients: tuple[int, ...] = ()
    rates: tuple[float, ...] = ()
    seconds: float = 10.0
    warmup: float = 2.0
    slo_ms: float = 1000.0
    send_timeout: bool = False
    headers: dict[str, str] = field(default_factory=dict)
    images: Path | None = None
    multipart: bool = False

    @property
    def slo_s(self) -> float:
        return self.slo_ms / 1000


def load(
    clients: str | None, rates: str | None, find_capacity: bool
) -> tuple[Mode, tuple[int, ...], tuple[float, ...]]:
    """Mode, clients and rates from the command line. Raises LoadTestError."""
    if rates is not None and (clients is not None or find_capacity):
        raise LoadTestError("--rate cannot be combined with --clients or --find-capacity")
    if rates is not None:
        return "open", (), _numbers("--rate", rates)
    counts = _numbers("--clients", clients or CLIENTS)
    if not all(count.is_integer() for count in counts):
        raise LoadTestError(f"--clients must be whole numbers, got {clients}")
    if find_capacity and len(counts) > 1:
        raise LoadTestError(f"--find-capacity takes a single number of --clients, got {clients}")
    return "capacity" if find_capacity else "closed", tuple(map(int, counts)), ()


def headers(lines: Sequence[str], api_key: str | None) -> dict[str, str]:
    """Headers from lines ``Name: value``, and the API key as a bearer token. Raises LoadTestError."""
    given = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
    for line in lines:
        name, colon, value = line.partition(":")
        if not (colon and name.strip()):
            raise LoadTestError(f"--header must have the form 'Name: value', got {line!r}")
        given[name.strip()] = value.strip()
    if not all(text.isprintable() and text.isascii() for item in given.items() for text in item):
        raise LoadTestError("headers and API keys must be printable ASCII")
    return given


def _numbers(option: str, text: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or not all(0 < number < math.inf for number in numbers):
        raise LoadTestError(f"{option} must be a number above 0, or several separated by commas, got {text!r}")
    return numbers
