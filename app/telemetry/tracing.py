"""Traces: FastAPI's own span a request, and below it one a stage. Imported only where traces are asked for.

Where spans go and which are kept is OpenTelemetry's own configuration, the variables ``OTEL_*`` that its SDK reads.
"""

import threading
import time
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

from fastapi.telemetry import TelemetryConfig
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from app import __version__
from app.api.exchange import Exchange
from app.errors import ModelError

_FLUSH_S = 3.0  # a collector that does not answer must not keep the process from ending
_NS = 1_000_000_000


class Traces:
    """Spans of one app. Exporting is a thread of its own; what a lost collector does not take is dropped there.

    ``exclude`` tells of a request's scope whether it is to have no span. Raises ModelError where a variable is wrong.
    """

    def __init__(self, exclude: Callable[[MutableMapping[str, Any]], bool]) -> None:
        named = Resource({"service.name": "topk", "service.version": __version__})
        resource = Resource.create(named.merge(OTELResourceDetector().detect()).attributes)
        try:
            self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
            self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        except ValueError as error:
            raise ModelError(f"OpenTelemetry's variables (OTEL_*): {error}") from error
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
        """The trace that the current request belongs to."""
        context = trace.get_current_span().get_span_context()
        return trace.format_trace_id(context.trace_id) if context.is_valid else None

    def tell(self, exchange: Exchange) -> None:
        """Note what is known of the current request in its span, and its stages below it; before its answer goes out.

        FastAPI ends the span with the answer's last byte.
        """
        span = trace.get_current_span()
        if not span.is_recording():
            return
        known = {
            "topk.request_id": exchange.request_id,
            "topk.images": exchange.images or None,
            "topk.batch_size": exchange.batch_size,
            "topk.error_code": exchange.code,
            "http.request.body.size": exchange.bytes or None,
        }
        span.set_attributes({name: value for name, value in known.items() if value is not None})
        context = trace.set_span_in_context(span)
        since_epoch = time.time_ns() - time.monotonic_ns()
        for stage, started, ended in _stages(exchange):
            child = self._tracer.start_span(stage, context, start_time=since_epoch + int(started * _NS))
            child.end(since_epoch + int(ended * _NS))

    def close(self) -> None:
        """Send what is left, for a few seconds at most. Blocks."""
        flushing = threading.Thread(target=self._provider.shutdown, name="topk-traces", daemon=True)
        flushing.start()
        flushing.join(_FLUSH_S)


def _stages(exchange: Exchange) -> Iterator[tuple[str, float, float]]:
    """(stage, begin, end) in seconds of ``time.monotonic``; of several images from the first one to the last."""
    if exchange.uploaded_at is not None:
        yield "upload", exchange.uploaded_at - exchange.stages["upload"], exchange.uploaded_at
    for stage, end in (("decode", "decoded_at"), ("queue", "taken_at"), ("inference", "computed_at")):
        spans = [(getattr(timing, end), getattr(timing, stage)) for timing in exchange.timings]
        if any(seconds for _, seconds in spans):
            yield stage, min(at - seconds for at, seconds in spans), max(at for at, _ in spans)
