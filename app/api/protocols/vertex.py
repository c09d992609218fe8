"""Google Vertex AI's contract with a container, whose paths its environment names."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from app.api import health, schemas
from app.api.classify import as_json
from app.api.protocols import kserve, plain
from app.api.protocols.asked import SAID, said
from app.settings import Settings

NAME = "vertex"

problem = said


async def healthy(request: Request) -> Response:
    """200 once the model is warm, 503 while starting or draining."""
    health.check_ready(request)
    return as_json({"status": "ready"})


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
