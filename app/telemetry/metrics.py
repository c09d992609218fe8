"""Prometheus metrics. Each app has its own registry. The names of metrics are stable."""

import math

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from app import machine
from app.errors import BadImage, DeadlineExceeded, InvalidParameter, TopkError, Unavailable

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1)
_TYPICALITIES = (0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 0.75, 1)
_SET_SIZES = (1, 2, 3, 5, 10, 20, 50, 100, 1000)
OUTCOMES = ("accepted", "shed", "expired", "abandoned", "rejected", "failed")


def outcome(error: TopkError) -> str:
    """The outcome of an image that ended with an error."""
    match error:
        case BadImage() | InvalidParameter():
            return "rejected"
        case DeadlineExceeded():
            return "expired"
        case Unavailable():
            return "shed"
    return "failed"


class Metrics:
    """Every metric once.

    Each image has one outcome: accepted (classified), shed (refused because the response would be late), expired (its
    deadline passed), abandoned (its client disconnected), rejected (not a decodable image, or the network cannot be
    explained) or failed (a defect).
    """

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # they would add a timestamp per series
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self.requests = Counter(
            "topk_requests", "Requests answered", ["route", "status", "protocol"], registry=registry
        )
        self.request_seconds = Histogram(
            "topk_request_seconds", "Whole request, from its headers", ["route"], buckets=_SECONDS, registry=registry
        )
        self.images = Counter("topk_images", "Images by outcome", ["outcome"], registry=registry)
        for outcome in OUTCOMES:
            self.images.labels(outcome)
        self.upload_seconds = self._stage(registry, "upload", "Reading a body, a request")
        self.decode_seconds = self._stage(registry, "decode", "Bytes to crop, an image")
        self.queue_seconds = self._stage(registry, "queue", "Wait for a stream, an image")
        self.inference_seconds = self._stage(registry, "inference", "Forward pass, a batch")
        self.batch_size = Histogram("topk_batch_size", "Images in a batch", buckets=_SIZES, registry=registry)
        self.top_score = Histogram(
            "topk_top_score", "Score of the best class, an image", buckets=_SHARES, registry=registry
        )
        self.typicality = Histogram(
            "topk_typicality",
            "Typicality by a calibrated model, an image; uniform while the images are like those of the calibration",
            buckets=_TYPICALITIES,
            registry=registry,
        )
        self.set_size = Histogram(
            "topk_set_size", "Classes in a prediction set, an image", buckets=_SET_SIZES, registry=registry
        )
        self.groups = Counter(
            "topk_predicted_group", "Images by the WordNet group of their best class", ["group"], registry=registry
        )
        self.samples = Counter("topk_samples", "Sampled images by outcome", ["outcome"], registry=registry)
        self.queue_images = Gauge("topk_queue_images", "Images waiting for a stream", registry=registry)
        self.predicted_wait = Gauge(
            "topk_predicted_wait_seconds", "Wait predicted for an image that comes now", registry=registry
        )
        self.patience = Gauge(
            "topk_patience_seconds",
            "How long clients wait that state no deadline; +Inf if none has left",
            registry=registry,
        )
        self.patience.set(math.inf)
        self.batch_cost = Gauge(
            "topk_batch_cost_seconds", "Measured cost of a batch, by bucket", ["bucket"], registry=registry
        )
        self.capacity = Gauge(
            "topk_capacity_images_per_second",
            "Images per second that the device can run, by the measured cost of its largest batch",
            registry=registry,
        )
        self.device_memory = Gauge(
            "topk_device_memory_bytes", "Memory of a device that has its own", ["kind"], registry=registry
        )
        self.inflight_bytes = Gauge("topk_inflight_bytes", "Bytes of uploads held in memory", registry=registry)
        Gauge("topk_memory_limit_bytes", "Bytes of memory that all processes together may use", registry=registry).set(
            machine.memory_bytes()
        )
        self.ready = Gauge("topk_ready", "1 when the service is ready", registry=registry)
        self.model = Info("topk_model", "The served model", registry=registry)

    @staticmethod
    def _stage(registry: CollectorRegistry, stage: str, help: str) -> Histogram:
        return Histogram(f"topk_{stage}_seconds", help, buckets=_SECONDS, registry=registry)

    def render(self) -> bytes:
        """All metrics in Prometheus's text format 0.0.4."""
        return generate_latest(self.registry)
