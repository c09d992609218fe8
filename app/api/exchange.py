"""The state of one request, created by the middleware and filled in by the routes."""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from starlette.types import Scope

from app.classifier import Timing
from app.settings import PROTOCOLS

_KEY = "topk.exchange"
OWN_PROTOCOL = "topk"


class ClientGone(Exception):
    """The client closed its connection before the response was ready."""


@dataclass(slots=True)
class Exchange:
    """One request and its response. Durations are in seconds; ``started`` is ``time.perf_counter`` at the headers.

    ``response_bytes`` is the approximate size of the response; ``code`` and ``retry_after_s`` are those of its error.
    ``uploaded_at`` is the time of the body's last byte, in seconds of ``time.monotonic``; ``timings`` are those of its
    images. ``body_protocol`` is the protocol of the body, on a path that several protocols share.
    """

    request_id: str
    trace_id: str | None = None
    caller: str = ""
    started: float = field(default_factory=time.perf_counter)
    code: str | None = None
    retry_after_s: float | None = None
    body_protocol: str | None = None
    images: int = 0
    bytes: int = 0
    response_bytes: int = 0
    stages: dict[str, float] = field(default_factory=dict)
    batch_size: int | None = None
    uploaded_at: float | None = None
    timings: list[Timing] = field(default_factory=list)

    @classmethod
    def of(cls, scope: Scope) -> "Exchange":
        exchange = scope[_KEY]
        assert isinstance(exchange, cls)
        return exchange

    def attach(self, scope: Scope) -> None:
        scope[_KEY] = self

    @staticmethod
    def protocol(scope: Scope) -> str:
        """The protocol of the route, from its tag; ``topk`` if it has none."""
        tags = getattr(scope.get("route"), "tags", ())
        return next((str(tag) for tag in tags if tag in PROTOCOLS), OWN_PROTOCOL)

    def ids(self) -> dict[str, str]:
        """The ids that log lines carry."""
        ids = {"request_id": self.request_id}
        return ids | {"trace_id": self.trace_id} if self.trace_id else ids

    def record(self, timings: Iterable[Timing]) -> None:
        """Record each stage's longest duration, and the largest batch."""
        self.timings = list(timings)
        if self.timings:
            for stage in ("decode", "queue", "inference"):
                self.stages[stage] = max(getattr(timing, stage) for timing in self.timings)
            self.batch_size = max(timing.batch_size for timing in self.timings)

    def server_timing(self) -> str:
        """The ``Server-Timing`` header: milliseconds per stage, and the batch size."""
        stages = {**self.stages, "total": time.perf_counter() - self.started}
        entries = [f"{stage};dur={seconds * 1000:.2f}" for stage, seconds in stages.items()]
        if self.batch_size is not None:
            entries.append(f'batch;desc="{self.batch_size}"')
        return ", ".join(entries)
