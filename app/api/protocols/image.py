"""Paths of other servers that respond to an image as ``/v1/predict`` does, and to other protocols' JSON as these do."""

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from app.api.classify import top
from app.api.forms import FIELDS, Contents, Form
from app.api.gate import gate
from app.api.options import TopKOptions, combine, query_options
from app.api.protocols.inquiries import ImageInquiry, answer_any
from app.api.schemas import errors
from app.api.schemas.document import Responses, response
from app.api.schemas.requests import OneImage, image_body
from app.api.schemas.responses import PREDICTED, PredictAnswer
from app.api.service import Service
from app.classifier import Classifier, Result

_FORM = Form(fields=(*FIELDS, "request", "content"), documents=True)


class ImageRequest(TopKOptions, OneImage):
    pass


async def predict(request: Request) -> Response:
    """The top-k classes of one image: its bytes, a multipart field or base64 in JSON. Also JSON with `instances`."""
    query = query_options(request, TopKOptions)
    top(Service.of(request).ready_classifier(), query.top_k)  # checked also if the body is another protocol's

    def inquiry(contents: Contents) -> ImageInquiry:
        options = combine(query, contents)

        def write(classifier: Classifier, result: Result) -> object:
            predictions = classifier.predictions(result.row, options.min_score or 0.0)
            return {"model": classifier.model.name, "weights": classifier.model.weights, "predictions": predictions}

        return ImageInquiry(contents.images, write, options.top_k)

    return await answer_any(request, _FORM, inquiry)


def route(router: APIRouter, path: str, summary: str, responses: Responses, body: dict[str, Any]) -> None:
    """Add the route to a protocol's router. ``responses`` and ``body`` describe it."""
    router.post(path, summary=summary, dependencies=gate(_FORM), responses=responses, openapi_extra=body)(predict)


RESPONSES = errors.errors() | {200: response(PredictAnswer, PREDICTED)}
BODY = image_body(ImageRequest, TopKOptions)
