"""TorchServe's inference API, whose maintenance upstream has ended: ``/predictions`` and ``/ping``."""

from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from starlette.responses import Response

from app.api import health, schemas
from app.api.classify import as_json, gate
from app.api.forms import Form
from app.api.protocols.asked import VERSION, One, answer_any, named
from app.classifier import Classifier, Result
from app.errors import TopkError
from app.settings import Settings

NAME = "torchserve"
PREFIX = "/predictions/"
_FORM = Form(fields=("data", "body", "file", "image"), documents=True)
_TYPES = {404: "ModelNotFoundException", 500: "InternalServerException"}

Model = Annotated[str, Path(description="The served model's name.")]
Version = Annotated[str, Path(description="There is only `1`.", examples=[VERSION])]


def problem(error: TopkError) -> dict[str, Any]:
    """An error as TorchServe's frontend has it."""
    phrase = HTTPStatus(error.status).phrase.title()
    kind = _TYPES.get(error.status) or "".join(filter(str.isalpha, phrase)) + "Exception"
    return {"code": error.status, "type": kind, "message": error.detail}


def best(classifier: Classifier, result: Result) -> dict[str, float]:
    """Label to probability, highest first. Classes that share a label are told apart by their index."""
    answer: dict[str, float] = {}
    for prediction in classifier.predictions(result.row):
        name = prediction.label.replace(" ", "_")
        while name in answer:
            name = f"{name}_{prediction.class_id}"
        answer[name] = prediction.score
    return answer


async def ping(request: Request) -> Response:
    """200 once the model is warm, 503 while starting or draining."""
    health.check_ready(request)
    return as_json({"status": "Healthy"})


async def predictions(request: Request, model: Model) -> Response:
    """The five best classes of one image: its bytes (`curl -T cat.jpg`), or the multipart field `data`."""
    named(request, model)
    return await answer_any(request, _FORM, One(best))


async def version_predictions(request: Request, model: Model, version: Version) -> Response:
    """The same for a version."""
    named(request, model, version)
    return await answer_any(request, _FORM, One(best))


def ping_route(router: APIRouter, errors: schemas.Responses) -> None:
    """``/ping``, which SageMaker asks as well."""
    router.get("/ping", summary="Ready", responses=errors | {200: schemas.answer({"status": "Healthy"})})(ping)


def routes(settings: Settings) -> APIRouter:
    """Its routes."""
    router = APIRouter(tags=[NAME])
    ping_route(router, schemas.errors([503], problem, _ERROR))
    for path, endpoint, of in (
        ("/predictions/{model}", predictions, ""),
        ("/predictions/{model}/{version}", version_predictions, " of a version"),
    ):
        for method in ("POST", "PUT"):
            router.add_api_route(
                path,
                endpoint,
                methods=[method],
                summary=f"Predictions{of}",
                dependencies=gate(_FORM),
                responses=schemas.errors(schemas.NAMING, problem, _ERROR) | {200: schemas.answer(_BEST, _SHAPE)},
                openapi_extra=schemas.image_body(several=False, field="data"),
            )
    return router


_BEST = {"Egyptian_cat": 0.3864, "tiger_cat": 0.3632, "tabby": 0.176, "lynx": 0.0175, "window_screen": 0.0012}
_SHAPE = {"type": "object", "additionalProperties": {"type": "number"}}
_ERROR = {
    "type": "object",
    "required": ["code", "type", "message"],
    "properties": {"code": {"type": "integer"}, "type": {"type": "string"}, "message": {"type": "string"}},
}
