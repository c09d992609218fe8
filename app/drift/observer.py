"""Observes each classified image. On the event loop; it takes a few microseconds."""

from dataclasses import dataclass
from typing import Any

from app.batching import Image
from app.calibration import Calibration
from app.drift.groups import groups
from app.drift.samples import SampleStore
from app.engine.base import Row
from app.imagenet.taxonomy import Taxonomy
from app.models.model import Model
from app.settings import Settings
from app.telemetry.metrics import Metrics


@dataclass(frozen=True, slots=True)
class _Counters:
    """The counter of each class's group."""

    taxonomy: Taxonomy
    by_class: list[Any]


class Observer:
    """Keeps the metrics of the answers, and samples images if ``settings`` say so. Raises ModelError."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._metrics = metrics
        self._samples = SampleStore.of(settings, metrics)
        self._counters: _Counters | None = None

    def observe(
        self, image: Image, row: Row, model: Model, taxonomy: Taxonomy | None, calibration: Calibration | None
    ) -> None:
        """Observe the row of one image. ``image`` is what the client has sent."""
        score = float(row.scores[0])
        self._metrics.top_score.observe(score)
        if calibration:
            self._metrics.typicality.observe(calibration.typicality(row.energy))
        if taxonomy:
            self._count(taxonomy, int(row.class_ids[0]))
        if self._samples and isinstance(image, bytes):
            self._samples.offer(image, score, row, model)

    def close(self) -> None:
        """Write the samples that wait. Blocks."""
        if self._samples:
            self._samples.close()

    def _count(self, taxonomy: Taxonomy, class_id: int) -> None:
        if self._counters is None or self._counters.taxonomy is not taxonomy:
            self._counters = _Counters(taxonomy, [self._metrics.groups.labels(name) for name in groups(taxonomy)])
        self._counters.by_class[class_id].inc()
