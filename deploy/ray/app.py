"""topk on Ray Serve: every replica is the whole app, with a model of its own.

Ray runs what is here on the event loop of one thread of the replica: the loop that the classifier's queue belongs to.
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
from app.telemetry.logging import configure_logging
from app.workers.metrics import Snapshot, Totals, snapshot

SCRAPE_S = 5.0  # for all replicas' metrics: half of what Prometheus waits
SHUTDOWN_S = 5.0  # for what comes after the last answer


def build(args: dict[str, Any]) -> Application:
    """The application, for ``serve run`` and ``serve deploy``. ``args`` are settings; they win over the environment.

    Raises ValueError where they are none.
    """
    if unknown := sorted(args.keys() - Settings.model_fields.keys()):
        raise ValueError(f"no such settings: {', '.join(unknown)}")
    settings = Settings(**args | {"listen_early": False})  # a replica has started once its model is warm
    longest_s = (settings.upload_ms + settings.request_timeout_ms) / 1000
    return Topk.options(graceful_shutdown_timeout_s=longest_s + SHUTDOWN_S).bind(settings)


@serve.deployment(
    max_ongoing_requests=10_000,  # never reached: what a replica takes on is for its own admission to say
    max_queued_requests=1_000,  # in a proxy, while no replica can be reached
    backpressure_config={"retry_after_s": 1},
    graceful_shutdown_wait_loop_s=0.5,
    health_check_period_s=5,
    health_check_timeout_s=10,
    logging_config={"enable_access_log": False},  # the app writes one
)
@serve.ingress()
class Topk:
    """One replica. Ray calls ``check_health`` before it sends the first request, and every few seconds from then on."""

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
        """Raises what is wrong, if anything is: ``serve status`` shows it, and another replica takes its place."""
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
        """Every replica's metrics, since a scrape through a proxy reaches any one of them."""
        try:
            told = await self._replicas.broadcast("metrics").results_async(timeout_s=SCRAPE_S, return_exceptions=True)
        except TimeoutError:
            told = [await self.metrics()]
        return Totals().render(metrics for metrics in told if not isinstance(metrics, Exception))


class Proxied:
    """What Ray's proxy does otherwise than an ASGI server, put right.

    It adds ``X-Request-ID`` to every answer, the one that it gave the request: the app's own would be a second. And
    where a client leaves, ``receive`` may raise an error of Ray's instead of telling so.
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
