"""Amazon SageMaker's container contract: ``/ping`` and ``/invocations``."""

from fastapi import APIRouter

from app.api.protocols import image, torchserve
from app.api.protocols.protocol import Protocol
from app.api.schemas.errors import errors
from app.settings import Settings

NAME = "sagemaker"


def routes(settings: Settings) -> APIRouter:
    """TorchServe has the same ``/ping``."""
    router = APIRouter(tags=[NAME])
    if torchserve.NAME not in settings.protocols:
        torchserve.ping_route(router, errors([503]))
    image.route(router, "/invocations", "Invocations", image.RESPONSES, image.BODY)
    return router


PROTOCOL = Protocol(NAME, routes)
