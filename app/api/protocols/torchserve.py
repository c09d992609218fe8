"""TorchServe's inference API, no longer maintained upstream: ``/predictions`` and ``/ping``."""

from http import HTTPStatus

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import Response

from app.api import health
from app.api.answers import as_json
from app.api.forms import Contents, Form
from app.api.gate import gate
from app.api.protocols.inquiries import ImageInquiry, answer_any
from app.api.protocols.protocol import ModelName, Protocol, Version, named
from app.api.schemas.document import Responses, response
from app.api.schemas.errors import NAMED, errors
from app.api.schemas.requests import OneImage, image_body
from app.classifier import Classifier, Result
from app.errors import TopkError
from app.settings import Settings

NAME = "torchserve"
_FORM = Form(fields=("data", "body", "file", "image"), documents=True)
_TYPES = {404: "ModelNotFoundException", 500: "InternalServerException"}


class TorchServeError(BaseModel):
    code: int
    type: str
    message: str


class TorchServeStatus(BaseModel):
    status: str


def error_body(error: TopkError) -> dict[str, object]:
    """An error as TorchServe's frontend writes it."""
    phrase = HTTPStatus(error.status).phrase.title()
    kind = _TYPES.get(error.status) or "".join(filter(str.isalpha, phrase)) + "Exception"
    return {"code": error.status, "type": kind, "message": error.detail}


def best(classifier: Classifier, result: Result) -> dict[str, float]:
    """Label to probability, highest first. The index is appended to a label that several classes share."""
    scores: dict[str, float] = {}
    for prediction in classifier.predictions(result.row):
        name = prediction.label.replace(" ", "_")
        while name in scores:
            name = f"{name}_{prediction.class_id}"
        scores[name] = prediction.score
    return scores


async def ping(request: Request) -> Response:
    """200 once the model is warm, 503 while starting or draining."""
    health.check_ready(request)
    return as_json({"status": "Healthy"})


async def predictions(request: Request, model: ModelName) -> Response:
    """The five best classes of one image: its bytes (`curl -T cat.jpg`), or the multipart field `data`."""
    named(request, model)
    return await answer_any(request, _FORM, _inquiry)


async def version_predictions(request: Request, model: ModelName, version: Version) -> Response:
    """The same for a version."""
    named(request, model, version)
    return await answer_any(request, _FORM, _inquiry)


def _inquiry(contents: Contents) -> ImageInquiry:
    return ImageInquiry(contents.images, best)


def ping_route(router: APIRouter, error_responses: Responses) -> None:
    """Add ``/ping``, which SageMaker requests as well."""
    responses = error_responses | {200: response(TorchServeStatus, {"status": "Healthy"})}
    router.get("/ping", summary="Readiness", responses=responses)(ping)


def routes(settings: Settings) -> APIRouter:
    router = APIRouter(tags=[NAME])
    ping_route(router, errors([503], TorchServeError, error_body))
    for path, endpoint, suffix in (
        ("/predictions/{model}", predictions, ""),
        ("/predictions/{model}/{version}", version_predictions, " of a version"),
    ):
        for method in ("POST", "PUT"):
            router.add_api_route(
                path,
                endpoint,
                methods=[method],
                summary=f"Predictions{suffix}",
                dependencies=gate(_FORM),
                responses=errors(NAMED, TorchServeError, error_body) | {200: response(dict[str, float], _BEST)},
                openapi_extra=image_body(OneImage, field="data"),
            )
    return router


_BEST = {"Egyptian_cat": 0.3864, "tiger_cat": 0.3632, "tabby": 0.176, "lynx": 0.0175, "window_screen": 0.0012}
PROTOCOL = Protocol(NAME, routes, prefix="/predictions/", error_body=error_body)
