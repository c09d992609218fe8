"""Traces: FastAPI's span per request, with a child span per stage. Imported only if traces are enabled.

The exporter and the sampler are configured by the variables ``OTEL_*``, which OpenTelemetry's SDK reads.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any, Protocol

from fastapi.telemetry import TelemetryConfig
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from app import __version__
from app.errors import ModelError

_FLUSH_S = 3.0  # a collector that does not respond must not delay the exit
_NS = 1_000_000_000


class TracedImage(Protocol):
    """Seconds that an image spent in each stage, and the ends of the stages in seconds of ``time.monotonic``."""

    @property
    def decode(self) -> float: ...
    @property
    def inference(self) -> float: ...
    @property
    def decoded_at(self) -> float: ...
    @property
    def waits(self) -> tuple[tuple[float, float], ...]: ...
    @property
    def computed_at(self) -> float: ...


class TracedRequest(Protocol):
    """What a trace shows of a request. ``uploaded_at`` is in seconds of ``time.monotonic``, ``stages`` in seconds."""

    @property
    def request_id(self) -> str: ...
    @property
    def images(self) -> int: ...
    @property
    def batch_size(self) -> int | None: ...
    @property
    def code(self) -> str | None: ...
    @property
    def bytes(self) -> int: ...
    @property
    def uploaded_at(self) -> float | None: ...
    @property
    def stages(self) -> Mapping[str, float]: ...
    @property
    def timings(self) -> Sequence[TracedImage]: ...


class Traces:
    """The spans of one app. A separate thread exports them; spans that the collector does not accept are dropped.

    Requests for whose scope ``exclude`` returns true have no span. Raises ModelError for an invalid ``OTEL_*``.
    """

    def __init__(self, exclude: Callable[[MutableMapping[str, Any]], bool]) -> None:
        named = Resource({"service.name": "topk", "service.version": __version__})
        resource = Resource.create(named.merge(OTELResourceDetector().detect()).attributes)
        try:
            self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
            self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        except ValueError as error:
            raise ModelError(f"a variable OTEL_* is invalid: {error}") from error
        self._tracer = self._provider.get_tracer("topk", __version__)
        self.of_requests: TelemetryConfig = {
            "tracer_provider": self._provider,
            "metrics": False,
            "logs": False,
            "operation_spans": False,
            "auto_configure": False,
            "exclude": exclude,
        }

    @staticmethod
    def trace_id() -> str | None:
        """The id of the current request's trace."""
        context = trace.get_current_span().get_span_context()
        return trace.format_trace_id(context.trace_id) if context.is_valid else None

    def record(self, request: TracedRequest) -> None:
        """Add attributes and stages to the current request's span. Call this before the response is sent.

        FastAPI ends the span with the response's last byte.
        """
        span = trace.get_current_span()
        if not span.is_recording():
            return
        attributes = {
            "topk.request_id": request.request_id,
            "topk.images": request.images or None,
            "topk.batch_size": request.batch_size,
            "topk.error_code": request.code,
            "http.request.body.size": request.bytes or None,
        }
        span.set_attributes({name: value for name, value in attributes.items() if value is not None})
        context = trace.set_span_in_context(span)
        since_epoch = time.time_ns() - time.monotonic_ns()
        for stage, started, ended in _stages(request):
            child = self._tracer.start_span(stage, context, start_time=since_epoch + int(started * _NS))
            child.end(since_epoch + int(ended * _NS))

    def close(self) -> None:
        """Export the remaining spans, for a few seconds at most. Blocks."""
        flushing = threading.Thread(target=self._provider.shutdown, name="topk-traces", daemon=True)
        flushing.start()
        flushing.join(_FLUSH_S)


def _stages(request: TracedRequest) -> Iterator[tuple[str, float, float]]:
    """(stage, start, end) in seconds of ``time.monotonic``.

    Of several images, the first start and the last end. Each wait is a span of its own, unless it overlaps with others.
    """
    if request.uploaded_at is not None:
        yield "upload", request.uploaded_at - request.stages["upload"], request.uploaded_at
    for stage, spans in {
        "decode": [(image.decoded_at, image.decode) for image in request.timings],
        "inference": [(image.computed_at, image.inference) for image in request.timings],
    }.items():
        if any(seconds for _, seconds in spans):
            yield stage, min(at - seconds for at, seconds in spans), max(at for at, _ in spans)
    for start, end in _union(wait for image in request.timings for wait in image.waits):
        yield "queue", start, end


def _union(intervals: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Intervals without overlaps, ascending."""
    union: list[tuple[float, float]] = []
    for start, end in sorted(intervals):
        if union and start <= union[-1][1]:
            union[-1] = (union[-1][0], max(union[-1][1], end))
        else:
            union.append((start, end))
    return union
