"""Hugging Face's image classification, as its endpoints and ``InferenceClient`` define it (``@huggingface/tasks``)."""

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from app.api.answers import as_json
from app.api.excerpts import shown
from app.api.forms import Contents, Form, Upload
from app.api.gate import gate
from app.api.inquiry import Inquiry
from app.api.options import DEFAULT_K
from app.api.protocols.inquiries import ImageInquiry, answer_any
from app.api.protocols.members import MOST, members, whole_number
from app.api.protocols.protocol import ErrorMessage, ModelName, Protocol, error_message, named
from app.api.schemas.document import response
from app.api.schemas.errors import NAMED, UPLOAD, errors
from app.api.schemas.requests import CAT, Base64, image_body
from app.api.uploads import Uploads
from app.classifier import Classifier, Result
from app.engine import Want
from app.errors import Internal, InvalidParameter
from app.settings import Settings

NAME = "huggingface"
_FORM = Form(documents=True)
_FUNCTIONS = ("softmax", "sigmoid", "none")


class LabelScore(BaseModel):
    label: str
    score: float


class InputsParameters(BaseModel):
    top_k: Annotated[int, Field(ge=1, le=MOST)] | None = None
    function_to_apply: Literal["softmax", "sigmoid", "none"] | None = None


class InputsRequest(BaseModel):
    inputs: Base64
    parameters: InputsParameters | None = None


@dataclass(frozen=True, slots=True)
class Inputs:
    """One image in JSON, with its parameters. A ``k`` larger than the number of classes means all of them."""

    images: list[Upload]
    k: int
    function: str
    place: str = ""
    sets: bool = False

    def want(self, classifier: Classifier) -> Want:
        return Want(min(self.k, len(classifier.model.labels)), logits=self.function != "softmax")

    def answer(self, classifier: Classifier, results: list[Result]) -> Response:
        [result] = results
        return as_json(_entries(classifier, result, _scores(result, self.function)))


def inputs(document: dict[str, object], uploads: Uploads) -> Inquiry:
    """``{"inputs": "<base64>", "parameters": {...}}``. Raises MalformedRequest, InvalidParameter, PayloadTooLarge."""
    parameters = members(document.get("parameters"), "parameters")
    k = parameters.get("top_k")
    function = parameters.get("function_to_apply")
    function = "softmax" if function is None else function
    if not isinstance(function, str) or function not in _FUNCTIONS:
        raise InvalidParameter(f"function_to_apply must be one of {', '.join(_FUNCTIONS)}, got {shown(function)}")
    return Inputs(uploads.images([document["inputs"]]), DEFAULT_K if k is None else whole_number(k, "top_k"), function)


def _entries(classifier: Classifier, result: Result, scores: npt.NDArray[np.float32]) -> list[dict[str, object]]:
    labels = classifier.model.labels
    return [
        {"label": labels[class_id].label, "score": score}
        for class_id, score in zip(result.row.class_ids.tolist(), scores.tolist(), strict=True)
    ]


def _scores(result: Result, function: str) -> npt.NDArray[np.float32]:
    """The scores of the best classes. All three functions rank the classes the same."""
    if function == "softmax":
        return result.row.scores
    if result.row.logits is None:
        raise Internal("the device returned no logits")
    logits: npt.NDArray[np.float32] = result.row.logits[result.row.class_ids]
    return logits if function == "none" else np.float32(0.5) * (1 + np.tanh(logits / 2))


async def model_root(request: Request, model: ModelName) -> Response:
    """The best classes of one image: its bytes, or base64 in JSON with parameters."""
    named(request, model)
    return await root(request)


async def root(request: Request) -> Response:
    """The best classes of one image, as on dedicated endpoints."""
    return await answer_any(request, _FORM, _inquiry)


def _inquiry(contents: Contents) -> ImageInquiry:
    return ImageInquiry(contents.images, lambda classifier, result: _entries(classifier, result, result.row.scores))


def routes(settings: Settings) -> APIRouter:
    router = APIRouter(tags=[NAME])
    for path, endpoint, summary, statuses in (
        ("/models/{model:path}", model_root, "Image classification by a model's name", NAMED),
        ("/", root, "Image classification", UPLOAD),
    ):
        router.post(
            path,
            summary=summary,
            dependencies=gate(_FORM),
            responses=errors(statuses, ErrorMessage, error_message) | {200: response(list[LabelScore], _EXAMPLE)},
            openapi_extra=image_body(InputsRequest, example=_REQUEST),
        )(endpoint)
    return router


_EXAMPLE = [{"label": "Egyptian cat", "score": 0.3864}]
_REQUEST = {"inputs": CAT, "parameters": {"top_k": 5, "function_to_apply": "softmax"}}
PROTOCOL = Protocol(NAME, routes, error_body=error_message)
