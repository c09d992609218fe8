"""LitServe's default path, which most tutorials use as well: ``/predict``."""

from fastapi import APIRouter

from app.api import schemas
from app.api.protocols import plain
from app.settings import Settings

NAME = "litserve"


def routes(settings: Settings) -> APIRouter:
    """Its route."""
    router = APIRouter(tags=[NAME])
    plain.route(router, "/predict", "Classify an image", plain.RESPONSES, schemas.image_body(several=False))
    return router
