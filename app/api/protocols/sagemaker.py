"""Amazon SageMaker's contract with a container: ``/ping`` and ``/invocations``."""

from fastapi import APIRouter

from app.api import schemas
from app.api.protocols import plain, torchserve
from app.settings import Settings

NAME = "sagemaker"


def routes(settings: Settings) -> APIRouter:
    """Its routes; TorchServe's ``/ping`` is the same."""
    router = APIRouter(tags=[NAME])
    if torchserve.NAME not in settings.protocols:
        torchserve.ping_route(router, schemas.errors([503]))
    plain.route(router, "/invocations", "Invocations", plain.RESPONSES, schemas.image_body(several=False))
    return router
