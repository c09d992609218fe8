"""What is known of one request while it is under way; the middleware makes it, routes add to it."""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from starlette.types import Scope

from app.classifier import Timing
from app.settings import PROTOCOLS

_KEY = "topk.exchange"
OURS = "topk"


class ClientGone(Exception):
    """The client closed its connection before its answer was ready; there is nobody left to answer."""


@dataclass(slots=True)
class Exchange:
    """One request and its answer. Durations in seconds; ``started`` is ``time.perf_counter`` at its headers.

    ``answer_bytes`` is about how large its images' answer may be.
    ``uploaded_at`` is when its body was there, in seconds of ``time.monotonic``; ``timings`` are its images'.
    ``spoken`` is the protocol its body turned out to be in, where its path is that of several.
    """

    request_id: str
    trace_id: str | None = None
    caller: str = ""
    started: float = field(default_factory=time.perf_counter)
    code: str | None = None
    spoken: str | None = None
    images: int = 0
    bytes: int = 0
    answer_bytes: int = 0
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
        """The protocol of a request's route, which is told by its tag; ``topk`` where there is none."""
        tags = getattr(scope.get("route"), "tags", ())
        return next((str(tag) for tag in tags if tag in PROTOCOLS), OURS)

    def ids(self) -> dict[str, str]:
        """What names it in a log line."""
        ids = {"request_id": self.request_id}
        return ids | {"trace_id": self.trace_id} if self.trace_id else ids

    def took(self, timings: Iterable[Timing]) -> None:
        """Note the slowest image's stages, and the largest batch one of them was in."""
        self.timings = list(timings)
        if self.timings:
            for stage in ("decode", "queue", "inference"):
                self.stages[stage] = max(getattr(timing, stage) for timing in self.timings)
            self.batch_size = max(timing.batch_size for timing in self.timings)

    def server_timing(self) -> str:
        """The ``Server-Timing`` header: milliseconds a stage, and the batch."""
        stages = {**self.stages, "total": time.perf_counter() - self.started}
        entries = [f"{stage};dur={seconds * 1000:.2f}" for stage, seconds in stages.items()]
        if self.batch_size is not None:
            entries.append(f'batch;desc="{self.batch_size}"')
        return ", ".join(entries)
