"""Paths of other servers on which an image is answered as on ``/v1/predict``, and JSON of other protocols as theirs."""

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from app.api import schemas
from app.api.classify import MinScore, TopK, gate, served, top
from app.api.forms import FIELDS, Form
from app.api.protocols.asked import One, answer_any
from app.classifier import Classifier, Result

_FORM = Form(fields=(*FIELDS, "request", "content"), documents=True)


async def predict(request: Request, top_k: TopK = None, min_score: MinScore = 0.0) -> Response:
    """The best classes of one image: its bytes, a multipart field or base64 in JSON; or JSON with `instances`."""

    top(served(request), top_k)  # refused also where the body is another protocol's, which names its own

    def shape(classifier: Classifier, result: Result) -> dict[str, Any]:
        model = classifier.model
        predictions = classifier.predictions(result.row, min_score)
        return {"model": model.name, "weights": model.weights, "predictions": predictions}

    return await answer_any(request, _FORM, One(shape, top_k))


def route(router: APIRouter, path: str, summary: str, responses: schemas.Responses, body: dict[str, Any]) -> None:
    """Add the route to a protocol's router; ``responses`` and ``body`` are for its description."""
    router.post(path, summary=summary, dependencies=gate(_FORM), responses=responses, openapi_extra=body)(predict)


RESPONSES = schemas.errors() | {
    200: schemas.answer(schemas.PREDICTED, {"$ref": "#/components/schemas/PredictAnswer"}),
}
