"""The sum of several processes' metrics, those of processes that are gone included. Runs in the supervisor."""

from collections.abc import Iterable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

Snapshot = list[Any]
"""[family, type, help, [[sample, {label: value}, number], ...]] of every family: plain JSON."""

_LEAST = {"topk_ready", "topk_memory_limit_bytes", "process_start_time_seconds", "process_max_fds"}
_SAME = {"topk_model", "python_info"}
_SUMMED_FOREVER = {"counter", "histogram"}

_Key = tuple[str, tuple[tuple[str, str], ...]]


def snapshot(registry: CollectorRegistry) -> Snapshot:
    """What a registry holds now."""
    return [
        [family.name, family.type, family.documentation, [[s.name, s.labels, s.value] for s in family.samples]]
        for family in registry.collect()
    ]


class Totals(Collector):
    """Sums snapshots. What a process that ended had counted stays in the sum, or counters would fall."""

    def __init__(self) -> None:
        self._gone: list[Snapshot] = []
        self._living: list[Snapshot] = []

    def keep(self, last: Snapshot) -> None:
        """Add the last snapshot of a process that has ended."""
        counted = [family for family in last if family[1] in _SUMMED_FOREVER]
        self._gone = [_plain(_summed([*self._gone, counted]))]

    def render(self, living: Iterable[Snapshot]) -> bytes:
        """The sum of these and all that are gone, in Prometheus's text format 0.0.4."""
        self._living = list(living)
        registry = CollectorRegistry()
        registry.register(self)
        return generate_latest(registry)

    def collect(self) -> Iterator[Metric]:
        # The living first: of what is gone some families are not kept, and theirs is the order.
        yield from _summed([*self._living, *self._gone])


def _summed(snapshots: list[Snapshot]) -> list[Metric]:
    families: dict[str, tuple[Metric, dict[_Key, float]]] = {}
    for name, kind, documentation, samples in (family for snapshot in snapshots for family in snapshot):
        _, sums = families.setdefault(name, (Metric(name, documentation, kind), {}))
        for sample, labels, value in samples:
            key = (sample, tuple(labels.items()))
            sums[key] = _joined(name, sums[key], value) if key in sums else value
    for metric, sums in families.values():
        for (sample, pairs), value in sums.items():
            metric.add_sample(sample, dict(pairs), value)
    return [metric for metric, _ in families.values()]


def _joined(family: str, one: float, other: float) -> float:
    if family in _LEAST:
        return min(one, other)
    return max(one, other) if family in _SAME else one + other


def _plain(metrics: list[Metric]) -> Snapshot:
    return [[m.name, m.type, m.documentation, [[s.name, s.labels, s.value] for s in m.samples]] for m in metrics]
