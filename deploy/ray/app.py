"""topk on Ray Serve: every replica is the whole app with its own model.

Ray runs the replica's methods and the app on one event loop.
"""

from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayError
from ray.serve import Application
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import NotReady
from app.main import create_app
from app.settings import Settings
from app.settings.messages import unknown_names
from app.settings.variables import environment
from app.telemetry.logging import configure_logging
from app.workers.metrics import Snapshot, Totals, snapshot

SCRAPE_S = 5.0  # to collect the metrics of all replicas: half of Prometheus' timeout
SHUTDOWN_S = 5.0  # to exit after the last response


def build(args: dict[str, Any]) -> Application:
    """Build the application for ``serve run`` and ``serve deploy``. ``args`` are settings and override the environment.

    Raises ValueError for unknown settings. Raises ModelError if an environment variable resembles a setting that
    restricts access.
    """
    if unknown := sorted(args.keys() - Settings.model_fields.keys()):
        raise ValueError(f"no such settings: {', '.join(unknown)}")
    unknown_names(environment())  # a misspelt name of the API keys must not open the service
    settings = Settings(**args | {"listen_early": False})  # the start ends when the model is warm
    longest_s = (settings.upload_ms + settings.request_timeout_ms) / 1000
    return Topk.options(graceful_shutdown_timeout_s=longest_s + SHUTDOWN_S).bind(settings)


@serve.deployment(
    max_ongoing_requests=10_000,  # has no effect: the admission of each replica limits its requests
    max_queued_requests=1_000,  # in a proxy while no replica is available
    backpressure_config={"retry_after_s": 1},
    graceful_shutdown_wait_loop_s=0.5,
    health_check_period_s=5,
    health_check_timeout_s=10,
    logging_config={"enable_access_log": False},  # the app has its own
)
@serve.ingress()
class Topk:
    """One replica. Ray calls ``check_health`` before it sends the first request, then every few seconds."""

    def __init__(self, settings: Settings) -> None:
        configure_logging(settings.log_format, settings.log_level)
        context = serve.get_replica_context()
        self._settings = settings
        self._name = context.replica_tag
        self._replicas = serve.get_deployment_handle(context.deployment, context.app_name)

    def __serve_build_asgi_app__(self) -> FastAPI:
        app = create_app(self._settings, exposition=self._exposition)
        app.add_middleware(Proxied)
        return app

    async def check_health(self) -> None:
        """Raise an error if the replica is unhealthy. ``serve status`` shows it, and Ray replaces the replica."""
        service = self.app.state.service
        if service.readiness.failure:
            raise service.readiness.failure
        if not service.classifier.ready:
            raise NotReady("the model is not loaded")

    async def metrics(self) -> Snapshot:
        """This replica's metrics, with its name as a label."""
        return [
            [
                family,
                kind,
                help,
                [[sample, labels | {"replica": self._name}, value] for sample, labels, value in samples],
            ]
            for family, kind, help, samples in snapshot(self.app.state.service.metrics.registry)
        ]

    async def _exposition(self) -> bytes:
        """The metrics of all replicas, because a proxy forwards a scrape to any one of them."""
        try:
            found = await self._replicas.broadcast("metrics").results_async(timeout_s=SCRAPE_S, return_exceptions=True)
        except TimeoutError:
            found = [await self.metrics()]
        return Totals().render(metrics for metrics in found if not isinstance(metrics, Exception))


class Proxied:
    """Middleware for two differences between Ray's proxy and an ASGI server.

    The proxy adds its own ``X-Request-ID`` to every response, so the app's is removed. When a client disconnects,
    ``receive`` may raise a RayError instead of returning ``http.disconnect``.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def received() -> Message:
            try:
                return await receive()
            except RayError:
                return {"type": "http.disconnect"}

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                del MutableHeaders(scope=message)["X-Request-ID"]
            await send(message)

        await self.app(scope, received, sent)
