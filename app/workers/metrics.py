"""The sum of the metrics of several processes, including those that have exited. Runs in the supervisor."""

from collections.abc import Iterable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

Snapshot = list[Any]
"""``[family, type, help, [[sample, {label: value}, number], ...]]`` for every family, as plain JSON.

Numbers are text, because JSON has no infinity.
"""

_MINIMUM = {
    "topk_ready",
    "topk_patience_seconds",  # the engine process learns it; in the others it is infinite
    "topk_memory_limit_bytes",
    "process_start_time_seconds",
    "process_max_fds",
}
_MAXIMUM = {"topk_model", "python_info"}
_KEPT = {"counter", "histogram"}

_Key = tuple[str, tuple[tuple[str, str], ...]]


def snapshot(registry: CollectorRegistry) -> Snapshot:
    """The current samples of a registry."""
    return _as_snapshot(registry.collect())


class Totals(Collector):
    """Sums snapshots. The counts of processes that have exited stay in the sum: counters must not decrease."""

    def __init__(self) -> None:
        self._kept: list[Snapshot] = []
        self._running: list[Snapshot] = []

    def keep(self, last: Snapshot) -> None:
        """Add the last snapshot of a process that has exited."""
        counted = [family for family in last if family[1] in _KEPT]
        self._kept = [_as_snapshot(_sum([*self._kept, counted]))]

    def render(self, running: Iterable[Snapshot]) -> bytes:
        """The sum of these snapshots and all kept ones, in Prometheus's text format 0.0.4."""
        self._running = list(running)
        registry = CollectorRegistry()
        registry.register(self)
        return generate_latest(registry)

    def collect(self) -> Iterator[Metric]:
        # Running processes first: their snapshots have all families and define the order; kept ones lack some.
        yield from _sum([*self._running, *self._kept])


def _sum(snapshots: list[Snapshot]) -> list[Metric]:
    families: dict[str, tuple[Metric, dict[_Key, float]]] = {}
    for name, kind, documentation, samples in (family for snapshot in snapshots for family in snapshot):
        _, sums = families.setdefault(name, (Metric(name, documentation, kind), {}))
        for sample, labels, text in samples:
            key, value = (sample, tuple(labels.items())), float(text)
            sums[key] = _combined(name, sums[key], value) if key in sums else value
    for metric, sums in families.values():
        for (sample, pairs), value in sums.items():
            metric.add_sample(sample, dict(pairs), value)
    return [metric for metric, _ in families.values()]


def _combined(family: str, one: float, other: float) -> float:
    if family in _MINIMUM:
        return min(one, other)
    return max(one, other) if family in _MAXIMUM else one + other


def _as_snapshot(metrics: Iterable[Metric]) -> Snapshot:
    return [[m.name, m.type, m.documentation, [[s.name, s.labels, str(s.value)] for s in m.samples]] for m in metrics]
