"""Records -> the figures of one point."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from http.client import responses
from typing import Any

from app.commands.bench.client import Record
from app.commands.bench.loads import Closed, Load
from app.commands.bench.target import Batches

REFUSALS = (429, 503)
BUSY = 0.8  # of a core, in the client
LATE = 0.05  # of the SLO, behind the schedule


@dataclass(frozen=True, slots=True)
class Window:
    """The measured time: requests due from ``start`` up to ``end`` (loop time) count.

    ``cpu_s`` is the client's CPU time in between.
    """

    start: float
    end: float
    cpu_s: float = 0.0
    before: Batches | None = None
    after: Batches | None = None

    @property
    def seconds(self) -> float:
        return self.end - self.start

    @property
    def batch_size(self) -> float | None:
        """Mean size of the batches that the server ran, if it exports that."""
        if not (self.before and self.after) or self.after.batches <= self.before.batches:
            return None
        mean = (self.after.images - self.before.images) / (self.after.batches - self.before.batches)
        return max(1.0, mean)  # a scrape may fall between the counts of a batch's images and of the batch


@dataclass(frozen=True, slots=True)
class Point:
    """One load and its figures. Latencies are in ms, None without a response.

    ``throughput`` is 2xx responses per second, ``goodput`` those within the SLO. ``p50_ms``, ``p95_ms`` and ``p99_ms``
    are latencies of 2xx responses, ``refused_p99_ms`` of 503 and 429; in an open loop they count from the scheduled
    arrival. ``errors`` counts requests without a response: timeout, connect, reset, protocol. ``late`` counts 2xx
    responses after the SLO. ``client_cpu`` is the share of a core that the client used, ``behind_p99_ms`` the delay
    of its requests.
    """

    load: Load
    seconds: float
    requests: int
    good: int
    late: int
    throughput: float
    goodput: float
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    refused_p99_ms: float | None
    statuses: dict[int, int]
    errors: dict[str, int]
    batch_size_mean: float | None
    client_cpu: float
    behind_p99_ms: float | None

    @property
    def refused(self) -> int:
        return sum(self.statuses.get(status, 0) for status in REFUSALS)

    @property
    def good_share(self) -> float:
        """Goodput divided by the offered rate, 0 to 1."""
        return self.good / self.requests if self.requests else 0.0

    def warnings(self, slo_ms: float) -> list[str]:
        """Reasons to doubt that the figures describe the server."""
        found = []
        if self.client_cpu > BUSY:
            found.append(
                f"{self.load.label}: the client used {self.client_cpu:.2f} of a core and may be the bottleneck"
            )
        if (self.behind_p99_ms or 0) > LATE * slo_ms:
            found.append(f"{self.load.label}: the client was {self.behind_p99_ms:.0f} ms behind its schedule (p99)")
        for status, count in self.statuses.items():
            if not 200 <= status < 300 and status not in REFUSALS:
                phrase = responses.get(status, "")
                found.append(f"{self.load.label}: {count} of {self.requests} requests were answered {status} {phrase}")
        return found

    def as_dict(self) -> dict[str, Any]:
        """The figures as JSON, the load as ``clients`` or ``rate``, without unknown figures."""
        load = {"clients": self.load.clients} if isinstance(self.load, Closed) else {"rate": self.load.rate}
        figures = {name: getattr(self, name) for name in self.__slots__ if name != "load"}
        figures["statuses"] = {str(status): count for status, count in self.statuses.items()}
        rounded = {name: round(v, 3) if isinstance(v, float) else v for name, v in figures.items()}
        return load | {name: value for name, value in rounded.items() if value is not None}


def point(load: Load, records: Sequence[Record], window: Window, slo_s: float) -> Point:
    """The figures of the requests due within the window, whenever they ended."""
    counted = [record for record in records if window.start <= record.due < window.end]
    answers = [record.latency for record in counted if 200 <= record.status < 300]
    refusals = [record.latency for record in counted if record.status in REFUSALS]
    good = sum(latency <= slo_s for latency in answers)
    return Point(
        load=load,
        seconds=window.seconds,
        requests=len(counted),
        good=good,
        late=len(answers) - good,
        throughput=_per_second(len(answers), window),
        goodput=_per_second(good, window),
        p50_ms=percentile_ms(answers, 50),
        p95_ms=percentile_ms(answers, 95),
        p99_ms=percentile_ms(answers, 99),
        refused_p99_ms=percentile_ms(refusals, 99),
        statuses=dict(sorted(Counter(record.status for record in counted if not record.error).items())),
        errors=dict(sorted(Counter(record.error for record in counted if record.error).items())),
        batch_size_mean=window.batch_size,
        client_cpu=window.cpu_s / window.seconds if window.seconds > 0 else 0.0,
        behind_p99_ms=percentile_ms([record.begun - record.due for record in counted], 99),
    )


def percentile_ms(seconds: Sequence[float], percent: int) -> float | None:
    """The percentile in ms, by nearest rank: the smallest value that ``percent`` per cent do not exceed."""
    if not seconds:
        return None
    return sorted(seconds)[math.ceil(len(seconds) * percent / 100) - 1] * 1000


def _per_second(count: int, window: Window) -> float:
    return count / window.seconds if window.seconds > 0 else 0.0
