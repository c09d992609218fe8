"""The objects that all routes share, in one typed value."""

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from starlette.requests import HTTPConnection

from app.api.auth import Keys
from app.api.inquiry import Document
from app.api.ratelimit import RateLimit
from app.api.uploads import Uploads
from app.classifier import Classifier
from app.errors import NotReady, TopkError
from app.readiness import Readiness
from app.settings import Settings
from app.telemetry.metrics import Metrics

ErrorBody = Callable[[TopkError], dict[str, object]]
"""Builds the JSON body of an error."""


class StartEstimate:
    """Estimates how long a model takes to load, for ``Retry-After``.

    A model from the cache loads within ``TYPICAL_S``. A first start also downloads or converts, and reports no
    progress. Therefore a start that has taken t seconds is expected to take t more: clients back off exponentially.
    """

    TYPICAL_S = 3.0
    MOST_S = 60.0

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since = self._last = clock()

    def seconds(self) -> float:
        """Seconds until the model is expected to be ready. Call it for every refusal, and only then.

        A long time without a refusal means that the service was ready: the next refusal belongs to another start.
        """
        now = self._clock()
        if now - self._last > 2 * self.MOST_S:
            self._since = now
        self._last = now
        elapsed = now - self._since
        return min(max(self.TYPICAL_S - elapsed, elapsed), self.MOST_S)


@dataclass(frozen=True, slots=True)
class Protocols:
    """The enabled protocols.

    ``error_bodies``: by protocol. ``prefixes``: the protocol by the beginning of a path. ``documents``: the protocol
    and its reader by the JSON member that identifies its body on a shared path.
    """

    error_bodies: Mapping[str, ErrorBody] = field(default_factory=dict)
    prefixes: Mapping[str, str] = field(default_factory=dict)
    documents: Mapping[str, tuple[str, Document]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Service:
    """One app's shared objects. ``exposition`` renders the metrics."""

    settings: Settings
    readiness: Readiness
    classifier: Classifier
    metrics: Metrics
    uploads: Uploads
    keys: Keys
    rate_limit: RateLimit
    protocols: Protocols
    exposition: Callable[[], Awaitable[bytes]]
    start: StartEstimate = field(default_factory=StartEstimate)

    @classmethod
    def of(cls, connection: HTTPConnection) -> "Service":
        """The service that a request belongs to."""
        service = connection.app.state.service
        assert isinstance(service, cls)
        return service

    def ready_classifier(self) -> Classifier:
        """The classifier. Raises NotReady while no model accepts images, with the time until one is expected to."""
        if not self.classifier.ready:
            raise NotReady(self.readiness.reason, self.start.seconds())
        return self.classifier
