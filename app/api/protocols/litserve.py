"""LitServe's default path, ``/predict``, which most tutorials use as well."""

from fastapi import APIRouter

from app.api.protocols import image
from app.api.protocols.protocol import Protocol
from app.settings import Settings

NAME = "litserve"


def routes(settings: Settings) -> APIRouter:
    router = APIRouter(tags=[NAME])
    image.route(router, "/predict", "Classify an image", image.RESPONSES, image.BODY)
    return router


PROTOCOL = Protocol(NAME, routes)
