"""Builds the ASGI app from its parts, loads the model in the background, and watches the device."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import structlog
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from app import __version__, engine, loading
from app.api import health, openapi, pages, problems, protocols, routes
from app.api.auth import Keys
from app.api.middleware import AnswerHead, Bounds, Cors, Defects, Observe, Prefix, probe_routes
from app.api.ratelimit import RateLimit
from app.api.refusals import Delays, Refusals
from app.api.service import Service
from app.api.uploads import Uploads
from app.classifier import Classifier
from app.drift import Observer
from app.errors import ModelError, TopkError
from app.readiness import Readiness
from app.settings import Settings
from app.settings.messages import unknown_names
from app.settings.variables import environment
from app.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from fastapi.telemetry import TelemetryConfig

    from app.telemetry.tracing import Traces

log = structlog.get_logger("topk")

_EXPOSED = ("X-Request-ID", "Server-Timing", "Retry-After", "Inference-Header-Content-Length")
_UNTRACED: "TelemetryConfig" = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}


def create_app(
    settings: Settings | None = None,
    readiness: Readiness | None = None,
    load: Callable[[Classifier, Readiness], None] | None = None,
    exposition: Callable[[], Awaitable[bytes]] | None = None,
) -> FastAPI:
    """Create the ASGI app. It loads the model in the background; ``/readyz`` reports when the model is warm.

    ``load`` replaces ``start_loading``. It is called at start-up, on the event loop.
    ``exposition`` renders the metrics, if they are not those of this app alone.

    Raises ModelError if the file of API keys cannot be read, if traces cannot be exported, or if samples cannot be
    stored.
    """
    if settings is None:
        unknown_names(environment())  # a misspelt name of the API keys must not open the service
        settings = Settings()
    metrics = Metrics()
    state = readiness or Readiness()
    classifier = Classifier(settings, metrics, state, Observer(settings, metrics))
    uploads = Uploads(settings, classifier.predicted_wait)
    delays = Delays(state)
    traces = _traces(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        (load or start_loading)(classifier, state)
        background = [asyncio.create_task(task) for task in (_watch(classifier), delays.end_with_process())]
        if not settings.listen_early:
            await state.wait_for_start()
        yield
        for task in background:
            task.cancel()
        await asyncio.to_thread(classifier.close)
        if traces:
            await asyncio.to_thread(traces.close)

    async def own_metrics() -> bytes:
        return metrics.render()

    app = FastAPI(
        title="topk",
        version=__version__,
        description="POST an image, get the top-k ImageNet classes.",
        lifespan=lifespan,
        openapi_url=None,  # ``openapi.describe`` adds the route
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # redirects would go to the request's own Host
        telemetry=traces.of_requests if traces else _UNTRACED,
    )
    app.state.service = Service(
        settings=settings,
        readiness=state,
        classifier=classifier,
        metrics=metrics,
        uploads=uploads,
        keys=Keys(settings),
        rate_limit=RateLimit(settings),
        protocols=protocols.enabled(settings),
        exposition=exposition or own_metrics,
    )
    metrics.inflight_bytes.set_function(lambda: uploads.inflight)
    metrics.ready.set_function(lambda: classifier.ready and not state.draining)

    app.include_router(health.router)
    if settings.aip_health_route or settings.aip_predict_route:  # which may be paths of topk's own
        protocols.include(app, settings)
        app.include_router(routes.router)
    else:  # FastAPI tries one router after another, so that of most requests comes first
        app.include_router(routes.router)
        protocols.include(app, settings)
    app.include_router(pages.router)
    pages.mount_assets(app)
    openapi.describe(app, settings)
    app.add_exception_handler(TopkError, problems.on_topk_error)
    app.add_exception_handler(HTTPException, problems.on_http_exception)
    app.add_exception_handler(RequestValidationError, problems.on_validation_error)
    # The middleware added last is the outermost.
    app.add_middleware(AnswerHead)
    app.add_middleware(Defects)
    app.add_middleware(Bounds)
    app.add_middleware(Cors, settings=settings, expose_headers=_EXPOSED)
    app.add_middleware(Refusals, delays=delays)
    if settings.root_path:
        app.add_middleware(Prefix, prefix=settings.root_path)
    app.add_middleware(Observe, settings=settings, metrics=metrics, readiness=state, traces=traces)
    return app


def _traces(settings: Settings) -> "Traces | None":
    if not settings.traces:
        return None
    try:
        from app.telemetry.tracing import Traces
    except ImportError as error:
        raise ModelError("traces need the extra otel: pip install '.[otel]'") from error
    probes = probe_routes(settings)
    return Traces(exclude=lambda scope: scope["path"].removeprefix(settings.root_path) in probes)


def start_loading(classifier: Classifier, readiness: Readiness, create: loading.Create = engine.create) -> None:
    """Load the classifier's model in the background. Call it on the event loop."""

    def loaded(failure: ModelError | None) -> None:
        if failure:
            readiness.fail(failure)
        elif not readiness.draining:
            readiness.announce()
            asyncio.get_running_loop().run_in_executor(None, classifier.sandbox.start)

    log.info("loading", model=classifier.settings.model)
    loading.in_background(partial(loading.load, classifier, create), loaded)


async def _watch(classifier: Classifier) -> None:
    """Treat a device that hangs as lost."""
    classifier.abandon(await loading.hang(classifier.running_s, classifier.settings.watchdog_ms / 1000))
