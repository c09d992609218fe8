"""Google Vertex AI's contract with a container, whose paths its environment names."""

from collections.abc import Sequence

from fastapi import APIRouter, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match

from app.api import health, schemas
from app.api.classify import as_json
from app.api.protocols import kserve, plain
from app.api.protocols.asked import SAID, said
from app.errors import ModelError
from app.settings import Settings

NAME = "vertex"

problem = said
_SHARED = ("/readyz", "/healthz", "/v1/predict")  # what is answered there is what is asked for


async def healthy(request: Request) -> Response:
    """200 once the model is warm, 503 while starting or draining."""
    health.check_ready(request)
    return as_json({"status": "ready"})


def check(settings: Settings, own: Sequence[BaseRoute]) -> None:
    """Raises ModelError where a path is that of a route of our own which means something else."""
    for name, method, path in (
        ("AIP_HEALTH_ROUTE", "GET", settings.aip_health_route),
        ("AIP_PREDICT_ROUTE", "POST", settings.aip_predict_route),
    ):
        scope: dict[str, object] = {"type": "http", "method": method, "path": path, "headers": []}
        if path and path not in _SHARED and any(route.matches(scope)[0] is Match.FULL for route in own):
            raise ModelError(f"{name}: {path} is a path of topk's own, which means something else; choose another")


def routes(settings: Settings) -> APIRouter:
    """Its routes, where there are any."""
    router = APIRouter(tags=[NAME])
    if path := settings.aip_health_route:
        responses = schemas.errors([503], said, SAID) | {200: schemas.answer({"status": "ready"})}
        router.get(path, summary="Ready", responses=responses)(healthy)
    if path := settings.aip_predict_route:
        responses = schemas.errors(schemas.UPLOADING, said, SAID) | {200: kserve.PREDICTIONS}
        plain.route(router, path, "Predictions", responses, kserve.INSTANCES)
    return router
