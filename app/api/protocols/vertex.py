"""Google Vertex AI's container contract, whose paths come from the environment."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from app.api import health
from app.api.answers import as_json
from app.api.options import TopKOptions
from app.api.protocols import image, kserve
from app.api.protocols.protocol import ErrorMessage, Protocol, error_message
from app.api.schemas.document import response, with_query
from app.api.schemas.errors import UPLOAD, errors
from app.settings import Settings

NAME = "vertex"


async def healthy(request: Request) -> Response:
    """200 once the model is warm, 503 while starting or draining."""
    health.check_ready(request)
    return as_json({"status": "ready"})


def routes(settings: Settings) -> APIRouter:
    router = APIRouter(tags=[NAME])
    if path := settings.aip_health_route:
        responses = errors([503], ErrorMessage, error_message)
        responses |= {200: response(health.Health, {"status": "ready"})}
        router.get(path, summary="Readiness", responses=responses)(healthy)
    if path := settings.aip_predict_route:
        responses = errors(UPLOAD, ErrorMessage, error_message) | {200: kserve.PREDICTIONS}
        image.route(router, path, "Predictions", responses, with_query(kserve.INSTANCES, TopKOptions))
    return router


PROTOCOL = Protocol(NAME, routes, error_body=error_message)
